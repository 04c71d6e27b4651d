"""A bundle is written completely or not at all, and nothing but a bundle is ever replaced."""

import dataclasses
import errno
import math
import os
import shutil
from pathlib import Path

import pytest
from disk_full import largest_file
from tiny import write_tiny_bundle

import stlm_edge
from stlm_edge.bundle.parity import Parity
from stlm_edge.bundle.writer import check_writable, recalibrate, replacing_folder
from stlm_edge.errors import JobError, UsageError
from stlm_edge.formats.onnx import read_metadata


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_written_bundle_opens_and_its_artifact_has_the_threshold(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "deep" / "bundle")
    manifest = stlm_edge.open(bundle).manifest
    metadata = read_metadata(bundle / "model.onnx")
    assert float(metadata["stlm_edge.threshold"]) == manifest.decision_threshold.value
    assert metadata["stlm_edge.input_size"] == "64"
    assert manifest.exported_threshold == manifest.decision_threshold
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", "model.onnx", "golden"}
    assert list(bundle.parent.iterdir()) == [bundle]


def test_existing_folder_is_kept_without_force(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    before = contents(bundle)
    with pytest.raises(UsageError, match="exists; choose another folder or give --force"):
        write_tiny_bundle(bundle)
    assert contents(bundle) == before


def test_force_replaces_a_bundle_and_fills_an_empty_folder(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", precision="int8")
    write_tiny_bundle(bundle, force=True)
    assert stlm_edge.open(bundle).manifest.precision == "fp32"
    (tmp_path / "empty").mkdir()
    write_tiny_bundle(tmp_path / "empty", force=True)
    stlm_edge.open(tmp_path / "empty")


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json", "golden", ".git"])
def test_force_replaces_nothing_but_bundles(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    (home / "images").mkdir(parents=True)
    (home / name).write_text("mine")
    with pytest.raises(UsageError, match="not a bundle, so it is not replaced"):
        check_writable(home, force=True)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="not a bundle"):
        check_writable(file, force=True)
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(UsageError, match="not a bundle"):
        check_writable(tmp_path / "link", force=True)


@pytest.mark.parametrize("limit", [1300, 2000])  # the stamped model is larger than the first, a golden file than both
def test_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    with (
        pytest.raises(JobError, match=r"cannot be written \(File too large\); nothing"),
        largest_file(limit),
    ):
        write_tiny_bundle(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.onnx"]


def test_full_disk_keeps_the_old_bundle(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    before = contents(bundle)
    with pytest.raises(JobError, match="bundle: cannot be written"), largest_file(2000):
        write_tiny_bundle(bundle, force=True)
    assert contents(bundle) == before


@pytest.mark.parametrize("moment", ["folder.rename", "temporary.rename"])
def test_failed_rename_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    before = contents(bundle)
    rename, which = Path.rename, {"folder.rename": "bundle", "temporary.rename": f".bundle.{os.getpid()}.tmp"}[moment]

    def fail(self: Path, target: Path) -> Path:
        if self.name == which:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(JobError, match="Input/output error"):
        write_tiny_bundle(bundle, force=True)
    assert contents(bundle) == before
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".onnx"] == ["bundle"]


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with replacing_folder(tmp_path / "bundle") as temporary:
            (temporary / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for number in (os.getpid(), 4_000_000):
        (tmp_path / f".bundle.{number}.tmp" / "golden").mkdir(parents=True)
    stlm_edge.open(write_tiny_bundle(tmp_path / "bundle"))
    (tmp_path / ".bundle.new.1.tmp").mkdir()  # belongs to bundle.new
    write_tiny_bundle(tmp_path / "bundle", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.new.1.tmp", "bundle"]


def test_metrics_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="NaN or Infinity"):
        write_tiny_bundle(tmp_path / "bundle", parity=Parity(math.inf, math.inf, 0.0, 1, 1, 8))
    assert not (tmp_path / "bundle").exists()


def test_recalibrating_changes_the_manifest_only(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = contents(folder)
    bundle = stlm_edge.open(folder)
    new = recalibrate(bundle, dataclasses.replace(bundle.manifest.decision_threshold, value=0.5, source="site"))
    assert stlm_edge.open(folder).manifest == new
    assert new.exported_threshold == bundle.manifest.exported_threshold
    assert new.verdict_delta == 0.01 * (0.5 - new.decision_threshold.median_score)
    after = contents(folder)
    assert [name for name in before if before[name] != after[name]] == ["manifest.json"]
    assert after.keys() == before.keys()


def test_recalibrating_a_bundle_that_was_replaced_fails(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    bundle = stlm_edge.open(folder)
    first, second = (dataclasses.replace(bundle.manifest.decision_threshold, value=value) for value in (0.5, 0.6))
    new = recalibrate(bundle, first)
    with pytest.raises(JobError, match=r"manifest\.json: changed since the bundle was opened; run it again"):
        recalibrate(bundle, second)
    assert stlm_edge.open(folder).manifest == new
