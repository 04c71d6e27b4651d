"""stlm-export --target jetson and desktop-gpu: typed files that say what the trained model says, and no engine."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from damage import (
    Damage,
    convert_to,
    damage_what_is_saved_by,
    foreign_operator,
    infinite_map,
    missing_normalisation,
    rewrite,
    swapped_channels,
    threshold_off_by_five_percent,
    transposed_map,
)
from promises import WRONG_THRESHOLD, is_refused

import stlm_edge
from stlm_edge.bundle import open_bundle
from stlm_edge.converters import tensorrt
from stlm_edge.converters.fp16_islands import KEPT, Island
from stlm_edge.converters.fp16_simulation import Fp16Simulation
from stlm_edge.converters.tensorrt_rules import check
from stlm_edge.export import targets
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.runtimes.torch import Torch
from stlm_edge.threshold import DecisionThreshold

PRECISIONS = ("fp16", "int8", "fp32")
no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundle_says_what_the_trained_model_says(
    exported_for_jetson: dict[str, Exported], even_checkpoint: Path, precision: str
) -> None:
    done, trained = exported_for_jetson[precision], Torch(even_checkpoint)
    bundle = open_bundle(done.folder, runtime="onnxruntime")
    simulation = Fp16Simulation(done.folder / "model.onnx")
    limit = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.05}[precision]
    assert not done.losses
    for image in bundle.golden():
        anomaly_map, score = trained.run(image.tensor.copy())
        verdict = bundle.predict(image.image_path)
        assert verdict.anomalous == (score > bundle.manifest.decision_threshold.value)
        assert np.abs(verdict.map - anomaly_map).max() < limit
        assert np.abs(simulation.run(image.tensor)[0] - anomaly_map).max() < limit


def test_each_file_keeps_tensorrt_s_rules(exported_for_jetson: dict[str, Exported]) -> None:
    for done in exported_for_jetson.values():
        assert check(onnx.load(done.folder / "model.onnx")) == []
    sizes = {name: (done.folder / "model.onnx").stat().st_size for name, done in exported_for_jetson.items()}
    assert sizes["int8"] < sizes["fp16"] < 0.55 * sizes["fp32"]


def test_the_manifest_says_what_checked_it_and_what_did_not(exported_for_jetson: dict[str, Exported]) -> None:
    assert targets.find("jetson")[0].precisions == targets.find("desktop-gpu")[0].precisions == PRECISIONS
    for precision, done in exported_for_jetson.items():
        manifest = stlm_edge.open(done.folder).manifest
        assert (manifest.target, manifest.runtime, manifest.precision) == ("jetson", "tensorrt", precision)
        assert (manifest.input.layout, manifest.input.dtype) == ("NHWC", "uint8")
        assert manifest.outputs.score is not None
        simulated = [] if precision == "fp32" else ["fp16 simulation"]
        assert manifest.provenance["checked_by"] == done.checked_by == [*simulated, "onnxruntime"]
        assert manifest.provenance["notes"] == done.notes
        assert "no engine was built here: TensorRT builds it on the device" in done.describe()
        assert "trtexec --onnx=model.onnx --stronglyTyped" in done.describe()


def test_the_report_lists_what_stays_in_float32_and_why(exported_for_jetson: dict[str, Exported]) -> None:
    for precision in ("fp16", "int8"):
        said = exported_for_jetson[precision].describe()
        assert "LayerNormalization: sum of squares in LayerNorm (largest value " in said
        assert "Softmax: sum of exponentials in softmax" in said
    assert "in float32" not in exported_for_jetson["fp32"].describe()


def test_two_exports_give_the_same_bytes(
    exported_for_jetson: dict[str, Exported],
    even_checkpoint: Path,
    even_onnx: Path,
    told_apart: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_to(even_onnx, monkeypatch)
    export("desktop-gpu", checkpoint=even_checkpoint, precision="int8", data=told_apart, out=tmp_path / "again")
    first = exported_for_jetson["int8"].folder / "model.onnx"
    assert (tmp_path / "again" / "model.onnx").read_bytes() == first.read_bytes()


# The gate


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (swapped_channels, "fp32", "fp32 map differs by .*, at most 0.0001 is allowed"),
        (missing_normalisation, "fp32", "fp32 map differs by .*, at most 0.0001 is allowed"),
        (transposed_map, "fp32", "fp32 map differs by .*, at most 0.0001 is allowed"),
        (infinite_map, "fp32", "the fp32 model fails on normal-00: .* not finite"),
        (foreign_operator, "fp16", "breaks TensorRT's rules: Round round: TensorRT has no such operator"),
    ],
)
def test_a_damaged_converter_does_not_pass(
    damage: Damage,
    precision: str,
    reason: str,
    even_checkpoint: Path,
    even_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_to(even_onnx, monkeypatch, damage)
    is_refused("jetson", reason, tmp_path, checkpoint=even_checkpoint, precision=precision)


def test_a_wrong_threshold_does_not_pass(
    even_checkpoint: Path, even_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_to(even_onnx, monkeypatch)
    damage_what_is_saved_by(tensorrt, monkeypatch, threshold_off_by_five_percent)
    is_refused("jetson", WRONG_THRESHOLD, tmp_path, checkpoint=even_checkpoint, precision="fp16")


def test_where_fp16_fails_the_gate_more_convolutions_stay_in_float32(
    even_checkpoint: Path, even_onnx: Path, told_apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []

    def damaging_the_first(
        graph: onnx.ModelProto, path: Path, decision_threshold: DecisionThreshold, islands: Sequence[Island]
    ) -> None:
        tried.append([island.node for island in islands if island.moves is not None])
        to_fp16(graph, path, decision_threshold, islands)
        if len(tried) == 1:
            rewrite(path, transposed_map)

    to_fp16 = tensorrt.to_fp16
    convert_to(even_onnx, monkeypatch)
    monkeypatch.setattr(tensorrt, "to_fp16", damaging_the_first)
    done = export("jetson", checkpoint=even_checkpoint, precision="fp16", data=told_apart, out=tmp_path / "bundle")
    assert [len(kept) for kept in tried] == [0, KEPT[0]]
    assert done.losses == []
    assert f"{KEPT[0]} Conv: measured: the map needs it (each moves the map by up to" in done.describe()
    proto = onnx.load(tmp_path / "bundle" / "model.onnx")
    types = {weight.name: weight.data_type for weight in proto.graph.initializer}
    convolutions = {node.name: types[node.input[1]] for node in proto.graph.node if node.op_type == "Conv"}
    assert [name for name, kind in convolutions.items() if kind == onnx.TensorProto.FLOAT] == [
        name for name in convolutions if name in tried[-1]
    ]


def test_where_int8_fails_the_gate_convolutions_stay_in_float32_before_linear_layers_in_float16(
    even_checkpoint: Path, even_onnx: Path, told_apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, int]] = []

    def damaging_the_first(
        graph: onnx.ModelProto,
        path: Path,
        decision_threshold: DecisionThreshold,
        islands: Sequence[Island],
        reach: dict[str, float],
        in_float: Sequence[str],
    ) -> None:
        tried.append((sum(island.moves is not None for island in islands), len(in_float)))
        to_int8(graph, path, decision_threshold, islands, reach, in_float)
        if len(tried) < 3:
            rewrite(path, infinite_map)

    to_int8 = tensorrt.to_int8
    convert_to(even_onnx, monkeypatch)
    monkeypatch.setattr(tensorrt, "to_int8", damaging_the_first)
    done = export("jetson", checkpoint=even_checkpoint, precision="int8", data=told_apart, out=tmp_path / "bundle")
    assert tried == [(0, 0), (KEPT[0], 0), (KEPT[0], 1)]
    assert [len(one.kept_in_float) for one in done.candidates] == [0, KEPT[0], KEPT[0] + 1]
    assert done.losses == []
    assert f"{KEPT[0]} Conv: measured: the map needs it" in done.describe()


# On a machine without a GPU


def run(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [str(Path(sys.executable).parent / command), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


@no_tensorrt
def test_without_tensorrt_one_line_says_what_is_needed(exported_for_jetson: dict[str, Exported]) -> None:
    folder = exported_for_jetson["fp16"].folder
    image = next(iter(stlm_edge.open(folder).golden())).image_path
    for command in (
        ("stlm-predict", "--bundle", folder, image),
        ("python", "-m", "stlm_edge.commands.build_engine", "--bundle", folder),
    ):
        done = run(*command)
        assert done.returncode == 2
        assert "tensorrt cannot be imported" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not folder.with_name(f"{folder.name}.engines").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch_tensorrt") is not None, reason="torch_tensorrt is installed here")
def test_without_torch_tensorrt_one_line_says_what_is_needed(even_checkpoint: Path, tmp_path: Path) -> None:
    way = ["--target", "desktop-gpu", "--via", "torch-tensorrt"]
    done = run("stlm-export", *way, "--checkpoint", even_checkpoint, "--out", tmp_path / "bundle")
    assert done.returncode == 2
    assert "needs an NVIDIA GPU and: pip install torch-tensorrt" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@no_tensorrt
def test_an_engine_that_cannot_be_built_is_refused_in_one_line(exported_for_jetson: dict[str, Exported]) -> None:
    done = run("stlm-build-engine", "--bundle", exported_for_jetson["fp16"].folder)
    assert done.returncode == 2
    assert "tensorrt cannot be imported" in done.stderr
    assert done.stderr.count("\n") == 1
