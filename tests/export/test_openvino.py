"""Exports for cpu via openvino: what is particular to OpenVINO's IR."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from damage import ConvertBy, Damage, change_weight, missing_normalisation, rewrite, transposed_map
from promises import WRONG_MAP, assert_refused

from stlm_edge.converters import openvino as converter
from stlm_edge.export.pipeline import Exported, export


@pytest.mark.parametrize("precision", [pytest.param("int8", marks=pytest.mark.slow), "fp16", "fp32"])
def test_converting_again_gives_same_bytes(
    precision: str, exported: dict[str, Exported], exported_via_openvino: dict[str, Exported], tmp_path: Path
) -> None:
    """Whatever was converted in this process before them."""
    done, source = exported_via_openvino[precision], exported["fp32"].folder / "model.onnx"
    threshold = done.manifest.decision_threshold
    if precision == "int8":
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2)]
        for name in ("once", "twice"):
            converter.to_int8(source, tmp_path / name, threshold, images)
            converter.to_openvino(source, tmp_path / "between", threshold)
        first = tmp_path / "once"
    else:
        first = done.folder / "model.openvino"
        converter.to_openvino(source, tmp_path / "twice", threshold, half=precision == "fp16")
    for name in ("model.bin", "model.xml"):
        assert (first / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "twice").iterdir()) == ["model.bin", "model.xml"]
    assert str(tmp_path) not in (tmp_path / "twice" / "model.xml").read_text()


def test_linear_layers_are_computed_in_int8_and_convolutions_in_float(
    exported_via_openvino: dict[str, Exported],
) -> None:
    """Only the weights of convolutions are int8."""
    model = converter.openvino.Core().read_model(exported_via_openvino["int8"].folder / "model.openvino" / "model.xml")
    quantized = {"MatMul": set(), "Convolution": set(), "GroupConvolution": set()}
    for node in model.get_ops():
        if node.get_type_name() in quantized:
            origin = node.input_value(0).get_node()
            while origin.get_type_name() in ("Reshape", "Transpose"):
                origin = origin.input_value(0).get_node()
            if origin.get_type_name() == "FakeQuantize":
                quantized[node.get_type_name()].add(node.get_friendly_name())
    assert len(quantized["MatMul"]) > 20
    assert any("attn/qkv" in name for name in quantized["MatMul"])
    assert quantized["Convolution"] == quantized["GroupConvolution"] == set()


def test_int8_weights_leave_a_bit_for_processors_without_vnni(exported_via_openvino: dict[str, Exported]) -> None:
    """Those add pairs of u8×s8 products in 16 bits, which saturate if a weight is above 64."""
    model = converter.openvino.Core().read_model(exported_via_openvino["int8"].folder / "model.openvino" / "model.xml")
    largest = 0
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            origin = node.input_value(1).get_node()
            while origin.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose"):
                origin = origin.input_value(0).get_node()
            if origin.get_type_name() == "Constant" and origin.get_element_type().get_type_name() == "i8":
                largest = max(largest, int(np.abs(origin.data.astype(np.int16)).max()))
    assert 0 < largest <= 64


def swapped_channels(proto: onnx.ModelProto) -> None:
    """Swap red and blue in the weights: with an operator for that, OpenVINO would rename the input."""
    for name in ("pixel_mean", "plain.patch_embed.seq.0.c.weight", "denoising.patch_embed.seq.0.c.weight"):
        change_weight(proto, name, lambda array: array[:, ::-1].copy())


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (swapped_channels, "fp32", "of 24 verdicts fail|fp32 map differs by"),
        (missing_normalisation, "fp16", "before fp16, fp32 map differs by"),
        (transposed_map, "fp32", WRONG_MAP),
        (transposed_map, "fp16", f"before fp16, {WRONG_MAP}"),
    ],
)
def test_gate_refuses_wrong_conversion(
    damage: Damage,
    precision: str,
    reason: str,
    convert_by: ConvertBy,
    small_checkpoint: Path,
    tmp_path: Path,
) -> None:
    convert_by(damage)
    assert_refused("cpu", reason, tmp_path, via="openvino", checkpoint=small_checkpoint, precision=precision)


def test_failed_gate_keeps_weights_of_convolutions_in_float_first(
    convert_by: ConvertBy,
    exported_via_openvino: dict[str, Exported],
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_by(None)
    attempts = []

    def to_int8(source: Path, folder: Path, threshold: object, images: object, layers: object) -> None:
        attempts.append(layers)
        if len(attempts) == 1:
            source = Path(shutil.copyfile(source, source.with_name("damaged.onnx")))
            rewrite(source, swapped_channels)
            converter.to_openvino(source, folder, threshold)
        else:
            shutil.rmtree(folder)
            shutil.copytree(exported_via_openvino["int8"].folder / "model.openvino", folder)

    monkeypatch.setattr(converter, "to_int8", to_int8)
    done = export("cpu", via="openvino", checkpoint=small_checkpoint, precision="int8", out=tmp_path / "bundle")
    nothing_kept, convolutions = attempts
    assert nothing_kept == ()
    assert {"plain.neck.", "denoising.neck.", "fa.res.0."} < set(convolutions)
    assert not any(name.startswith(convolutions) for name in ("plain.layers.1.blocks.0.mlp.fc1", "mask_decoder."))
    assert done.losses == []
    assert [one.kept_in_float for one in done.candidates] == [(), convolutions]


def test_signal_after_two_models_were_deleted_does_not_end_process(
    exported_via_openvino: dict[str, Exported],
) -> None:
    code = """
import signal, subprocess, sys
from stlm_edge.runtimes.openvino import OpenVINO
signal.signal(signal.SIGCHLD, lambda *_: None)
first, second = OpenVINO(sys.argv[1]), OpenVINO(sys.argv[1])
del first
del second
subprocess.run(["true"])
print("alive")
"""
    command = [sys.executable, "-c", code, exported_via_openvino["fp32"].folder / "model.openvino"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_opening_imports_neither_training_nor_telemetry(exported_via_openvino: dict[str, Exported]) -> None:
    code = """
import sys, stlm_edge, numpy
bundle = stlm_edge.open(sys.argv[1])
bundle.predict(numpy.zeros((64, 64, 3), numpy.uint8))
print(*sorted({name.partition(".")[0] for name, module in sys.modules.items() if module}))
"""
    command = [sys.executable, "-c", code, exported_via_openvino["int8"].folder]
    imported = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "openvino" in imported
    assert not imported & {"openvino_telemetry", "nncf", "torch", "onnx", "onnxruntime", "typer", "rich"}


def test_missing_package_is_reported(exported_via_openvino: dict[str, Exported]) -> None:
    code = """
import sys, stlm_edge
from stlm_edge.errors import exit_with_one_line
sys.modules["openvino"] = None
with exit_with_one_line():
    stlm_edge.open(sys.argv[1]).runtime
"""
    command = [sys.executable, "-c", code, exported_via_openvino["int8"].folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: openvino cannot be imported \(.*\): pip install openvino\n", done.stderr)
