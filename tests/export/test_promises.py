"""The promises of every export, for all targets; what is particular to a format is in that target's own file."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from promises import ROWS, WRONG_THRESHOLD, Row, assert_refused

import stlm_edge
from stlm_edge.bundle import open_bundle
from stlm_edge.commands import bench, calibrate, predict
from stlm_edge.export import ladder, targets
from stlm_edge.export.ladder import Artifact, ConversionRequest
from stlm_edge.export.pipeline import Exported, flops
from stlm_edge.formats import files_of, metadata_entries, read_metadata
from stlm_edge.model import checkpoint
from stlm_edge.runtimes import name_here
from stlm_edge.runtimes.torch import Torch

Exports = Callable[[Row, str], Exported]
EXPORTS = [pytest.param(row, precision, id=f"{row}-{precision}") for row in ROWS for precision in row.limits]
SMALLEST = [
    pytest.param(
        row,
        "fp16" if row.target == "ios" else "int8",
        id=str(row),
        marks=[pytest.mark.slow]
        if row.target == "ios"
        else [],  # an evaluator in place of Core ML takes seconds an image
    )
    for row in ROWS
    if row.target != "jetson"  # which needs TensorRT
]


@pytest.fixture
def exported_by(request: pytest.FixtureRequest) -> Exports:
    """Return a function that returns the bundle of a row in a precision."""
    return lambda row, precision: request.getfixturevalue(row.exported)[precision]


@pytest.mark.parametrize(("row", "precision"), EXPORTS)
def test_bundle_gives_verdicts_of_trained_model(
    row: Row, precision: str, exported_by: Exports, request: pytest.FixtureRequest
) -> None:
    done, trained = exported_by(row, precision), Torch(request.getfixturevalue(row.checkpoint))
    bundle = open_bundle(done.folder, name_here(row.run_by))
    threshold = bundle.manifest.decision_threshold.value
    golden = list(bundle.golden())
    assert done.losses == []
    assert done.parity.max_abs_diff < row.limits[precision]
    assert len(golden) == 8
    assert {image.anomalous for image in golden} == {image.score > threshold for image in golden} == {False, True}
    for image in golden:
        anomaly_map, score = trained.run(image.tensor.copy())
        verdict = bundle.predict(image.image_path)
        np.testing.assert_allclose(image.map, anomaly_map, atol=1e-6)
        if abs(score - threshold) > bundle.manifest.verdict_delta:  # nearer to it a verdict may flip
            assert verdict.anomalous == (score > threshold)
        assert np.abs(verdict.map - anomaly_map).max() < row.limits[precision]
        assert abs(verdict.score - score) < row.limits[precision]


@pytest.mark.parametrize(("row", "precision"), EXPORTS)
def test_manifest_describes_artifact_and_its_origin(
    row: Row, precision: str, exported_by: Exports, request: pytest.FixtureRequest
) -> None:
    done = exported_by(row, precision)
    manifest = stlm_edge.open(done.folder).manifest
    trained = checkpoint.load(request.getfixturevalue(row.checkpoint))
    assert (manifest.target, manifest.runtime, manifest.precision) == (row.target, row.runtime, precision)
    assert (manifest.artifact, {file.path.split("/")[0] for file in manifest.artifact_files}) == (
        row.artifact,
        {row.artifact},
    )
    dtype, has_score = row.input
    assert (manifest.input.name, manifest.input.layout, manifest.input.dtype) == ("image", "NHWC", dtype)
    assert (manifest.outputs.anomaly_map.name, manifest.outputs.score is not None) == ("anomaly_map", has_score)
    assert manifest.decision_threshold == manifest.exported_threshold == trained.decision_threshold
    assert read_metadata(done.folder / row.artifact).items() >= metadata_entries(trained.decision_threshold, 64).items()
    assert manifest.provenance.items() >= trained.provenance.items()
    assert len(manifest.provenance["checkpoint_sha256"]) == 64
    assert manifest.parameters == sum(parameter.numel() for parameter in trained.model.parameters())
    assert manifest.flops == flops(trained.model)
    assert set(manifest.tool_versions) == row.tools
    assert manifest.parity == done.parity
    assert (done.parity.images, done.golden_parity.images) == (24, 8)
    assert done.parity.max_abs_diff >= done.golden_parity.max_abs_diff
    simulated = precision in ("fp16", "int8") and (row.target, precision) != ("web", "int8")
    expected = [name_here(name) for name in row.checked_by if simulated or name != "fp16 simulation"]
    assert manifest.provenance["checked_by"] == done.checked_by == expected
    assert manifest.provenance["notes"] == done.notes
    assert not manifest.parity_loss_allowed


@pytest.mark.parametrize("row", [pytest.param(row, id=str(row)) for row in ROWS])
def test_artifacts_shrink_with_precision(row: Row, request: pytest.FixtureRequest) -> None:
    assert set(row.limits) <= set(targets.find(row.target, via=row.via)[0].precisions)
    exported = request.getfixturevalue(row.exported)
    size = {name: sum(file.bytes for file in done.manifest.artifact_files) for name, done in exported.items()}
    by_size = [precision for precision in ("int8", "fp16", "fp32") if precision in size]
    assert sorted(size, key=lambda precision: size[precision]) == by_size


@pytest.mark.parametrize(("row", "precision"), SMALLEST)
def test_bundle_predicts_and_is_benched(
    row: Row,
    precision: str,
    exported_by: Exports,
    tiny_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = exported_by(row, precision)
    predict.main(["--bundle", str(done.folder), str(tiny_images / "spot" / "305.png"), "--json"])
    output = capsys.readouterr()
    assert output.err == ""
    assert json.loads(output.out)["threshold"] == done.manifest.decision_threshold.value
    bench.main(["--bundle", str(done.folder), "--queries", "2", "--seconds", "0", "--out", str(tmp_path / "bench")])
    measured = json.loads((tmp_path / "bench" / "bench.json").read_text())
    (result,) = measured["rows"]
    runtime = name_here(row.run_by)
    assert (result["runtime"], result["passed"], result["parity"]["verdict_failures"]) == (runtime, True, 0)
    assert result["untimed"] if runtime == "mil-evaluator" else result["latency_ms"]["p50"] > 0
    package = {"litert": "ai-edge-litert", "coreml": "coremltools"}.get(row.run_by, row.run_by)
    assert package in measured["machine"]["packages"]


@pytest.mark.parametrize(("row", "precision"), SMALLEST)
def test_recalibration_on_site_changes_manifest_only(
    row: Row,
    precision: str,
    exported_by: Exports,
    tiny_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = exported_by(row, precision)
    before = stlm_edge.open(done.folder)
    (tmp_path / "site").mkdir()
    normal = sorted((tiny_images / "good").iterdir(), key=lambda path: before.predict(path).score)
    for path in normal[:10]:  # those that a network with random weights takes for the most normal
        shutil.copy(path, tmp_path / "site")
    shutil.copytree(done.folder, tmp_path / "bundle")
    calibrate.main(["--bundle", str(tmp_path / "bundle"), "--data", str(tmp_path / "site"), "--json"])
    after = stlm_edge.open(tmp_path / "bundle").manifest
    threshold = json.loads(capsys.readouterr().out)["decision_threshold"]["value"]
    assert after.decision_threshold.value == threshold != before.manifest.decision_threshold.value
    assert (
        replace(
            after,
            decision_threshold=before.manifest.decision_threshold,
            verdict_delta=before.manifest.verdict_delta,
        )
        == before.manifest
    )


@pytest.mark.parametrize(("row", "precision"), EXPORTS)
def test_changed_artifact_is_refused(
    row: Row,
    precision: str,
    exported_by: Exports,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(exported_by(row, precision).folder, tmp_path / "bundle")
    change_threshold(tmp_path / "bundle" / row.artifact)
    with pytest.raises(SystemExit) as end:
        predict.main(["--bundle", str(tmp_path / "bundle"), "part.png"])
    assert end.value.code == 2
    assert "its content has changed" in capsys.readouterr().err


@pytest.mark.parametrize(("row", "precision"), EXPORTS)
def test_wrong_threshold_in_metadata_fails_gate(
    row: Row,
    precision: str,
    exported_by: Exports,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = exported_by(row, precision).folder / row.artifact

    def convert(conversion: ConversionRequest) -> Iterator[Artifact]:
        (shutil.copytree if artifact.is_dir() else shutil.copyfile)(artifact, conversion.path)
        change_threshold(conversion.path)
        yield Artifact(precision, conversion.path, (row.run_by,))

    changed = replace(ladder.CONVERSIONS[row.via or row.runtime], convert=convert)
    monkeypatch.setitem(ladder.CONVERSIONS, row.via or row.runtime, changed)
    trained = request.getfixturevalue(row.checkpoint)
    assert_refused(row.target, WRONG_THRESHOLD, tmp_path, via=row.via, checkpoint=trained, precision=precision)


def change_threshold(artifact: Path) -> None:
    """Change the last digit of the decision threshold in the metadata; every file keeps its size."""
    before = read_metadata(artifact)["stlm_edge.threshold"].encode()
    after = before[:-1] + (b"1" if before.endswith(b"2") else b"2")
    holders = [path for path in files_of(artifact) if before in path.read_bytes()]
    assert holders
    for path in holders:
        path.write_bytes(path.read_bytes().replace(before, after))
    assert read_metadata(artifact)["stlm_edge.threshold"].encode() == after
