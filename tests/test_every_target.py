"""Every target from one checkpoint: the full network, and the same bytes in whichever order. Minutes each, so slow."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

import stlm_edge
from stlm_edge.bundle import open_bundle
from stlm_edge.data.demo import write_demo
from stlm_edge.export import Exported, export
from stlm_edge.job import Job
from stlm_edge.recipes import RECIPES
from stlm_edge.targets import TARGETS, Target
from stlm_edge.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

HERE = [row for row in TARGETS if row.via != "torch-tensorrt"]  # which needs the GPU that it is for
LARGEST_MB = {"fp16": 39, "int8": 22}  # at S=224; ONNX by onnxruntime keeps its convolutions and biases in float32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full network at 224, after a few steps from the generic start."""
    folder = tmp_path_factory.mktemp("full")
    data = write_demo(folder / "data")
    return train(Job(data, RECIPES["quick"].longer(0.05), 224), folder / "run")


def exported(rows: Iterable[Target], checkpoint: Path, folder: Path) -> dict[tuple[str, str | None], Exported]:
    return {
        (row.name, row.via): export(row.name, via=row.via, checkpoint=checkpoint, out=folder / f"{row.name}-{row.via}")
        for row in rows
    }


@pytest.mark.parametrize("row", HERE, ids=lambda row: f"{row.name}-{row.via}" if row.via else row.name)
def test_the_full_network_passes_the_gate(row: Target, checkpoint: Path, tmp_path: Path) -> None:
    done = export(row.name, via=row.via, checkpoint=checkpoint, out=tmp_path / "bundle")
    assert done.losses == []
    assert done.parity.verdict_failures == 0
    assert done.accuracy is not None
    bundle = open_bundle(tmp_path / "bundle")
    for golden in bundle.golden():
        assert bundle.predict(golden.picture_path).threshold == done.manifest.calibration.threshold
    megabytes = sum(file.bytes for file in done.manifest.artifact_files) / 1e6
    if done.manifest.runtime in ("litert", "coreml"):
        assert megabytes <= LARGEST_MB[done.manifest.precision]


def test_two_exports_in_any_order_are_the_same(small_checkpoint: Path, tmp_path: Path) -> None:
    rows = [row for row in HERE if row.name != "ios"]  # fp16 moves this network's map further than its gate lets it
    first = exported(rows, small_checkpoint, tmp_path / "first")
    again = exported(reversed(rows), small_checkpoint, tmp_path / "again")
    for key, done in first.items():
        assert done.manifest.files == again[key].manifest.files, key
        assert (done.parity, done.accuracy) == (again[key].parity, again[key].accuracy), key
        assert replace(done.manifest, provenance={}) == replace(again[key].manifest, provenance={}), key
    assert stlm_edge.open(tmp_path / "first" / "cpu-None").manifest.target == "cpu"
