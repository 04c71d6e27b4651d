"""Thresholds from normal scores, and a bundle calibrated again on site."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_image

import stlm_edge
from stlm_edge.commands import calibrate as module
from stlm_edge.errors import UsageError
from stlm_edge.formats.onnx import read_metadata
from stlm_edge.threshold import calibrate, describe


def test_enough_images_give_a_quantile() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, 401) / 1000)
    found = calibrate(scores, [0.05] * 400, 0.01)
    assert found.value == 0.397  # rank ⌈0.99 × 401⌉ = 397 of 400
    assert (found.method, found.margin, found.images) == ("quantile", 0.0, 400)
    assert found.median_score == pytest.approx(0.2005)


def test_the_quantile_keeps_the_rate_on_new_images() -> None:
    rng = np.random.default_rng(0)
    # Of scores spread evenly over 0..1, the share above the threshold is 1 − threshold; 5/101 is expected.
    alarms = [1 - calibrate(rng.random(100), [0.0], 0.05).value for _ in range(1000)]
    assert np.mean(alarms) == pytest.approx(5 / 101, abs=0.002)


def test_exactly_as_many_as_the_rate_needs_is_enough() -> None:
    assert calibrate(np.linspace(0, 0.5, 100), [0.0] * 100, 0.01).method == "quantile"
    assert calibrate(np.linspace(0, 0.5, 99), [0.0] * 99, 0.01).method == "maximum plus margin"


def test_too_few_images_give_their_maximum_plus_a_stated_margin() -> None:
    found = calibrate([0.1, 0.2, 0.3], [0.05] * 3, 0.01)
    assert found.margin == pytest.approx(0.01)
    assert found.value == pytest.approx(0.31)
    assert "maximum of 3 normal images plus a margin of 0.01" in describe(found)
    assert "needs 100" in describe(found)


def test_a_threshold_stays_below_the_highest_possible_score() -> None:
    assert calibrate([0.0, 0.0, 0.99], [0.0] * 3).value == pytest.approx(0.995)


def test_delta_is_a_hundredth_of_the_distance_from_median_to_threshold() -> None:
    found = calibrate([0.1, 0.2, 0.3], [0.05] * 3)
    assert found.delta == pytest.approx(0.01 * (0.31 - 0.2))


def test_the_threshold_lies_in_the_middle_of_the_colours_whether_maps_or_medians_are_given() -> None:
    maps = [np.full((32, 32), value, np.float32) for value in (0.01, 0.02, 0.06)]
    found = calibrate([0.1, 0.2, 0.3], maps)
    assert found.map_low == pytest.approx(0.02)
    assert (found.map_low + found.map_high) / 2 == pytest.approx(found.value)
    assert calibrate([0.1, 0.2, 0.3], [float(np.median(each)) for each in maps]) == found


@pytest.mark.parametrize(
    ("scores", "rate", "line"),
    [
        ([], 0.01, "no normal images"),
        ([0.1, float("nan")], 0.01, "not finite"),
        ([0.1], 0.0, "false-alarm rate: found 0.0, expected more than 0"),
        ([0.1], 0.5, "false-alarm rate: found 0.5"),
        ([0.1], float("nan"), "false-alarm rate: found nan"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(scores: list[float], rate: float, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        calibrate(scores, [0.0] * len(scores), rate)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "site" / "bundle"))


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stlm_edge.commands.calibrate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_calibrating_on_site_records_both_and_the_bundle_still_opens(bundle: Path, tiny_images: Path) -> None:
    before = stlm_edge.open(bundle).manifest
    answer = run("--bundle", bundle, "--data", tiny_images / "good", "--false-alarm-rate", 0.1, "--json")
    assert (answer.returncode, answer.stderr) == (0, "")
    after = stlm_edge.open(bundle).manifest
    assert after.exported_threshold == before.decision_threshold
    assert after.decision_threshold.source == "site"
    assert after.decision_threshold.images == 24
    assert after.decision_threshold.value != before.decision_threshold.value
    assert after.verdict_delta == after.decision_threshold.delta
    assert read_metadata(bundle / "model.onnx")["stlm_edge.threshold"] == repr(after.decision_threshold.value)
    assert json.loads(answer.stdout)["decision_threshold"]["value"] == after.decision_threshold.value
    assert list(bundle.parent.iterdir()) == [bundle]
    image = tiny_image(500)
    assert stlm_edge.open(bundle).predict(image).threshold == after.decision_threshold.value


def test_calibrating_twice_keeps_what_the_export_shipped(bundle: Path, tiny_images: Path) -> None:
    shipped = stlm_edge.open(bundle).manifest.decision_threshold
    for rate in (0.1, 0.2):
        assert run("--bundle", bundle, "--data", tiny_images / "good", "--false-alarm-rate", rate).returncode == 0
    manifest = stlm_edge.open(bundle).manifest
    assert manifest.exported_threshold == shipped
    assert manifest.decision_threshold.false_alarm_rate == 0.2


def test_the_figures_are_said_in_words(bundle: Path, tiny_images: Path) -> None:
    answer = run("--bundle", bundle, "--data", tiny_images / "good")
    assert "maximum of 24 normal images plus a margin" in answer.stdout
    assert "as exported, threshold" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--data", "nowhere"], 2, "nowhere: no such folder"),
        (["--data", "good", "--false-alarm-rate", "2"], 2, "false-alarm rate: found 2.0"),
        (["--data", "good", "--threads", "0"], 2, "threads: found 0, expected at least 1"),
        (["--data", "spot"], 1, "above every anomalous golden image"),
    ],
)
def test_bad_input_leaves_the_bundle_as_it_was(
    bundle: Path, tiny_images: Path, arguments: list[str], code: int, line: str
) -> None:
    before = contents(bundle)
    answer = run("--bundle", bundle, *arguments, cwd=tiny_images)
    assert answer.returncode == code
    assert line in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert contents(bundle) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_full_disk_leaves_the_bundle_as_it_was(bundle: Path, tiny_images: Path) -> None:
    before = contents(bundle)
    answer = run(
        "--bundle",
        bundle,
        "--data",
        tiny_images / "good",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert answer.returncode == 1
    assert f"{bundle}: cannot be written (File too large); nothing was changed" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert contents(bundle) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_help_shows_a_complete_example() -> None:
    assert module.EXAMPLE.splitlines()[1].strip() in run("--help").stdout
