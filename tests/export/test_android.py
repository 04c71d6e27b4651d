"""Exports for android: what is particular to TFLite."""

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from disk_full import leaving_nothing, no_free_space
from promises import WRONG_MAP, assert_refused
from tiny_tflite import write_tflite

import stlm_edge
from stlm_edge.converters import tflite as converter
from stlm_edge.errors import JobError
from stlm_edge.export.ladder import KEPT
from stlm_edge.export.pipeline import Exported, export

PRECISIONS = ("int8", "fp16", "fp32")


def of_normalisation(model: Any) -> list[tuple[Any, np.ndarray]]:
    """Return the buffers of three values each in the normalisation of the image, and their values."""
    (graph,) = model.subgraphs
    found = []
    for tensor in graph.tensors:
        buffer = model.buffers[tensor.buffer]
        if buffer.data is not None and len(buffer.data) == 12 and KINDS[tensor.type] == "FLOAT32":
            found.append((buffer, np.frombuffer(bytes(buffer.data), "<f4")))
    assert sum(bool(np.isclose(values.max(), 123.675)) for _, values in found) == 1
    return found


def missing_normalisation(model: Any) -> None:
    for buffer, values in of_normalisation(model):
        if np.isclose(values.max(), 123.675):
            buffer.data = np.zeros(12, np.uint8)


def swapped_channels(model: Any) -> None:
    """Swap red and blue in the normalisation and in the first convolutions."""
    (graph,) = model.subgraphs
    for buffer, values in of_normalisation(model):
        buffer.data = np.frombuffer(values[::-1].tobytes(), np.uint8)
    for tensor in graph.tensors:
        if tensor.shape is not None and list(tensor.shape) == [32, 3, 3, 3]:
            buffer = model.buffers[tensor.buffer]
            values = np.frombuffer(bytes(buffer.data), "<f4").reshape(32, 3, 3, 3)
            buffer.data = np.frombuffer(np.ascontiguousarray(values[..., ::-1]).tobytes(), np.uint8)


def transposed_map(model: Any) -> None:
    """Transpose the map after the last operator."""
    (graph,) = model.subgraphs
    order, upright = schema.TensorT(), schema.TensorT()
    model.buffers.append(schema.BufferT())
    model.buffers[-1].data = np.frombuffer(np.array([0, 1, 3, 2], "<i4").tobytes(), np.uint8)
    order.name, order.shape, order.type, order.buffer = "order", [4], schema.TensorType.INT32, len(model.buffers) - 1
    upright.name, upright.shape, upright.type = "upright", [1, 1, 64, 64], schema.TensorType.FLOAT32
    (output,) = graph.outputs
    graph.tensors += [order, upright]
    for operator in graph.operators:
        operator.outputs = [len(graph.tensors) - 1 if index == output else index for index in operator.outputs]
    code, last = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.TRANSPOSE
    code.version = 1
    model.operatorCodes.append(code)
    last.opcodeIndex = len(model.operatorCodes) - 1
    last.inputs, last.outputs = [len(graph.tensors) - 1, len(graph.tensors) - 2], [output]
    last.builtinOptionsType = schema.BuiltinOptions.TransposeOptions
    last.builtinOptions = schema.TransposeOptionsT()
    graph.operators.append(last)


KINDS = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}


def rewritten(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        change(model)
        write_tflite(path, model)

    return damage


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (rewritten(swapped_channels), "fp32", WRONG_MAP),
        (rewritten(swapped_channels), "int8", "before int8, fp32 map differs by"),
        (rewritten(missing_normalisation), "fp32", WRONG_MAP),
        (rewritten(transposed_map), "fp32", WRONG_MAP),
    ],
)
def test_gate_refuses_wrong_conversion(
    damage: Callable[[Path], None],
    precision: str,
    reason: str,
    exported_for_android: dict[str, Exported],
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def to_tflite(model: object, path: Path, *arguments: object) -> None:
        shutil.copyfile(exported_for_android["fp32"].folder / "model.tflite", path)
        damage(path)

    monkeypatch.setattr(converter, "to_tflite", to_tflite)
    assert_refused("android", reason, tmp_path, checkpoint=small_checkpoint, precision=precision)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_failed_gate_keeps_more_in_float(
    precision: str,
    exported_for_android: dict[str, Exported],
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def to_tflite(model: object, path: Path, *arguments: object) -> None:
        shutil.copyfile(exported_for_android["fp32"].folder / "model.tflite", path)

    attempts: list[Any] = []
    shrink = getattr(converter, f"to_{precision}")

    def damaging_the_first(source: Path, path: Path, *arguments: Any) -> None:
        attempts.append(arguments[-1])
        shrink(source, path, *arguments)
        if len(attempts) == 1:
            rewritten(transposed_map)(path)
            if precision == "int8":
                rewritten(swapped_channels)(path)

    monkeypatch.setattr(converter, "to_tflite", to_tflite)
    monkeypatch.setattr(converter, f"to_{precision}", damaging_the_first)
    done = export("android", checkpoint=small_checkpoint, precision=precision, out=tmp_path / "bundle")
    if precision == "fp16":
        assert attempts == list(converter.FP16)
    else:
        assert len(attempts) > 1
        assert [len(kept) for kept in attempts] == [0, *KEPT][: len(attempts)]
        assert {one.scope for one in done.candidates} == {"linear layers and the weights of convolutions but stage 0's"}
    assert [bool(one.losses) for one in done.candidates] == [True] * (len(attempts) - 1) + [False]
    assert done.losses == []


def test_full_disk_is_reported_in_one_line(
    exported_for_android: dict[str, Exported],
    small_checkpoint: Path,
    scratch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = exported_for_android["fp32"].folder / "model.tflite"
    monkeypatch.setattr(converter, "to_tflite", lambda model, path, *_: os.link(file, path))
    with leaving_nothing(tmp_path), pytest.raises(JobError, match=r"disk full.*TMPDIR"), no_free_space(1 << 18):
        export("android", checkpoint=small_checkpoint, precision="fp16", out=tmp_path / "bundle")


@pytest.mark.slow
def test_fp32_file_runs_in_interpreter_before_litert(exported_for_android: dict[str, Exported], tmp_path: Path) -> None:
    """tflite-runtime 2.14, the last release of that name, which needs numpy 1: older devices have it."""
    venv.create(tmp_path / "old", with_pip=True)
    python = tmp_path / "old" / "bin" / "python"
    packages = ["tflite-runtime==2.14.0", "numpy<2", "pillow"]
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.skip(f"tflite-runtime cannot be installed here: {done.stderr.strip().splitlines()[-1][:200]}")
    command = [python, "-m", "stlm_edge.bench", "--bundle", exported_for_android["fp32"].folder]
    done = subprocess.run(
        [*map(str, command), "--queries", "2", "--seconds", "0", "--out", str(tmp_path / "bench")],
        env={"PYTHONPATH": str(Path(stlm_edge.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bench = json.loads((tmp_path / "bench" / "bench.json").read_text())
    (row,) = bench["rows"]
    assert (row["runtime"], row["passed"], row["parity"]["verdict_failures"]) == ("litert", True, 0)
    assert bench["machine"]["packages"]["tflite-runtime"] == "2.14.0"
