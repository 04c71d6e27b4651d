"""The MIL evaluator's operations agree with torch where MIL's definition differs from torch's."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stlm_edge.runtimes.mil_evaluator import (
    OPERATIONS,
    Name,
    Step,
    compute,
    to_fp16,
    to_fp16_without_subnormals,
)


def run(kind: str, declared: str = "fp32", **arguments: Any) -> Any:
    """The results of one operation whose results are of the declared type."""
    count = {"split": 3, "topk": 2}.get(kind, 1)
    results = [(f"result{i}", declared) for i in range(count)]
    values = compute([Step(kind, arguments, results, [])], {})
    return [values[name] for name, _ in results] if count > 1 else values["result0"]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_convolution_pads_top_bottom_left_right() -> None:
    x, weight, bias = numbers(1, 4, 9, 8), numbers(6, 2, 3, 3), numbers(6)
    given = {"x": x, "weight": weight, "bias": bias, "strides": [2, 1], "dilations": [1, 2], "groups": 2}
    expected = F.conv2d(F.pad(x, (3, 0, 1, 2)), weight, bias, (2, 1), 0, (1, 2), 2)
    assert torch.equal(run("conv", pad_type="custom", pad=[1, 2, 3, 0], **given), expected)
    expected = F.conv2d(x, weight, bias, (2, 1), 0, (1, 2), 2)
    assert torch.equal(run("conv", pad_type="valid", pad=[1, 1, 1, 1], **given), expected)
    with pytest.raises(NotImplementedError, match="conv with pad_type same"):
        run("conv", pad_type="same", **given)


def test_padding_is_given_first_axis_first() -> None:
    found = run("pad", x=numbers(2, 3, 4), pad=[0, 0, 1, 0, 0, 2], mode="constant", constant_val=7.0)
    assert found.shape == (2, 4, 6)
    assert (found[:, 0] == 7).all()
    assert (found[:, :, 4:] == 7).all()
    assert torch.equal(found[:, 1:, :4], numbers(2, 3, 4))


def test_slice_is_open_where_its_mask_is_set() -> None:
    x = numbers(4, 5, 6)
    found = run("slice_by_index", x=x, begin=[1, 9, 2], end=[3, 4, 9], begin_mask=[False, True, False], end_mask=None)
    assert torch.equal(found, x[1:3, :4, 2:9])
    found = run("slice_by_index", x=x, begin=[0, 0, 0], end=[0, 0, 6], stride=[1, 1, 2], end_mask=[True, True, False])
    assert torch.equal(found, x[:, :, ::2])


def test_norms() -> None:
    x, gamma, beta = numbers(2, 7, 16), numbers(16), numbers(16)
    found = run("layer_norm", x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=1e-5)
    assert torch.allclose(found, F.layer_norm(x, (16,), gamma, beta, 1e-5), atol=1e-6)
    found = run("reduce_l2_norm", x=x, axes=[1], keep_dims=True)
    assert torch.allclose(found, torch.linalg.vector_norm(x, dim=1, keepdim=True))
    with pytest.raises(NotImplementedError, match="axes"):
        run("layer_norm", x=x, axes=[1], epsilon=1e-5)


def test_squares_that_overflow_fp16_are_reported() -> None:
    """Those of a layer norm too, whose result is finite again: what is divided by infinity is 0."""
    x = torch.tensor([[300.0, -300.0]])
    assert run("reduce_l2_norm", x=x, axes=[1], keep_dims=False).isfinite().all()
    assert run("layer_norm", x=x, axes=[-1], epsilon=1e-5).abs().min() > 0.99
    for kind, axes in {"reduce_l2_norm": [1], "layer_norm": [-1]}.items():
        with pytest.raises(FloatingPointError, match=f"{kind} result0 is not finite"):
            run(kind, "fp16", x=x, axes=axes, epsilon=1e-5)


def test_batch_norm() -> None:
    x, gamma, beta, mean, variance = numbers(2, 5, 3, 4), *(numbers(5) + shift for shift in (0, 1, 2, 9))
    given = {"x": x, "mean": mean, "variance": variance, "epsilon": 1e-5}
    found = run("batch_norm", gamma=gamma, beta=beta, **given)
    assert torch.allclose(found, F.batch_norm(x, mean, variance, gamma, beta, eps=1e-5), atol=1e-6)
    assert torch.allclose(run("batch_norm", **given), F.batch_norm(x, mean, variance, eps=1e-5), atol=1e-6)


def test_without_subnormals_an_epsilon_may_be_zero() -> None:
    x = torch.tensor([1.0, 2**-14, 2**-15, -(2**-24), 0.0])
    assert torch.equal(to_fp16(x), x)
    assert torch.equal(to_fp16_without_subnormals(x), torch.tensor([1.0, 2**-14, 0, 0, 0]))
    steps = [
        Step("maximum", {"x": Name("norm"), "y": 6e-8}, [("at_least", "fp16")], []),
        Step("real_div", {"x": Name("norm"), "y": Name("at_least")}, [("quotient", "fp16")], []),
    ]
    assert compute(steps, {"norm": torch.zeros(1)})["quotient"] == 0
    with pytest.raises(FloatingPointError, match="real_div quotient is not finite"):
        compute(steps, {"norm": torch.zeros(1)}, to_fp16_without_subnormals)


@pytest.mark.parametrize(
    ("mode", "atol"), [("EXACT", 0), ("TANH_APPROXIMATION", 1e-3), ("SIGMOID_APPROXIMATION", 0.03)]
)
def test_gelu_in_its_three_modes(mode: str, atol: float) -> None:
    assert (run("gelu", x=numbers(100), mode=mode) - F.gelu(numbers(100))).abs().max() <= atol


def test_upsampling_agrees_with_torch() -> None:
    x = numbers(1, 1, 4, 4)
    given = {"x": x, "scale_factor_height": 16.0, "scale_factor_width": 16.0, "align_corners": False}
    expected = F.interpolate(x, scale_factor=16.0, mode="bilinear", align_corners=False)
    assert torch.equal(run("upsample_bilinear", **given), expected)
    assert torch.equal(run("upsample_bilinear", half_pixel_centers=True, **given), expected)
    with pytest.raises(NotImplementedError, match="half_pixel_centers False"):
        run("upsample_bilinear", half_pixel_centers=False, **given)


def test_operations_with_several_results() -> None:
    x = numbers(2, 9)
    assert [part.shape[1] for part in run("split", x=x, split_sizes=[2, 3, 4], axis=1)] == [2, 3, 4]
    assert torch.equal(torch.cat(run("split", x=x, num_splits=3, axis=1), 1), x)
    values, indices = run("topk", x=x, k=3, axis=1, ascending=False, sort=True, return_indices=True)
    assert torch.equal(values, x.sort(descending=True).values[:, :3])
    assert torch.equal(x.gather(1, indices), values)
    assert torch.equal(run("topk", x=x, k=3, axis=1, ascending=True, sort=True)[0], x.sort().values[:, :3])


def test_simple_operations() -> None:
    x, y = numbers(2, 3, 4), numbers(2, 5, 4)
    assert torch.equal(run("matmul", x=x, y=y, transpose_x=False, transpose_y=True), x @ y.mT)
    assert torch.equal(run("matmul", x=x, y=y.mT, transpose_x=False, transpose_y=False), x @ y.mT)
    assert run("expand_dims", x=x, axes=[0, 2]).shape == (1, 2, 1, 3, 4)
    assert torch.equal(run("tile", x=x, reps=[1, 2, 1]), torch.cat([x, x], 1))
    assert torch.equal(run("maximum", x=x, y=0.5), x.clamp_min(0.5))
    assert torch.equal(run("concat", values=[x, y], axis=1, interleave=False), torch.cat([x, y], 1))
    with pytest.raises(NotImplementedError, match="interleave"):
        run("concat", values=[x, x], axis=1, interleave=True)


def test_fp16_values_are_rounded_unless_rounding_is_disabled() -> None:
    third = torch.tensor([1 / 3])
    steps = [Step("add", {"x": Name("a"), "y": Name("a")}, [("b", "fp16")], ["a"])]
    assert compute(steps, {"a": third})["b"] == (third * 2).half().float()
    assert compute(steps, {"a": third}, lambda x: x)["b"] == third * 2
    assert "a" not in compute(steps, {"a": third})


def test_every_operation_is_one_of_mil() -> None:
    from coremltools.converters.mil.mil import Builder

    assert [kind for kind in OPERATIONS if not hasattr(Builder, kind)] == []
