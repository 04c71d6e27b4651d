"""The Core ML package that a user gets: its contract, its metadata, the same bytes again, and what it computes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_network import SMALL
from small_run import SEEDS
from tiny import tiny_image

from stlm_edge.converters import coreml as converter
from stlm_edge.errors import UsageError
from stlm_edge.formats import coreml, metadata_entries
from stlm_edge.formats.coreml import MANIFEST, MODEL, WEIGHTS
from stlm_edge.images import load
from stlm_edge.model import STLM, checkpoint
from stlm_edge.runtimes import name_here, open_runtime
from stlm_edge.runtimes.mil_evaluator import MilEvaluator


@pytest.fixture(scope="module")
def opened(even_checkpoint: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(even_checkpoint)


@pytest.fixture
def packages(coreml_packages: Path) -> Path:
    return coreml_packages


def contents(package: Path) -> dict[str, bytes]:
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*") if path.is_file()}


def spec_of(package: Path) -> "converter.ct.proto.Model_pb2.Model":
    model = converter.ct.proto.Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    return model


def test_package_has_documented_inputs_and_outputs(packages: Path, opened: checkpoint.Checkpoint) -> None:
    for precision in ("fp32", "fp16", "int8"):
        model = spec_of(packages / f"{precision}.mlpackage")
        (image,) = model.description.input
        assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 64, 64)
        assert image.type.imageType.colorSpace == image.type.imageType.RGB
        outputs = {value.name: value.type.multiArrayType for value in model.description.output}
        assert {name: list(array.shape) for name, array in outputs.items()} == {
            "anomaly_map": [1, 1, 64, 64],
            "score": [1],
        }
        assert {array.dataType for array in outputs.values()} == {outputs["score"].FLOAT32}
        assert model.specificationVersion == 8, "iOS 17"
        assert model.WhichOneof("Type") == "mlProgram"
        assert dict(model.description.metadata.userDefined) == metadata_entries(opened.decision_threshold, 64)


def test_package_holds_three_files_and_no_trace_of_the_machine(packages: Path) -> None:
    files = contents(packages / "fp16.mlpackage")
    assert set(files) == {MANIFEST, MODEL, WEIGHTS}
    for trace in (b'File "', b".py", str(Path(torch.__file__).parent).encode(), str(Path.home()).encode() + b"/"):
        assert trace not in files[MODEL] + files[MANIFEST]


def test_fewer_bits_take_less_space(packages: Path) -> None:
    fp32, fp16, int8 = ((packages / f"{p}.mlpackage" / WEIGHTS).stat().st_size for p in ("fp32", "fp16", "int8"))
    assert 0.48 < fp16 / fp32 < 0.55
    assert 0.48 < int8 / fp16 < 0.6


def test_float32_program_computes_the_model(packages: Path, opened: checkpoint.Checkpoint) -> None:
    assert differences(packages / "fp32.mlpackage", opened.model)[0] < 1e-4


def test_fp16_and_int8_maps_stay_close(packages: Path, opened: checkpoint.Checkpoint) -> None:
    assert differences(packages / "fp16.mlpackage", opened.model)[1] > 0.999
    assert differences(packages / "int8.mlpackage", opened.model)[1] > 0.99


def differences(package: Path, model: STLM) -> tuple[float, float]:
    """The largest difference of any map value, and the mean cosine of the maps."""
    runtime = open_runtime("coreml", package)
    assert runtime.name == name_here("coreml")
    largest, cosines = 0.0, []
    for seed in list(SEEDS)[:4]:
        for defect in (False, True):
            image = load(tiny_image(seed, defect), SMALL.size)
            found, score = runtime.run(image)
            with torch.inference_mode():
                answer = model(torch.tensor(image)[None])
            expected = answer.anomaly_map[0, 0].numpy()
            largest = max(largest, float(np.abs(found - expected).max()), abs(score - answer.score.item()))
            cosines.append((found * expected).sum() / np.sqrt((found**2).sum() * (expected**2).sum()))
    return largest, float(np.mean(cosines))


def test_activations_are_fp16_until_the_logits(packages: Path) -> None:
    steps = MilEvaluator(packages / "fp16.mlpackage").steps
    kinds = {(step.kind, kind) for step in steps for _, kind in step.results}
    assert {("conv", "fp16"), ("layer_norm", "fp16"), ("sigmoid", "fp32"), ("upsample_bilinear", "fp32")} <= kinds
    assert [kind for step in steps if step.kind == "conv" for _, kind in step.results][-1] == "fp32", "the logits"
    first = next(number for number, step in enumerate(steps) if step.kind == "sigmoid")
    assert {kind for step in steps[first:] for _, kind in step.results} == {"fp32", "int"}
    assert dict(steps[-1].results) == {"score": "fp32"}


@pytest.mark.slow
def test_repeated_export_gives_the_same_bytes(
    packages: Path, opened: checkpoint.Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = STLM(replace(SMALL, size=32)).eval()
    converter.to_coreml(other, tmp_path / "other.mlpackage", opened.decision_threshold)
    converter.to_coreml(opened.model, tmp_path / "again.mlpackage", opened.decision_threshold)
    assert contents(tmp_path / "again.mlpackage") == contents(packages / "fp16.mlpackage")
    assert capfd.readouterr() == ("", ""), "the converter printed something"
    assert {path.name for path in tmp_path.iterdir()} == {"other.mlpackage", "again.mlpackage"}


@pytest.mark.slow
def test_operations_in_float32_run_too(opened: checkpoint.Checkpoint, tmp_path: Path) -> None:
    converter.to_coreml(
        opened.model, tmp_path / "in_float32.mlpackage", opened.decision_threshold, "fp16", converter.NORMS
    )
    steps = MilEvaluator(tmp_path / "in_float32.mlpackage").steps
    assert {kind for step in steps if step.kind in converter.NORMS for _, kind in step.results} == {"fp32"}
    assert differences(tmp_path / "in_float32.mlpackage", opened.model)[1] > 0.999


# What the evaluator refuses


@pytest.fixture
def copied(packages: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packages / "fp16.mlpackage", tmp_path / "model.mlpackage"))


def test_unknown_operation_is_named(copied: Path) -> None:
    model = spec_of(copied)
    (program,) = model.mlProgram.functions["main"].block_specializations.values()
    (operation,) = (operation for operation in program.operations if operation.type == "sigmoid")
    operation.type = "softsign"
    (copied / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="MIL operation softsign"):
        MilEvaluator(copied)


def test_bgr_image_is_refused(copied: Path) -> None:
    model = spec_of(copied)
    image = model.description.input[0].type.imageType
    image.colorSpace = image.BGR
    (copied / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"found.*image.*expected.*image"):
        MilEvaluator(copied)


def test_damaged_package_is_refused(copied: Path) -> None:
    (copied / MODEL).write_bytes((copied / MODEL).read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"cannot read its program .*; export again"):
        MilEvaluator(copied)


def test_metadata_is_read_as_coremltools_reads_it(copied: Path) -> None:
    entries = dict(spec_of(copied).description.metadata.userDefined)
    assert entries == coreml.read_metadata(copied)
    assert float(entries["stlm_edge.threshold"]) > 0
