"""stlm-export --target android: the same promises and the same gate as for cpu, and what a device does with it."""

import json
import re
import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from promises import (
    is_calibrated_on_site,
    is_refused,
    predicts_and_is_benched,
    run,
    says_what_the_trained_model_says,
)
from tiny_tflite import write_tflite

import stlm_edge
from stlm_edge.converters import litert as converter
from stlm_edge.export import targets
from stlm_edge.export.ladder import KEPT
from stlm_edge.export.pipeline import Exported, export

PRECISIONS = ("int8", "fp16", "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundle_says_what_the_trained_model_says(
    exported_for_android: dict[str, Exported], small_checkpoint: Path, precision: str
) -> None:
    done = exported_for_android[precision]
    limit = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.2}[precision]
    assert not done.losses
    assert done.parity.max_abs_diff < limit
    says_what_the_trained_model_says(stlm_edge.open(done.folder), small_checkpoint, limit)


def test_the_manifest_says_what_goes_in_and_out(exported_for_android: dict[str, Exported]) -> None:
    assert targets.find("android")[0].precisions == PRECISIONS
    for precision, done in exported_for_android.items():
        manifest = stlm_edge.open(done.folder).manifest
        assert (manifest.target, manifest.runtime, manifest.precision) == ("android", "litert", precision)
        assert (manifest.input.name, manifest.input.layout, manifest.input.dtype) == ("image", "NHWC", "float32")
        assert (manifest.outputs.anomaly_map.name, manifest.outputs.score) == ("anomaly_map", None)
        assert manifest.artifact == "model.tflite"
        expected = {"stlm-edge", "torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"}
        assert set(manifest.tool_versions) == expected
        assert not manifest.parity_loss_allowed
    sizes = {name: (done.folder / "model.tflite").stat().st_size for name, done in exported_for_android.items()}
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert sizes["fp16"] < 0.55 * sizes["fp32"]


# The gate


def of_normalisation(model: Any) -> list[tuple[Any, np.ndarray]]:
    """The buffers of three values each that the image passes first, the mean colour's among them, and the values."""
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
    """Let the first operators, which are those of the normalisation, see blue first."""
    (graph,) = model.subgraphs
    for buffer, values in of_normalisation(model):
        buffer.data = np.frombuffer(values[::-1].tobytes(), np.uint8)
    for tensor in graph.tensors:
        if tensor.shape is not None and list(tensor.shape) == [32, 3, 3, 3]:
            buffer = model.buffers[tensor.buffer]
            values = np.frombuffer(bytes(buffer.data), "<f4").reshape(32, 3, 3, 3)
            buffer.data = np.frombuffer(np.ascontiguousarray(values[..., ::-1]).tobytes(), np.uint8)


def transposed_map(model: Any) -> None:
    """Let the last operator's output go through a transposition of its sides."""
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


def threshold_off_by_five_percent(model: Any) -> None:
    (number,) = (entry.buffer for entry in model.metadata if entry.name == b"stlm_edge")
    entries = json.loads(bytes(model.buffers[number].data))
    entries["stlm_edge.threshold"] = repr(1.05 * float(entries["stlm_edge.threshold"]))
    model.buffers[number].data = np.frombuffer(json.dumps(entries).encode(), np.uint8)


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (rewritten(swapped_channels), "fp32", "fp32 map differs by .*, at most 0.0001 is allowed"),
        (rewritten(swapped_channels), "int8", "before int8, fp32 map differs by"),
        (rewritten(missing_normalisation), "fp32", "fp32 map differs by .*, at most 0.0001 is allowed"),
        (rewritten(transposed_map), "fp32", "fp32 map differs by .*, at most 0.0001 is allowed"),
        (rewritten(threshold_off_by_five_percent), "fp16", "wrote .* for stlm_edge.threshold .* checkpoint"),
    ],
)
def test_a_damaged_converter_does_not_pass(
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
    is_refused("android", reason, tmp_path, checkpoint=small_checkpoint, precision=precision)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_where_the_gate_fails_fewer_layers_are_made_smaller(
    precision: str,
    exported_for_android: dict[str, Exported],
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def to_tflite(model: object, path: Path, *arguments: object) -> None:
        shutil.copyfile(exported_for_android["fp32"].folder / "model.tflite", path)

    tried: list[Any] = []
    shrink = getattr(converter, f"to_{precision}")

    def damaging_the_first(source: Path, path: Path, *arguments: Any) -> None:
        tried.append(arguments[-1])
        shrink(source, path, *arguments)
        if len(tried) == 1:
            rewritten(transposed_map)(path)
            if precision == "int8":
                rewritten(swapped_channels)(path)

    monkeypatch.setattr(converter, "to_tflite", to_tflite)
    monkeypatch.setattr(converter, f"to_{precision}", damaging_the_first)
    done = export("android", checkpoint=small_checkpoint, precision=precision, out=tmp_path / "bundle")
    if precision == "fp16":
        assert tried == list(converter.FP16)
    else:
        assert len(tried) > 1
        assert [len(kept) for kept in tried] == [0, *KEPT][: len(tried)]
        assert {one.scope for one in done.candidates} == {"linear layers and the weights of convolutions but stage 0's"}
    assert [bool(one.losses) for one in done.candidates] == [True] * (len(tried) - 1) + [False]
    assert done.losses == []


# On the device


def test_calibration_on_site_changes_the_threshold(
    exported_for_android: dict[str, Exported], site_images: Path, tmp_path: Path
) -> None:
    is_calibrated_on_site(exported_for_android["int8"], site_images, tmp_path / "bundle")


def test_it_predicts_and_is_benched(
    exported_for_android: dict[str, Exported], tiny_images: Path, tmp_path: Path
) -> None:
    image = tiny_images / "spot" / "305.png"
    packages = predicts_and_is_benched(exported_for_android["int8"], "litert", image, tmp_path / "bench")
    assert "ai-edge-litert" in packages


@pytest.mark.slow
def test_the_fp32_file_runs_in_the_interpreter_before_litert(
    exported_for_android: dict[str, Exported], tmp_path: Path
) -> None:
    """tflite-runtime 2.14, the last of its name, which wants numpy 1: what older devices have."""
    venv.create(tmp_path / "old", with_pip=True)
    python = tmp_path / "old" / "bin" / "python"
    wanted = ["tflite-runtime==2.14.0", "numpy<2", "pillow"]
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]
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


def test_a_changed_threshold_in_the_artifact_is_seen(exported_for_android: dict[str, Exported], tmp_path: Path) -> None:
    shutil.copytree(exported_for_android["int8"].folder, tmp_path / "bundle")
    rewritten(threshold_off_by_five_percent)(tmp_path / "bundle" / "model.tflite")
    done = run("predict", "--bundle", tmp_path / "bundle", "part.png")
    assert done.returncode == 2
    assert re.search(r"model\.tflite: (its content has changed|\d+ bytes, the manifest lists)", done.stderr)
