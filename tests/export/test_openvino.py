"""stlm-export --target cpu --via openvino: the same promises and the same gate as for ONNX."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from damage import ConvertBy, Damage, change_weight, missing_normalisation, rewrite, transposed_map
from promises import WRONG_THRESHOLD, is_refused, predicts_and_is_benched, says_what_the_trained_model_says

import stlm_edge
from stlm_edge.converters import openvino as converter
from stlm_edge.export import targets
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.formats.openvino import read_metadata

PRECISIONS = ("int8", "fp16", "fp32")


def sizes_of(exported: dict[str, Exported]) -> dict[str, int]:
    return {name: (done.folder / "model.openvino" / "model.bin").stat().st_size for name, done in exported.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundle_says_what_the_trained_model_says(
    exported_via_openvino: dict[str, Exported], small_checkpoint: Path, precision: str
) -> None:
    done = exported_via_openvino[precision]
    limit = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.2}[precision]
    assert not done.losses
    assert done.parity.max_abs_diff < limit
    says_what_the_trained_model_says(stlm_edge.open(done.folder), small_checkpoint, limit)


def test_the_manifest_says_what_it_is(exported_via_openvino: dict[str, Exported]) -> None:
    assert targets.find("cpu", via="openvino")[0].precisions == PRECISIONS
    for precision, done in exported_via_openvino.items():
        manifest = stlm_edge.open(done.folder).manifest
        assert (manifest.target, manifest.runtime, manifest.precision) == ("cpu", "openvino", precision)
        assert manifest.artifact == "model.openvino"
        assert [file.path for file in manifest.artifact_files] == [
            "model.openvino/model.bin",
            "model.openvino/model.xml",
        ]
        assert set(manifest.tool_versions) == {
            *("stlm-edge", "torch", "onnx", "onnxscript", "onnxsim", "openvino", "nncf")
        }
        assert float(read_metadata(done.folder / "model.openvino")["stlm_edge.threshold"]) == (
            manifest.decision_threshold.value
        )
    sizes = sizes_of(exported_via_openvino)
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_converting_again_gives_the_same_bytes(
    precision: str, exported: dict[str, Exported], exported_via_openvino: dict[str, Exported], tmp_path: Path
) -> None:
    """Whatever was converted in this process before."""
    done, source = exported_via_openvino[precision], exported["fp32"].folder / "model.onnx"
    about = done.manifest.decision_threshold, 64
    if precision == "int8":
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2)]
        for name in ("once", "twice"):
            converter.to_int8(source, tmp_path / name, *about, images)
            converter.to_openvino(source, tmp_path / "between", *about)
        first = tmp_path / "once"
    else:
        first = done.folder / "model.openvino"
        converter.to_openvino(source, tmp_path / "twice", *about, half=precision == "fp16")
    for name in ("model.bin", "model.xml"):
        assert (first / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "twice").iterdir()) == ["model.bin", "model.xml"]
    assert str(tmp_path) not in (tmp_path / "twice" / "model.xml").read_text()


def test_linear_layers_are_int8_and_convolutions_are_not(exported_via_openvino: dict[str, Exported]) -> None:
    """Their weights may be, but what passes through them is computed in float."""
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
    assert any("attention/qkv" in name for name in quantized["MatMul"])
    assert quantized["Convolution"] == quantized["GroupConvolution"] == set()


def test_its_weights_leave_a_bit_for_processors_without_vnni(exported_via_openvino: dict[str, Exported]) -> None:
    """Pairs of u8×s8 products, which those add in 16 bits, saturate beyond 64 in the weights."""
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


# The gate


def swapped_channels(proto: onnx.ModelProto) -> None:
    """In the weights: OpenVINO would name the input after what turns its channels round."""
    for name in ("pixel_mean", "plain.patch_embed.seq.0.c.weight", "denoising.patch_embed.seq.0.c.weight"):
        change_weight(proto, name, lambda array: array[:, ::-1].copy())


def threshold_off_by_five_percent(artifact: Path) -> None:
    threshold = read_metadata(artifact)["stlm_edge.threshold"]
    graph = (artifact / "model.xml").read_text("utf-8")
    assert graph.count(f'<threshold value="{threshold}"') == 1
    (artifact / "model.xml").write_text(graph.replace(threshold, repr(1.05 * float(threshold))), "utf-8")


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (swapped_channels, "fp32", "of 24 verdicts fail|fp32 map differs by"),
        (missing_normalisation, "fp16", "before fp16, fp32 map differs by"),
        (transposed_map, "fp32", "fp32 map differs by .*, at most 0.0001 is allowed"),
        (transposed_map, "fp16", "before fp16, fp32 map differs by .*, at most 0.0001 is allowed"),
    ],
)
def test_a_damaged_converter_does_not_pass(
    damage: Damage,
    precision: str,
    reason: str,
    convert_by: ConvertBy,
    small_checkpoint: Path,
    tmp_path: Path,
) -> None:
    convert_by(damage)
    is_refused("cpu", reason, tmp_path, via="openvino", checkpoint=small_checkpoint, precision=precision)


def test_a_wrong_threshold_does_not_pass(
    convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = converter._save

    def off(model: object, folder: Path, *arguments: object) -> None:
        save(model, folder, *arguments)
        threshold_off_by_five_percent(folder)

    convert_by(None)
    monkeypatch.setattr(converter, "_save", off)
    is_refused("cpu", WRONG_THRESHOLD, tmp_path, via="openvino", checkpoint=small_checkpoint, precision="fp32")


def test_where_int8_fails_the_gate_convolutions_weights_stay_in_float_first(
    convert_by: ConvertBy,
    exported_via_openvino: dict[str, Exported],
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_by(None)
    tried = []

    def to_int8(
        source: Path, folder: Path, decision_threshold: object, size: int, images: object, layers: object
    ) -> None:
        tried.append(layers)
        if len(tried) == 1:
            source = Path(shutil.copyfile(source, source.with_name("damaged.onnx")))
            rewrite(source, swapped_channels)
            converter.to_openvino(source, folder, decision_threshold, size)
        else:
            shutil.rmtree(folder)
            shutil.copytree(exported_via_openvino["int8"].folder / "model.openvino", folder)

    monkeypatch.setattr(converter, "to_int8", to_int8)
    done = export("cpu", via="openvino", checkpoint=small_checkpoint, precision="int8", out=tmp_path / "bundle")
    nothing_kept, convolutions = tried
    assert nothing_kept == ()
    assert {"plain.neck.", "denoising.neck.", "fa.res.0."} < set(convolutions)
    assert not any(name.startswith(convolutions) for name in ("plain.layers.1.blocks.0.mlp.fc1", "mask_decoder."))
    assert done.losses == []
    assert [one.kept_in_float for one in done.candidates] == [(), convolutions]


# On the device


def test_it_predicts_and_is_benched(
    exported_via_openvino: dict[str, Exported], tiny_images: Path, tmp_path: Path
) -> None:
    image = tiny_images / "spot" / "305.png"
    assert "openvino" in predicts_and_is_benched(exported_via_openvino["int8"], "openvino", image, tmp_path / "bench")


def test_a_signal_after_two_models_went_does_not_end_the_process(
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


def test_opening_it_imports_neither_training_nor_telemetry(exported_via_openvino: dict[str, Exported]) -> None:
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


def test_without_the_package_one_line_names_it(exported_via_openvino: dict[str, Exported]) -> None:
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
