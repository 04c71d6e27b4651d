"""Opening a bundle verifies it against its manifest, and names the file that differs."""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import run_main
from PIL import Image
from tiny import TINY_SIZE, set_metadata, tiny_image, write_tiny_bundle, write_tiny_onnx

import stlm_edge
from stlm_edge.bundle import open_bundle
from stlm_edge.bundle.manifest import read_manifest
from stlm_edge.bundle.parity import compare
from stlm_edge.commands import predict
from stlm_edge.errors import UsageError
from stlm_edge.files import sha256_of
from stlm_edge.formats import metadata_entries
from stlm_edge.verdict import Verdict


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def refusal(bundle: Path) -> str:
    with pytest.raises(UsageError) as refused:
        open_bundle(bundle)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def list_again(bundle: Path, name: str) -> None:
    """Update the manifest for a changed file, as somebody who forges a bundle would."""

    def change(manifest: dict[str, Any]) -> None:
        for file in manifest["files"]:
            if file["path"] == name:
                file.update(sha256=sha256_of(bundle / name), bytes=(bundle / name).stat().st_size)

    edit(bundle, change)


def test_path_image_and_array_get_the_same_verdict(tiny_bundle: Path, tmp_path: Path) -> None:
    image = tiny_image(301, defect=True)
    image.save(tmp_path / "part.png")
    opened = stlm_edge.open(str(tiny_bundle))
    verdicts = [opened.predict(source) for source in (tmp_path / "part.png", image, np.asarray(image))]
    assert isinstance(verdicts[0], Verdict)
    assert isinstance(opened, stlm_edge.Bundle)
    assert verdicts[0].anomalous
    assert verdicts[0].score > verdicts[0].threshold == opened.manifest.decision_threshold.value
    assert verdicts[0].map.shape == (TINY_SIZE, TINY_SIZE)
    assert {verdict.score for verdict in verdicts} == {verdicts[0].score}
    assert not opened.predict(tiny_image(1)).anomalous


