"""stlm-export --target ios: the same promises and the same gate as for cpu; Core ML itself runs it on macOS only."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from promises import is_calibrated_on_site, predicts_and_is_benched, run, says_what_the_trained_model_says

import stlm_edge
from stlm_edge.converters import coreml as converter
from stlm_edge.converters.onnx import quiet
from stlm_edge.converters.shaping import folded
from stlm_edge.errors import JobError
from stlm_edge.export import targets
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.formats.coreml import MODEL, WEIGHTS
from stlm_edge.model import STLM
from stlm_edge.runtimes import name_here

HERE = name_here("coreml")
Damage = Callable[[Path, STLM], None]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_says_what_the_trained_model_says(
    exported_for_ios: dict[str, Exported], even_checkpoint: Path, precision: str
) -> None:
    done = exported_for_ios[precision]
    limit = {"fp16": 5e-3, "int8": 0.1}[precision]
    assert not done.losses
    assert done.parity.max_abs_diff < limit
    says_what_the_trained_model_says(stlm_edge.open(done.folder), even_checkpoint, limit)


def test_the_manifest_says_what_goes_in_and_out_and_what_checked_it(exported_for_ios: dict[str, Exported]) -> None:
    assert targets.find("ios")[0].precisions == ("fp16", "int8", "palette6")
    for precision, done in exported_for_ios.items():
        manifest = stlm_edge.open(done.folder).manifest
        assert (manifest.target, manifest.runtime, manifest.precision) == ("ios", "coreml", precision)
        assert (manifest.input.name, manifest.input.layout, manifest.input.dtype) == ("image", "NHWC", "uint8")
        assert manifest.outputs.score is not None
        assert manifest.artifact == "model.mlpackage"
        assert {file.path.split("/", 1)[0] for file in manifest.artifact_files} == {"model.mlpackage"}
        assert len(manifest.artifact_files) == 3
        assert set(manifest.tool_versions) == {"stlm-edge", "torch", "coremltools"}
        assert manifest.provenance["checked_by"] == [HERE, "mil-evaluator, subnormals as 0"]
        assert not manifest.parity_loss_allowed
    sizes = {name: sum(file.bytes for file in done.manifest.artifact_files) for name, done in exported_for_ios.items()}
    assert sizes["int8"] < 0.65 * sizes["fp16"]


# The gate


def swapped_channels(package: Path, model: STLM) -> None:
    """Let the means, deviations and first convolutions stand for blue first."""
    change_normalisation(package, lambda values: values[::-1])
    content = (package / WEIGHTS).read_bytes()
    for stream in (folded(model).plain, folded(model).denoising):
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
    """Let the map go through a transposition of its sides before it is made as large as the image."""

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


def threshold_off_by_five_percent(package: Path, model: object = None) -> None:
    changed = converter.ct.proto.Model_pb2.Model()
    changed.ParseFromString((package / MODEL).read_bytes())
    entries = changed.description.metadata.userDefined
    entries["stlm_edge.threshold"] = repr(1.05 * float(entries["stlm_edge.threshold"]))
    (package / MODEL).write_bytes(changed.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (swapped_channels, "before fp16, fp32 map differs by .*, at most 0.0001 is allowed"),
        (missing_normalisation, "before fp16, fp32 map differs by .*, at most 0.0001 is allowed"),
        (transposed_map, "before fp16, fp32 map differs by .*, at most 0.0001 is allowed"),
        (infinite_map, "the fp32 model fails on normal-00: .* not finite"),
        (threshold_off_by_five_percent, "wrote .* for stlm_edge.threshold .* checkpoint"),
    ],
)
def test_a_damaged_converter_does_not_pass(
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


@pytest.mark.parametrize("damage", [transposed_map, infinite_map])
def test_where_the_gate_fails_more_is_computed_in_float32(
    damage: Damage,
    coreml_packages: Path,
    even_checkpoint: Path,
    told_apart: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[str, ...]] = []

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
            tried.append(in_float32)
            if len(tried) == 1:
                damage(path, model)

    monkeypatch.setattr(converter, "to_coreml", to_coreml)
    done = export("ios", checkpoint=even_checkpoint, data=told_apart, out=tmp_path / "bundle")
    assert tried == list(converter.IN_FLOAT32[:2])
    assert done.losses == []
    assert done.notes == [f"computed in float32: {', '.join(converter.NORMS)}"]


def test_what_is_never_finite_is_not_written(
    coreml_packages: Path, even_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def to_coreml(
        model: STLM, path: Path, decision_threshold: object, precision: str, in_float32: object = (), *_: object
    ) -> None:
        shutil.copytree(coreml_packages / "fp32.mlpackage", path)
        if precision == "fp16":
            tried.append(in_float32)
            infinite_map(path, model)

    monkeypatch.setattr(converter, "to_coreml", to_coreml)
    with pytest.raises(JobError, match=r"the fp16 model fails on normal-00: .* not finite"):
        export("ios", checkpoint=even_checkpoint, out=tmp_path / "bundle", allow_parity_loss=True)
    assert tried == list(converter.IN_FLOAT32)
    assert list(tmp_path.iterdir()) == []


# On the device


def test_calibration_on_site_changes_the_threshold(
    exported_for_ios: dict[str, Exported], site_images: Path, tmp_path: Path
) -> None:
    is_calibrated_on_site(exported_for_ios["fp16"], site_images, tmp_path / "bundle")


def test_it_predicts_and_is_benched_under_the_name_of_what_ran_it(
    exported_for_ios: dict[str, Exported], tiny_images: Path, tmp_path: Path
) -> None:
    image = tiny_images / "spot" / "305.png"
    assert "coremltools" in predicts_and_is_benched(exported_for_ios["fp16"], HERE, image, tmp_path / "bench", 2)


def test_a_changed_threshold_in_the_artifact_is_seen(exported_for_ios: dict[str, Exported], tmp_path: Path) -> None:
    shutil.copytree(exported_for_ios["fp16"].folder, tmp_path / "bundle")
    threshold_off_by_five_percent(tmp_path / "bundle" / "model.mlpackage")
    done = run("predict", "--bundle", tmp_path / "bundle", "part.png")
    assert done.returncode == 2
    assert re.search(r"model\.mlmodel: (its content has changed|\d+ bytes, the manifest lists)", done.stderr)


@pytest.mark.slow
def test_bundles_in_any_order_are_the_same(even_checkpoint: Path, told_apart: Path, tmp_path: Path) -> None:
    def exported(turn: int, precision: str) -> Exported:
        out = tmp_path / f"{turn}-{precision}"
        return export("ios", checkpoint=even_checkpoint, precision=precision, data=told_apart, out=out)

    first = {precision: exported(1, precision) for precision in ("fp16", "int8")}
    again = {precision: exported(2, precision) for precision in ("int8", "fp16")}
    for precision, done in first.items():
        assert done.manifest.files == again[precision].manifest.files
        assert (done.parity, done.accuracy) == (again[precision].parity, again[precision].accuracy)


@pytest.mark.slow
def test_a_palette_is_small_and_the_gate_decides_on_it(
    coreml_packages: Path, even_checkpoint: Path, told_apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []

    def to_coreml(model: STLM, path: Path, decision_threshold: Any, precision: str, *_: object) -> None:
        if precision == "fp32":
            shutil.copytree(coreml_packages / "fp32.mlpackage", path)
        elif tried:
            shutil.copytree(tried[0], path)
        else:
            tried.append(tmp_path / "palette.mlpackage")
            with quiet():
                package = converter.compressed(converter.converted(model), precision)
                converter.save(package, tried[0], decision_threshold, model.config.size)
            shutil.copytree(tried[0], path)

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
