"""What an export promises whatever its target: each `test_export_*.py` holds its own bundles to it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stlm_edge
from stlm_edge.bundle import Bundle
from stlm_edge.errors import JobError
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.runtimes.torch import Torch

WRONG_THRESHOLD = r"wrote .* for stlm_edge\.threshold .* checkpoint"  # why an export is refused


def says_what_the_trained_model_says(bundle: Bundle, checkpoint: Path, limit: float) -> None:
    """The same verdicts of the golden images, on maps within `limit`."""
    trained = Torch(checkpoint)
    for image in bundle.golden():
        anomaly_map, score = trained.run(image.tensor.copy())
        verdict = bundle.predict(image.image_path)
        assert verdict.anomalous == (score > bundle.manifest.decision_threshold.value)
        assert np.abs(verdict.map - anomaly_map).max() < limit


def is_refused(target: str, reason: str, folder: Path, **given: Any) -> None:
    """The export fails for this reason, a regular expression, and leaves nothing in `folder`."""
    with pytest.raises(JobError, match=reason):
        export(target, out=folder / "bundle", **given)
    assert list(folder.iterdir()) == []


def is_calibrated_on_site(done: Exported, images: Path, folder: Path) -> None:
    """Check that a copy of the bundle takes the threshold that these images give, in its manifest alone."""
    shutil.copytree(done.folder, folder)
    calibrated = run("calibrate", "--bundle", folder, "--data", images, "--json")
    assert (calibrated.returncode, calibrated.stderr) == (0, "")
    manifest = stlm_edge.open(folder).manifest
    threshold = json.loads(calibrated.stdout)["decision_threshold"]["value"]
    assert manifest.decision_threshold.value == threshold != manifest.exported_threshold.value
    assert manifest.files == done.manifest.files


def predicts_and_is_benched(done: Exported, runtime: str, image: Path, out: Path, queries: int = 10) -> set[str]:
    """By the commands; returns the packages whose versions the bench names."""
    predicted = run("predict", "--bundle", done.folder, image, "--json")
    assert (predicted.returncode, predicted.stderr) == (0, "")
    assert json.loads(predicted.stdout)["threshold"] == done.manifest.decision_threshold.value
    benched = run("bench", "--bundle", done.folder, "--queries", queries, "--seconds", 0, "--out", out)
    assert benched.returncode == 0, benched.stderr
    bench = json.loads((out / "bench.json").read_text())
    (row,) = bench["rows"]
    assert (row["runtime"], row["passed"], row["parity"]["verdict_failures"]) == (runtime, True, 0)
    assert queries < 10 or row["latency_ms"]["p50"] > 0
    return set(bench["machine"]["packages"])


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"stlm_edge.commands.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
