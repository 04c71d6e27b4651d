"""Exports for ios: what is particular to Core ML packages."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from promises import NOT_FINITE, WRONG_MAP

from stlm_edge.converters import coreml as converter
from stlm_edge.converters import quiet
from stlm_edge.converters.export_form import fold_batch_norms
from stlm_edge.errors import JobError
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.formats.coreml import MODEL, WEIGHTS
from stlm_edge.model import STLM
from stlm_edge.runtimes import name_here

HERE = name_here("coreml")
Damage = Callable[[Path, STLM], None]


def swapped_channels(package: Path, model: STLM) -> None:
    """Swap red and blue in the normalisation and in the first convolutions."""
    change_normalisation(package, lambda values: values[::-1])
    content = (package / WEIGHTS).read_bytes()
    for stream in (fold_batch_norms(model).plain, fold_batch_norms(model).denoising):
        filters = dict(stream.named_parameters())["patch_embed.seq.0.c.weight"].detach()
        assert content.count(little_endian(filters)) == 1
        content = content.replace(little_endian(filters), little_endian(filters.flip(1)))
    (package / WEIGHTS).write_bytes(content)


def little_endian(filters: torch.Tensor) -> bytes:
    return filters.numpy().astype("<f4").tobytes()


def missing_normalisation(package: Path, model: STLM) -> None:
    change_normalisation(package, lambda values: [float(max(values) < 1)] * 3)


def infinite_map(package: Path, model: STLM) -> None:
    change_normalisation(package, lambda values: [float("inf")] * 3)


def change_normalisation(package: Path, change: Callable[[list[float]], list[float]]) -> None:
    changed = []

    def in_program(block: Any) -> None:
        for operation in [operation for operation in block.operations if operation.type == "const"]:
            values = operation.attributes["val"].immediateValue.tensor.floats.values
            if len(values) == 3:
                values[:] = change(list(values))
                changed.append(operation)

    change_program(package, in_program)
    assert len(changed) == 2


def transposed_map(package: Path, model: STLM) -> None:
    """Transpose the map before it is resized to the image."""

    def in_program(block: Any) -> None:
        (grow,) = (operation for operation in block.operations if operation.type == "upsample_bilinear")
        example = next(operation for operation in block.operations if operation.type == "transpose")
        order = example.inputs["perm"].arguments[0].name
        (constant,) = (operation for operation in block.operations if operation.outputs[0].name == order)
        before = list(block.operations)
        at = before.index(grow)
        turn, sides = type(example)(), type(constant)()
        turn.CopyFrom(example)
        sides.CopyFrom(constant)
        sides.outputs[0].name = turn.inputs["perm"].arguments[0].name = "sides"
        sides.attributes["val"].immediateValue.tensor.ints.values[:] = [0, 1, 3, 2]
        turn.outputs[0].CopyFrom(
            next(operation for operation in before if operation.outputs[0].name == "sigmoid").outputs[0]
        )
        turn.inputs["x"].arguments[0].name, turn.outputs[0].name = "sigmoid", "turned"
        grow.inputs["x"].arguments[0].name = "turned"
        after = [*before[:at], sides, turn, *before[at:]]
        copies = [type(operation).FromString(operation.SerializeToString()) for operation in after]
        del block.operations[:]
        block.operations.extend(copies)

    change_program(package, in_program)


def change_program(package: Path, change: Callable[[Any], None]) -> None:
    model = converter.ct.proto.Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    change(block)
    (package / MODEL).write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (swapped_channels, f"before fp16, {WRONG_MAP}"),
        pytest.param(missing_normalisation, f"before fp16, {WRONG_MAP}", marks=pytest.mark.slow),
        pytest.param(transposed_map, f"before fp16, {WRONG_MAP}", marks=pytest.mark.slow),
        (infinite_map, NOT_FINITE),
    ],
)
def test_gate_refuses_wrong_conversion(
    damage: Damage,
    reason: str,
    coreml_packages: Path,
    even_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def to_coreml(model: STLM, path: Path, decision_threshold: object, precision: str, *_: object) -> None:
        shutil.copytree(coreml_packages / f"{precision}.mlpackage", path)
        if precision == "fp32":
            damage(path, model)

    monkeypatch.setattr(converter, "to_coreml", to_coreml)
    with pytest.raises(JobError, match=reason):
        export("ios", checkpoint=even_checkpoint, precision="fp16", out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [scratch]
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", [transposed_map, infinite_map])
def test_failed_gate_computes_more_in_float32(
    damage: Damage,
    coreml_packages: Path,
    even_checkpoint: Path,
    told_apart: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversions: list[tuple[str, ...]] = []

    def to_coreml(
        model: STLM,
        path: Path,
        decision_threshold: object,
        precision: str,
        in_float32: tuple[str, ...] = (),
        in_fp16: tuple[str, ...] = (),
    ) -> None:
        shutil.copytree(coreml_packages / "fp32.mlpackage", path)
        if precision == "fp16":
            conversions.append(in_float32)
            if len(conversions) == 1:
                damage(path, model)

    monkeypatch.setattr(converter, "to_coreml", to_coreml)
    done = export("ios", checkpoint=even_checkpoint, data=told_apart, out=tmp_path / "bundle")
    assert conversions == list(converter.IN_FLOAT32[:2])
    assert done.losses == []
    assert done.notes == [f"computed in float32: {', '.join(converter.NORMS)}"]


def test_loss_of_finiteness_can_not_be_allowed(
    coreml_packages: Path, even_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions: list[object] = []

    def to_coreml(
        model: STLM, path: Path, decision_threshold: object, precision: str, in_float32: object = (), *_: object
    ) -> None:
        shutil.copytree(coreml_packages / "fp32.mlpackage", path)
        if precision == "fp16":
            conversions.append(in_float32)
            infinite_map(path, model)

    monkeypatch.setattr(converter, "to_coreml", to_coreml)
    with pytest.raises(JobError, match=r"the fp16 model fails on normal-00: .* not finite"):
        export("ios", checkpoint=even_checkpoint, out=tmp_path / "bundle", allow_parity_loss=True)
    assert conversions == list(converter.IN_FLOAT32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_order_of_exports_does_not_change_bundles(even_checkpoint: Path, told_apart: Path, tmp_path: Path) -> None:
    def exported(turn: int, precision: str) -> Exported:
        out = tmp_path / f"{turn}-{precision}"
        return export("ios", checkpoint=even_checkpoint, precision=precision, data=told_apart, out=out)

    first = {precision: exported(1, precision) for precision in ("fp16", "int8")}
    again = {precision: exported(2, precision) for precision in ("int8", "fp16")}
    for precision, done in first.items():
        assert done.manifest.files == again[precision].manifest.files
        assert (done.parity, done.accuracy) == (again[precision].parity, again[precision].accuracy)


@pytest.mark.slow
def test_palette_is_small_and_gate_decides_on_it(
    coreml_packages: Path, even_checkpoint: Path, told_apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions: list[Path] = []

    def to_coreml(model: STLM, path: Path, decision_threshold: Any, precision: str, *_: object) -> None:
        if precision == "fp32":
            shutil.copytree(coreml_packages / "fp32.mlpackage", path)
        elif conversions:
            shutil.copytree(conversions[0], path)
        else:
            conversions.append(tmp_path / "palette.mlpackage")
            with quiet():
                package = converter.compressed(converter.converted(model), precision)
                converter.save(package, conversions[0], decision_threshold, model.config.size)
            shutil.copytree(conversions[0], path)

    monkeypatch.setattr(converter, "to_coreml", to_coreml)
    done = export(
        "ios",
        precision="palette6",
        checkpoint=even_checkpoint,
        data=told_apart,
        out=tmp_path / "bundle",
        allow_parity_loss=True,
    )
    assert done.manifest.parity_loss_allowed == bool(done.losses)
    assert len(done.candidates) == 1 or done.candidates[0].losses
    size = sum(file.bytes for file in done.manifest.artifact_files)
    assert size < 0.45 * sum(path.stat().st_size for path in (coreml_packages / "fp16.mlpackage").rglob("*.*"))