def test_rotated_photograph_is_judged_upright(tiny_bundle: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny_image(301, defect=True).save(tmp_path / "turned.png", exif=exif)
    tiny_image(301, defect=True).rotate(-90, expand=True).save(tmp_path / "upright.png")
    opened = stlm_edge.open(tiny_bundle)
    turned, upright = opened.predict(tmp_path / "turned.png"), opened.predict(tmp_path / "upright.png")
    assert (turned.map == upright.map).all()
    assert (opened.predict(Image.open(tmp_path / "turned.png")).map == upright.map).all()


def test_bundle_reproduces_its_golden_outputs(tiny_bundle: Path) -> None:
    opened = stlm_edge.open(tiny_bundle, threads=1)
    golden = list(opened.golden())
    assert len(golden) >= 8
    assert {image.anomalous for image in golden} == {True, False}
    decision_threshold = opened.manifest.decision_threshold
    outputs = [opened.runtime.run(image.tensor) for image in golden]
    parity, _ = compare(golden, outputs, decision_threshold.value, decision_threshold.delta)
    assert parity.max_abs_diff < 1e-6
    assert parity.verdict_failures == 0
    for image in golden:
        assert opened.predict(image.image_path).score == pytest.approx(image.score, abs=1e-6)


def test_score_is_computed_from_the_map_without_a_score_output(tiny_bundle: Path, tmp_path: Path) -> None:
    without = stlm_edge.open(write_tiny_bundle(tmp_path / "b", score_output=False))
    assert without.manifest.outputs.score is None
    image = tiny_image(302, defect=True)
    assert without.predict(image).score == pytest.approx(stlm_edge.open(tiny_bundle).predict(image).score, abs=1e-6)


def test_every_changed_byte_is_refused(bundle: Path) -> None:
    for path in sorted(bundle.rglob("*")):
        if path.is_dir() or path.name == "manifest.json":
            continue
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[position] ^= 1
            path.write_bytes(changed)
            assert f"{path}: its content has changed (sha256 differs from the manifest); copy the bundle" in refusal(
                bundle
            )
        path.write_bytes(content)
    open_bundle(bundle)


def test_another_size_is_refused_without_reading_the_file(bundle: Path) -> None:
    model = bundle / "model.onnx"
    size = model.stat().st_size
    os.truncate(model, 1 << 40)  # a sparse file, too large to hash in time
    begun = time.monotonic()
    assert f"{model}: {1 << 40} bytes, the manifest lists {size}; copy the bundle again" in refusal(bundle)
    assert time.monotonic() - begun < 5
    os.truncate(model, size - 1)
    assert f"{size - 1} bytes" in refusal(bundle)


def test_golden_file_changed_after_opening_is_refused_when_read(bundle: Path) -> None:
    opened = open_bundle(bundle)
    content = bytearray((bundle / "golden" / "01.rgb").read_bytes())
    content[0] ^= 1
    (bundle / "golden" / "01.rgb").write_bytes(content)
    with pytest.raises(UsageError, match=r"01\.rgb: its content has changed"):
        next(opened.golden())


@pytest.mark.parametrize("name", ["model.onnx", "golden/03.png", "golden/03.f32", "manifest.json"])
def test_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert f"{bundle / name}: missing; copy the bundle again or export it again" in refusal(bundle)


def test_missing_folder_is_named(bundle: Path) -> None:
    assert f"{bundle / 'nowhere'}: no such bundle folder; check the path" in refusal(bundle / "nowhere")
    assert "no such bundle folder" in refusal(bundle / "model.onnx")
    shutil.rmtree(bundle / "golden")
    assert "golden/01.png: missing" in refusal(bundle)


def test_interrupted_replacement_can_be_undone(bundle: Path) -> None:
    kept = bundle.with_name(".bundle.previous")
    bundle.rename(kept)
    assert f"its replacement was interrupted: rename {kept} to bundle" in refusal(bundle)
    kept.rename(bundle)
    open_bundle(bundle)


@pytest.mark.parametrize("path", ["../outside.onnx", "golden/../../outside.onnx", "/etc/hostname"])
def test_path_outside_the_folder_is_refused(bundle: Path, path: str) -> None:
    shutil.copy(bundle / "model.onnx", bundle.parent / "outside.onnx")
    edit(bundle, lambda manifest: manifest["files"][0].update(path=path))
    assert f'files[0].path: found "{path}", expected a plain path inside the bundle' in refusal(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "golden/01.png", "manifest.json", "golden"])
def test_links_inside_a_bundle_are_refused(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle.parent / "target")
    (bundle / name).symlink_to(bundle.parent / "target")
    assert f"{bundle / name}: a link; a bundle holds plain files only" in refusal(bundle)


def test_bundle_may_be_opened_through_a_link(bundle: Path) -> None:
    (bundle.parent / "current").symlink_to(bundle)
    assert open_bundle(bundle.parent / "current").predict(tiny_image(1)).score > 0


def test_special_files_are_refused(bundle: Path) -> None:
    (bundle / "golden" / "01.png").unlink()
    os.mkfifo(bundle / "golden" / "01.png")
    assert "golden/01.png: not a plain file" in refusal(bundle)
    (bundle / "golden" / "01.png").unlink()
    (bundle / "golden" / "01.png").mkdir()
    assert "golden/01.png: not a plain file" in refusal(bundle)


@pytest.mark.parametrize("name", ["extra.bin", "golden/99.png", "manifest.json.bak"])
def test_unlisted_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"x")
    assert f"{bundle / name}: not listed in the manifest; remove it or copy the bundle again" in refusal(bundle)


def test_unlisted_folders_links_and_sockets_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "cache").mkdir()
    assert "cache: not listed" in refusal(bundle)
    (bundle / "cache").rmdir()
    (bundle / "link").symlink_to("/")
    assert "link: not listed" in refusal(bundle)
    (bundle / "link").unlink()
    monkeypatch.chdir(bundle)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert "socket: not listed" in refusal(bundle)


