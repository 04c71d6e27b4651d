"""The evaluator that rounds as a GPU may: exact in float32, with the known failures of float16."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny import tiny_image

from stlm_edge.converters.fp16_kernels import BLOCK, compute
from stlm_edge.converters.fp16_simulation import Fp16Simulation
from stlm_edge.errors import JobError, UsageError
from stlm_edge.export.pipeline import Exported
from stlm_edge.images import load
from stlm_edge.runtimes.onnxruntime import OnnxRuntime


def run(operator: str, *operands: torch.Tensor | None, **attributes: object) -> torch.Tensor:
    names = [f"x{index}" if operand is not None else "" for index, operand in enumerate(operands)]
    node = helper.make_node(operator, names, ["y"], "node")
    return compute(node, attributes, list(operands))[0]


def test_float32_results_agree_with_onnxruntime(exported: dict[str, Exported]) -> None:
    path = exported["fp32"].folder / "model.onnx"
    simulation, runtime = Fp16Simulation(path), OnnxRuntime(path, threads=1)
    assert simulation.size == 64
    for seed in (100, 103):
        image = load(tiny_image(seed, defect=True), 64)
        (anomaly_map, score), (expected, expected_score) = simulation.run(image), runtime.run(image)
        assert np.abs(anomaly_map - expected).max() < 1e-4
        assert abs(score - expected_score) < 1e-4


def test_float16_sum_loses_small_terms() -> None:
    def total(x: torch.Tensor) -> float:
        return run("ReduceMean", x, torch.tensor([1])).item() * x.shape[1]

    assert total(torch.ones(1, 4096)) == 4096
    terms = torch.cat([torch.full((1, BLOCK), 128.0), torch.full((1, 64 * BLOCK), 0.03)], dim=1)
    assert total(terms) == pytest.approx(2048 + 0.03 * 1024, rel=1e-5)
    assert total(terms.half()) == pytest.approx(2048, rel=1e-3)  # each block of 0.48 is lost: 31 in all


def test_sums_of_squares_overflow_in_float16_and_not_in_float32() -> None:
    x = torch.full((1, 64), 300.0) * torch.tensor([1.0, -1.0]).repeat(32)
    scale = torch.ones(64)
    assert torch.allclose(run("LayerNormalization", x, scale).abs(), torch.ones(1, 64))
    assert run("LayerNormalization", x.half(), scale.half()).abs().max() == 0  # divided by infinity
    assert run("ReduceL2", x, torch.tensor([1])).item() == pytest.approx(2400)
    assert torch.isinf(run("ReduceL2", x.half(), torch.tensor([1])))


def test_products_are_summed_in_float16() -> None:
    a = torch.cat([torch.full((1, BLOCK), 128.0), torch.full((1, 64 * BLOCK), 0.03)], dim=1).half()
    b = torch.ones(65 * BLOCK, 1).half()
    expected = (a.double() @ b.double()).item()
    assert expected == pytest.approx(2048 + 0.03 * 1024, abs=0.1)
    assert run("MatMul", a, b).item() == 2048
    assert run("Gemm", a, b, torch.zeros(1).half()).item() == 2048
    assert run("Conv", a.reshape(1, -1, 1, 1), b.reshape(1, -1, 1, 1)).item() == 2048
    assert run("MatMul", a.float(), b.float()).item() == pytest.approx(expected, rel=1e-4)
    overflowing = torch.full((1, 32), 100.0).half()
    assert torch.isinf(run("MatMul", overflowing, torch.full((32, 1), 100.0).half())).all()


@pytest.mark.parametrize("groups", [1, 2, 32])
def test_float16_convolution_differs_by_rounding_only(groups: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 32, 9, 9), torch.randn(64, 32 // groups, 3, 3), torch.randn(64)
    attributes = {"pads": [1, 2, 1, 2], "strides": [2, 1], "dilations": [1, 2], "group": groups}
    expected = run("Conv", x, weight, bias, **attributes)
    found = run("Conv", x.half(), weight.half(), bias.half(), **attributes)
    assert found.dtype == torch.float16
    assert found.shape == expected.shape
    assert 0 < (found.float() - expected).abs().max() < 0.3


def test_softmax_and_elementwise_results_are_rounded() -> None:
    x = torch.tensor([[0.1, 2.3, -1.7]]).half()
    found = run("Softmax", x, axis=-1)
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), x.float().softmax(-1), atol=2e-3)
    assert run("Add", torch.tensor([2048.0]).half(), torch.tensor([1.0]).half()).item() == 2048


def test_int8_values_are_exact() -> None:
    x, scale = torch.tensor([0.26, -70.0, 0.25]).half(), torch.tensor(0.5).half()
    steps = run("QuantizeLinear", x, scale, torch.tensor(0, dtype=torch.int8))
    assert steps.tolist() == [1, -128, 0]  # halves round to even
    assert run("DequantizeLinear", steps, scale).tolist() == [0.5, -64.0, 0.0]


def test_operands_of_two_types_are_refused() -> None:
    with pytest.raises(JobError, match=r"Add node: operands of types .*float16.*float32.*expected one"):
        run("Add", torch.ones(1), torch.ones(1).half())


def graph_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 8, 8, 3])],
        [numpy_helper.from_array(np.float16(300), "gain")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_overflow_is_reported_with_its_place() -> None:
    proto = graph_of(
        helper.make_node("Cast", ["image"], ["x"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["x", "gain"], ["y"], "too_much"),
        helper.make_node("Sigmoid", ["y"], ["z"], "sigmoid"),
        helper.make_node("Cast", ["z"], ["anomaly_map"], "back", to=TensorProto.FLOAT),
    )
    simulation = Fp16Simulation(proto)
    assert simulation.outputs(np.full((8, 8, 3), 200, np.uint8))[0].max() == 1
    with pytest.raises(JobError, match=r"Mul too_much: its result y is not finite"):
        simulation.outputs(np.full((8, 8, 3), 255, np.uint8))


def test_operator_without_kernel_is_named() -> None:
    with pytest.raises(UsageError, match=r"the fp16 simulation has no Einsum; add a kernel"):
        Fp16Simulation(graph_of(helper.make_node("Einsum", ["image"], ["anomaly_map"], equation="abcd->abcd")))
