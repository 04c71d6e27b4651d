"""stlm-calibrate: a bundle's threshold is chosen again, in its manifest alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_full import largest_file
from in_process import Finished, run_main
from tiny import tiny_image

import stlm_edge
from stlm_edge.commands import calibrate

Run = Callable[..., Finished]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "site" / "bundle"))


@pytest.fixture
def run(bundle: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return stlm-calibrate with the bundle, beside folders of images."""
    monkeypatch.chdir(tiny_images)
    return lambda *arguments: run_main(calibrate.main, ["--bundle", bundle, *arguments], capsys)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_both_thresholds_are_recorded_and_the_bundle_still_opens(run: Run, bundle: Path) -> None:
    before, files = stlm_edge.open(bundle).manifest, contents(bundle)
    finished = run("--data", "good", "--false-alarm-rate", 0.1, "--json")
    assert (finished.returncode, finished.stderr) == (0, "")
    after = stlm_edge.open(bundle).manifest
    assert after.exported_threshold == before.decision_threshold
    assert after.decision_threshold.source == "site"
    assert after.decision_threshold.images == 24
    assert after.decision_threshold.value != before.decision_threshold.value
    assert after.verdict_delta == after.decision_threshold.delta
    assert json.loads(finished.stdout)["decision_threshold"]["value"] == after.decision_threshold.value
    assert stlm_edge.open(bundle).predict(tiny_image(500)).threshold == after.decision_threshold.value
    changed = contents(bundle)
    assert [name for name in files if files[name] != changed[name]] == ["manifest.json"]
    assert changed.keys() == files.keys()
    assert list(bundle.parent.iterdir()) == [bundle]


def test_calibrating_twice_keeps_the_exported_threshold(run: Run, bundle: Path) -> None:
    exported = stlm_edge.open(bundle).manifest.decision_threshold
    for rate in (0.1, 0.2):
        assert run("--data", "good", "--false-alarm-rate", rate).returncode == 0
    manifest = stlm_edge.open(bundle).manifest
    assert manifest.exported_threshold == exported
    assert manifest.decision_threshold.false_alarm_rate == 0.2


def test_thresholds_are_printed_in_words(run: Run) -> None:
    finished = run("--data", "good")
    assert "maximum of 24 normal images plus a margin" in finished.stdout
    assert "as exported, threshold" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--data", "nowhere"], 2, "nowhere: no such folder"),
        (["--data", "good", "--false-alarm-rate", "2"], 2, "false-alarm rate: found 2.0"),
        (["--data", "good", "--threads", "0"], 2, "threads: found 0, expected at least 1"),
        (["--data", "spot"], 1, "above every anomalous golden image"),
    ],
)
def test_bad_input_leaves_the_bundle_unchanged(
    run: Run, bundle: Path, arguments: list[str], code: int, line: str
) -> None:
    before = contents(bundle)
    finished = run(*arguments)
    assert finished.returncode == code
    assert line in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert contents(bundle) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_full_disk_leaves_the_bundle_unchanged(run: Run, bundle: Path) -> None:
    before = contents(bundle)
    with largest_file(1000):
        finished = run("--data", "good")
    assert finished.returncode == 1
    assert f"{bundle}/manifest.json: cannot be written (File too large); nothing was changed" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert contents(bundle) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_help_shows_a_complete_example(run: Run) -> None:
    assert calibrate.EXAMPLE.splitlines()[1].strip() in run("--help").stdout
