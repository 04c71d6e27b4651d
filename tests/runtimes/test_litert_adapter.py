"""The LiteRT adapter on real graphs, good and bad."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tflite import FLOAT, schema, tiny_model, write_tflite

from stlm_edge.errors import JobError, UsageError
from stlm_edge.runtimes import open_runtime
from stlm_edge.runtimes.litert import PACKAGES, LiteRT
from stlm_edge.verdict import score_of_map


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tflite(tmp_path / "model.tflite", tiny_model(64))
    return tmp_path / "model.tflite"


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_map_is_the_graph_s_and_score_is_computed_from_it(path: Path, image: np.ndarray, threads: int | None) -> None:
    runtime = open_runtime("litert", path, threads)
    assert (runtime.name, runtime.size) == ("litert", 64)
    anomaly_map, score = runtime.run(image)
    assert (anomaly_map.shape, anomaly_map.dtype) == ((64, 64), np.float32)
    assert np.abs(anomaly_map - image.mean(axis=2) / 255).max() < 1e-6
    assert score == score_of_map(anomaly_map)


def test_outputs_are_not_overwritten_by_the_next_run(path: Path, image: np.ndarray) -> None:
    runtime = LiteRT(path)
    anomaly_map, _ = runtime.run(image)
    kept = anomaly_map.copy()
    runtime.run(255 - image)
    assert (anomaly_map == kept).all()


def test_infinite_map_is_a_job_error(path: Path, image: np.ndarray) -> None:
    write_tflite(path, tiny_model(64, divide_by=1e-45))
    with pytest.raises(JobError, match="not finite"):
        LiteRT(path).run(image)


@pytest.mark.parametrize("wrong", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_image_of_another_shape_or_type_is_a_value_error(path: Path, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8 64×64×3"):
        LiteRT(path).run(wrong)


def more_inputs(model: Any) -> None:
    model.subgraphs[0].inputs.append(2)


def no_input(model: Any) -> None:
    model.subgraphs[0].inputs = []


def no_output(model: Any) -> None:
    model.subgraphs[0].outputs = []


def another_output(model: Any) -> None:
    model.subgraphs[0].outputs = [4]


def another_type(model: Any) -> None:
    for index in (0, 2, 4, 6):
        assert model.subgraphs[0].tensors[index].type == FLOAT
        model.subgraphs[0].tensors[index].type = schema.TensorType.INT32


def name_that_is_no_text(model: Any) -> None:
    model.subgraphs[0].tensors[0].name = b"\xff"


def no_such_operator(model: Any) -> None:
    model.operatorCodes[1].builtinCode = schema.BuiltinOperator.STABLEHLO_SORT


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (more_inputs, "unexpected inputs or outputs: "),
        (no_input, "unexpected inputs or outputs: "),
        (no_output, "unexpected inputs or outputs: "),
        (another_output, r"unexpected inputs or outputs: .*\[1, 64, 64, 1\]; expected input float32 \[1, S, S, 3\]"),
        (another_type, "unexpected inputs or outputs: found input int32|cannot load it"),
        (name_that_is_no_text, "cannot load it"),
        (no_such_operator, "cannot load it"),
    ],
)
def test_other_graph_is_refused_in_one_line(path: Path, change: Callable[[Any], None], problem: str) -> None:
    model = tiny_model(64)
    change(model)
    write_tflite(path, model)
    with pytest.raises(UsageError, match=problem) as refused:
        LiteRT(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_damaged_file_is_refused_in_one_line(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not an intact TFLite file|cannot be read") as refused:
        LiteRT(path)
    assert "\n" not in str(refused.value)


def loaded_by(path: Path, *missing: str, replacement: str = "") -> subprocess.CompletedProcess[str]:
    program = f"""
import sys
from ai_edge_litert import interpreter
for name in {missing!r}:
    sys.modules[name] = None
if {replacement!r}:
    sys.modules[{replacement!r}.partition(".")[0]] = sys.modules[{replacement!r}] = interpreter
from stlm_edge.errors import exit_with_one_line
from stlm_edge.runtimes.litert import LiteRT
with exit_with_one_line():
    print(LiteRT({str(path)!r}, 1).size)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_interpreter_s_log_is_hidden(path: Path) -> None:
    done = loaded_by(path)
    assert (done.stdout, done.stderr) == ("64\n", "")


def test_older_interpreter_package_is_used(path: Path) -> None:
    done = loaded_by(path, PACKAGES[0], replacement=PACKAGES[1])
    assert (done.stdout, done.stderr) == ("64\n", "")


def test_missing_interpreter_is_reported(path: Path) -> None:
    done = loaded_by(path, *PACKAGES)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no TFLite interpreter can be imported (")
    assert done.stderr.endswith("): pip install ai-edge-litert\n")
    assert done.stderr.count("\n") == 1
