"""Exports for jetson and desktop-gpu: typed ONNX files, and no engine."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from damage import (
    Damage,
    convert_to,
    foreign_operator,
    infinite_map,
    missing_normalisation,
    rewrite,
    swapped_channels,
    transposed_map,
)
from promises import NOT_FINITE, WRONG_MAP, assert_refused

import stlm_edge
from stlm_edge.commands import build_engine, predict
from stlm_edge.commands import export as export_command
from stlm_edge.converters import tensorrt
from stlm_edge.converters.float32_operators import CANDIDATES, Float32Operator
from stlm_edge.converters.fp16_simulation import Fp16Simulation
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.threshold import DecisionThreshold

PRECISIONS = ("fp16", "int8", "fp32")
no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 5e-3), ("int8", 0.05)])
def test_fp16_simulation_is_near_trained_model(
    exported_for_jetson: dict[str, Exported], precision: str, limit: float
) -> None:
    folder = exported_for_jetson[precision].folder
    simulation = Fp16Simulation(folder / "model.onnx")
    for image in list(stlm_edge.open(folder).golden())[:3]:
        assert np.abs(simulation.run(image.tensor)[0] - image.map).max() < limit


def test_files_keep_rules_of_tensorrt(exported_for_jetson: dict[str, Exported]) -> None:
    for done in exported_for_jetson.values():
        assert tensorrt.check(onnx.load(done.folder / "model.onnx")) == []
    sizes = {name: (done.folder / "model.onnx").stat().st_size for name, done in exported_for_jetson.items()}
    assert sizes["int8"] < sizes["fp16"] < 0.55 * sizes["fp32"]


def test_notes_list_what_stays_in_float32_and_why(exported_for_jetson: dict[str, Exported]) -> None:
    for precision in ("fp16", "int8"):
        text = exported_for_jetson[precision].describe()
        assert "LayerNormalization: sum of squares in LayerNorm (largest value " in text
        assert "Softmax: sum of exponentials in softmax" in text
    assert "in float32" not in exported_for_jetson["fp32"].describe()


@pytest.mark.slow
def test_two_exports_give_same_bytes(
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


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (swapped_channels, "fp32", WRONG_MAP),
        (missing_normalisation, "fp32", WRONG_MAP),
        (transposed_map, "fp32", WRONG_MAP),
        (infinite_map, "fp32", NOT_FINITE),
        (foreign_operator, "fp16", "TensorRT could not run .*: Round round: no such operator"),
    ],
)
def test_gate_refuses_wrong_conversion(
    damage: Damage,
    precision: str,
    reason: str,
    even_checkpoint: Path,
    even_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_to(even_onnx, monkeypatch, damage)
    assert_refused("jetson", reason, tmp_path, checkpoint=even_checkpoint, precision=precision)


def test_failed_gate_keeps_more_convolutions_in_float32(
    even_checkpoint: Path, even_onnx: Path, told_apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[list[str]] = []

    def damaging_the_first(
        graph: onnx.ModelProto, path: Path, decision_threshold: DecisionThreshold, float32: Sequence[Float32Operator]
    ) -> None:
        attempts.append([operator.node for operator in float32 if operator.map_change is not None])
        to_fp16(graph, path, decision_threshold, float32)
        if len(attempts) == 1:
            rewrite(path, transposed_map)

    to_fp16 = tensorrt.to_fp16
    convert_to(even_onnx, monkeypatch)
    monkeypatch.setattr(tensorrt, "to_fp16", damaging_the_first)
    done = export("jetson", checkpoint=even_checkpoint, precision="fp16", data=told_apart, out=tmp_path / "bundle")
    assert [len(kept) for kept in attempts] == [0, CANDIDATES[0]]
    assert done.losses == []
    assert f"{CANDIDATES[0]} Conv: measured: the map needs it (each changes the map by up to" in done.describe()
    proto = onnx.load(tmp_path / "bundle" / "model.onnx")
    types = {weight.name: weight.data_type for weight in proto.graph.initializer}
    convolutions = {node.name: types[node.input[1]] for node in proto.graph.node if node.op_type == "Conv"}
    assert [name for name, kind in convolutions.items() if kind == onnx.TensorProto.FLOAT] == [
        name for name in convolutions if name in attempts[-1]
    ]


@pytest.mark.slow
def test_failed_gate_of_int8_keeps_convolutions_in_float32_then_linear_layers_in_float16(
    even_checkpoint: Path, even_onnx: Path, told_apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[tuple[int, int]] = []

    def damaging_the_first(
        graph: onnx.ModelProto,
        path: Path,
        decision_threshold: DecisionThreshold,
        float32: Sequence[Float32Operator],
        ranges: dict[str, float],
        in_float: Sequence[str],
    ) -> None:
        attempts.append((sum(operator.map_change is not None for operator in float32), len(in_float)))
        to_int8(graph, path, decision_threshold, float32, ranges, in_float)
        if len(attempts) < 3:
            rewrite(path, infinite_map)

    to_int8 = tensorrt.to_int8
    convert_to(even_onnx, monkeypatch)
    monkeypatch.setattr(tensorrt, "to_int8", damaging_the_first)
    done = export("jetson", checkpoint=even_checkpoint, precision="int8", data=told_apart, out=tmp_path / "bundle")
    assert attempts == [(0, 0), (CANDIDATES[0], 0), (CANDIDATES[0], 1)]
    assert [len(one.kept_in_float) for one in done.candidates] == [0, CANDIDATES[0], CANDIDATES[0] + 1]
    assert done.losses == []
    assert f"{CANDIDATES[0]} Conv: measured: the map needs it" in done.describe()


def error_of(command: Callable[[Sequence[str]], None], *arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with exit code 2; return the one line that it prints."""
    with pytest.raises(SystemExit) as end:
        command([*map(str, arguments)])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    return line


@no_tensorrt
def test_missing_tensorrt_is_reported(
    exported_for_jetson: dict[str, Exported], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported_for_jetson["fp16"].folder
    image = next(iter(stlm_edge.open(folder).golden())).image_path
    for command, arguments in ((predict.main, (image,)), (build_engine.main, ())):
        assert "tensorrt cannot be imported" in error_of(command, "--bundle", folder, *arguments, capsys=capsys)
    assert not folder.with_name(f"{folder.name}.engines").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch_tensorrt") is not None, reason="torch_tensorrt is installed here")
def test_missing_torch_tensorrt_is_reported(
    even_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "desktop-gpu", "--via", "torch-tensorrt", "--out", tmp_path / "bundle"]
    line = error_of(export_command.main, *options, "--checkpoint", even_checkpoint, capsys=capsys)
    assert "needs an NVIDIA GPU and: pip install torch-tensorrt" in line
    assert list(tmp_path.iterdir()) == []