def test_hidden_files_are_ignored(bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"x")
    (bundle / "golden" / ".directory").mkdir()
    open_bundle(bundle)


def test_unknown_format_version_is_refused(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(format_version=2))
    assert "bundle format 2, this release reads 1; install the release that wrote it or export again" in refusal(bundle)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m["input"].update(size=1 << 20), "input.size: found 1048576, expected at least 32 and at most 4096"),
        (
            lambda m: m["golden"][0]["tensor"].update(shape=[1 << 20, 1 << 20, 3]),
            "golden[0].tensor.shape: expected [64",
        ),
        (lambda m: m["golden"][0]["map"].update(shape=[1 << 20, 1 << 20]), "golden[0].map.shape: expected [64, 64]"),
        (lambda m: m["files"][0].update(bytes=1 << 50), "files[0].bytes: found 1125899906842624"),
    ],
)
def test_oversized_arrays_are_refused_before_any_is_read(
    bundle: Path, change: Callable[[dict[str, Any]], None], line: str
) -> None:
    edit(bundle, change)
    assert line in refusal(bundle)


def test_map_with_a_short_file_is_refused(bundle: Path) -> None:
    os.truncate(bundle / "golden" / "01.f32", 100)
    list_again(bundle, "golden/01.f32")
    assert "golden[0].map: 100 bytes, expected 16384" in refusal(bundle)


@pytest.mark.parametrize("key", ["threshold", "median_score", "map_low", "map_high", "input_size", "score_rule"])
def test_artifact_metadata_must_agree_with_the_manifest(bundle: Path, key: str) -> None:
    model = bundle / "model.onnx"
    set_metadata(model, {f"stlm_edge.{key}": "0.25"})
    list_again(bundle, "model.onnx")
    assert f"{model}: metadata stlm_edge.{key}: found '0.25'" in refusal(bundle)


def test_artifact_without_metadata_is_refused(bundle: Path) -> None:
    write_tiny_onnx(bundle / "model.onnx", TINY_SIZE)
    list_again(bundle, "model.onnx")
    assert "metadata stlm_edge.threshold: found 'nothing'" in refusal(bundle)


def test_artifact_that_is_no_onnx_file_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"something else")
    list_again(bundle, "model.onnx")
    assert "model.onnx: not an intact ONNX file" in refusal(bundle)


def test_artifact_of_another_input_size_is_refused_when_loaded(bundle: Path) -> None:
    write_tiny_onnx(bundle / "model.onnx", 96)
    decision_threshold = read_manifest(bundle / "manifest.json").decision_threshold
    set_metadata(bundle / "model.onnx", metadata_entries(decision_threshold, TINY_SIZE))
    list_again(bundle, "model.onnx")
    with pytest.raises(UsageError, match="input size 96, expected 64"):
        open_bundle(bundle).predict(tiny_image(1))


@pytest.mark.parametrize("key", ["preprocessing", "sixteen_bit"])
def test_bundle_of_another_preprocessing_is_refused(bundle: Path, key: str) -> None:
    edit(bundle, lambda manifest: manifest["input"].update({key: "of the future"}))
    assert f"input.{key}: found 'of the future', expected" in refusal(bundle)


def test_another_score_rule_is_refused(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(score_rule="maximum"))
    assert "score_rule: found 'maximum', expected 'mean of the 100 highest" in refusal(bundle)


def test_unknown_runtime_is_refused_when_loaded(bundle: Path) -> None:
    with pytest.raises(UsageError, match="unknown runtime 'ncnn'"):
        open_bundle(bundle, runtime="ncnn").predict(tiny_image(1))


def test_command_line_reports_one_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "model.onnx").unlink()
    finished = run_main(predict.main, ["--bundle", bundle, "part.png"], capsys)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == f"error: {bundle}/model.onnx: missing; copy the bundle again or export it again\n"
