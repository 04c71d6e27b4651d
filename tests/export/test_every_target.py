"""Every target from one checkpoint of the full network, and identical exports in any order. Minutes each, so slow."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from stlm_edge.bundle import open_bundle, parity
from stlm_edge.data.demo import write_demo
from stlm_edge.export import targets
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.export.targets import TARGETS, Target
from stlm_edge.runtimes.torch import Torch
from stlm_edge.training.job import Job
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

HERE = [row for row in TARGETS if row.via != "torch-tensorrt"]  # needs its GPU
FULL = [(row, row.precisions[0]) for row in HERE] + [(row, "int8") for row in HERE if row.name == "jetson"]
RUN_BY = {"tensorrt": "onnxruntime"}  # what runs an artifact on a machine without its own runtime


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full network at 224, after a quarter of `quick`."""
    folder = tmp_path_factory.mktemp("full")
    data = write_demo(folder / "data")
    return train(Job(data, RECIPES["quick"].longer(0.25), 224), folder / "run")


@pytest.mark.parametrize(
    ("row", "precision"), FULL, ids=["-".join(filter(None, [row.name, row.via, precision])) for row, precision in FULL]
)
def test_full_network_gives_verdicts_of_trained_model(
    row: Target, precision: str, checkpoint: Path, tmp_path: Path
) -> None:
    done = export(row.name, precision=precision, via=row.via, checkpoint=checkpoint, out=tmp_path / "bundle")
    assert done.accuracy is not None
    bundle = open_bundle(tmp_path / "bundle", RUN_BY.get(row.runtime))
    trained, decision_threshold, golden = Torch(checkpoint), done.manifest.decision_threshold, list(bundle.golden())
    for image in golden:
        anomaly_map, score = trained.run(image.tensor)
        sampled = anomaly_map[image.offset :: image.stride, image.offset :: image.stride]
        np.testing.assert_allclose(image.map, sampled, atol=1e-6)
        assert image.score == pytest.approx(score, abs=1e-6)
    answers = [bundle.runtime.run(image.tensor) for image in golden]
    found, rows = parity.compare(golden, answers, decision_threshold.value, decision_threshold.delta)
    assert parity.problems(found, precision) == []
    assert {image.score > decision_threshold.value for image in golden} == {False, True}
    assert found.cosine > 0.99
    for image, compared in zip(golden, rows, strict=True):
        verdict = bundle.predict(image.image_path)
        assert verdict.threshold == done.manifest.decision_threshold.value
        if not compared.flipped:
            assert verdict.anomalous == (image.score > decision_threshold.value)
    before_any_fallback = done.candidates[0].bytes / 1e6  # a model trained for minutes may need more in float
    assert before_any_fallback <= targets.LARGEST_MB[precision], done.describe()


def exported(rows: Iterable[Target], run: Path, data: Path | None, folder: Path) -> dict[Target, Exported]:
    return {
        row: export(row.name, via=row.via, checkpoint=run, data=data, out=folder / f"{row.name}-{row.via}")
        for row in rows
    }


def test_exports_in_any_order_are_identical(
    small_checkpoint: Path, even_checkpoint: Path, told_apart: Path, tmp_path: Path
) -> None:
    half = [row for row in HERE if row.precisions[0] == "fp16"]  # moves the map of the small network too far
    others = [row for row in HERE if row not in half]
    first = exported(others, small_checkpoint, None, tmp_path / "first")
    first |= exported(half, even_checkpoint, told_apart, tmp_path / "first")
    again = exported(reversed(half), even_checkpoint, told_apart, tmp_path / "again")
    again |= exported(reversed(others), small_checkpoint, None, tmp_path / "again")
    assert len(first) == len(again) == len(HERE)
    for row, done in first.items():
        for file in ("manifest.json", *(file.path for file in done.manifest.files)):
            assert (done.folder / file).read_bytes() == (again[row].folder / file).read_bytes(), f"{row}: {file}"
        assert (done.parity, done.accuracy) == (again[row].parity, again[row].accuracy), row
