"""The onnxruntime adapter on real graphs, good and bad."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import TINY_SIZE, tiny_image, write_tiny_onnx

from stlm_edge.errors import JobError, UsageError
from stlm_edge.images import load
from stlm_edge.runtimes import open_runtime
from stlm_edge.runtimes.onnxruntime import OnnxRuntime
from stlm_edge.verdict import score_of_map


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


@pytest.fixture
def image() -> np.ndarray:
    return load(tiny_image(1, defect=True), TINY_SIZE)


def by_numpy(image: np.ndarray) -> np.ndarray:
    """Return the tiny graph's map inside its border, computed by numpy."""
    grey = image.mean(axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (15, 15))
    return 1 / (1 + np.exp(4 - np.abs(grey[7:-7, 7:-7] - windows.mean(axis=(2, 3))) / 4))


def test_map_and_score_are_the_graph_s(path: Path, image: np.ndarray) -> None:
    write_tiny_onnx(path, TINY_SIZE)
    runtime = open_runtime("onnxruntime", path, threads=1)
    assert (runtime.name, runtime.size) == ("onnxruntime", TINY_SIZE)
    anomaly_map, score = runtime.run(image)
    assert (anomaly_map.shape, anomaly_map.dtype) == ((TINY_SIZE, TINY_SIZE), np.float32)
    assert np.abs(anomaly_map[7:-7, 7:-7] - by_numpy(image)).max() < 1e-4
    assert score == pytest.approx(score_of_map(anomaly_map), abs=1e-6)


def test_score_is_computed_from_the_map_without_a_score_output(path: Path, image: np.ndarray) -> None:
    write_tiny_onnx(path, TINY_SIZE, with_score=False)
    anomaly_map, score = OnnxRuntime(path).run(image)
    assert score == score_of_map(anomaly_map)


def test_outputs_are_not_overwritten_by_the_next_run(path: Path, image: np.ndarray) -> None:
    write_tiny_onnx(path, TINY_SIZE)
    runtime = OnnxRuntime(path, threads=1)
    anomaly_map, _ = runtime.run(image)
    kept = anomaly_map.copy()
    runtime.run(255 - image)
    assert (anomaly_map == kept).all()


def test_nan_is_a_job_error(path: Path, image: np.ndarray) -> None:
    write_tiny_onnx(path, TINY_SIZE, extra="nan")
    with pytest.raises(JobError, match="not finite"):
        OnnxRuntime(path).run(image)


@pytest.mark.parametrize("wrong", [np.zeros((32, 32, 3), np.uint8), np.zeros((TINY_SIZE, TINY_SIZE, 3), np.float32)])
def test_image_of_another_shape_or_type_is_a_value_error(path: Path, wrong: np.ndarray) -> None:
    write_tiny_onnx(path, TINY_SIZE)
    with pytest.raises(ValueError, match="expected uint8 64×64×3"):
        OnnxRuntime(path).run(wrong)


@pytest.mark.parametrize("rename", ["image", "anomaly_map", "score"])
def test_graph_of_other_names_is_refused(path: Path, rename: str) -> None:
    write_tiny_onnx(path, TINY_SIZE)
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["other" if name == rename else name for name in node.input]
        node.output[:] = ["other" if name == rename else name for name in node.output]
    for value in [*model.graph.input, *model.graph.output]:
        value.name = "other" if value.name == rename else value.name
    onnx.save(model, path)
    with pytest.raises(UsageError, match=r"unexpected inputs or outputs: .*other.*; expected image tensor\(uint8\)"):
        OnnxRuntime(path)


def with_input_of_type(path: Path, kind: int) -> Path:
    write_tiny_onnx(path, TINY_SIZE)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = kind
    onnx.save(model, path)
    return path


def test_graph_of_another_input_type_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match=r"found image tensor\(int8\)"):
        OnnxRuntime(with_input_of_type(path, onnx.TensorProto.INT8))


def test_float_input_gets_the_same_values(path: Path) -> None:
    image = load(tiny_image(105, defect=True), TINY_SIZE)
    write_tiny_onnx(path, TINY_SIZE)
    expected, score = OnnxRuntime(path).run(image)
    found = OnnxRuntime(with_input_of_type(path, onnx.TensorProto.FLOAT)).run(image)
    assert np.array_equal(found[0], expected)
    assert found[1] == score


def test_graph_of_dynamic_size_is_refused(path: Path) -> None:
    write_tiny_onnx(path, TINY_SIZE)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    onnx.save(model, path)
    with pytest.raises(UsageError, match="unexpected inputs or outputs"):
        OnnxRuntime(path)


def keep_elsewhere(tensor: onnx.TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


@pytest.mark.parametrize("location", ["../secret", "beside", "/etc/hostname"])
@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph", "function"])
def test_weights_in_other_files_are_refused(tmp_path: Path, where: str, location: str) -> None:
    path = tmp_path / "inside" / "model.onnx"
    path.parent.mkdir()
    for file in (tmp_path / "secret", path.parent / "beside"):
        file.write_bytes(np.zeros(3, np.float32).tobytes())
    write_tiny_onnx(path, TINY_SIZE)
    model = onnx.load(path)
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")
    keep_elsewhere(tensor, location)
    constant = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "constant":
        model.graph.node.append(constant)
    elif where == "subgraph":
        branch = onnx.helper.make_graph([constant], "branch", [], [onnx.ValueInfoProto(name="w")])
        model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    else:
        opset = [onnx.helper.make_opsetid("", 17)]
        model.functions.append(onnx.helper.make_function("own", "f", [], ["w"], [constant], opset))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"model\.onnx: keeps weights in other files"):
        OnnxRuntime(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "0 graphs|cannot load"), (b"not a model", "not an intact ONNX file"), (None, "cannot be read")],
)
def test_damaged_file_is_refused_in_one_line(path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as refused:
        OnnxRuntime(path)
    assert "\n" not in str(refused.value)


def test_graph_that_onnxruntime_refuses_is_reported_in_one_line(path: Path) -> None:
    write_tiny_onnx(path, TINY_SIZE)
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(UsageError, match=r"onnxruntime \S+ cannot load it") as refused:
        OnnxRuntime(path)
    assert "\n" not in str(refused.value)


def test_unknown_runtime_and_wrong_thread_count_are_refused(path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown runtime 'ncnn'"):
        open_runtime("ncnn", path)
    with pytest.raises(UsageError, match="threads: found 0, expected at least 1"):
        open_runtime("onnxruntime", path, threads=0)
