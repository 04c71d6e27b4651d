"""Core ML packages without coremltools: which are accepted, their metadata, and a bundle whose artifact is a folder."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import stlm_edge
from stlm_edge.bundle.manifest import read_manifest
from stlm_edge.bundle.writer import list_file, recalibrate
from stlm_edge.errors import UsageError
from stlm_edge.formats import stamp
from stlm_edge.formats.coreml import (
    MANIFEST,
    MODEL,
    WEIGHTS,
    check_files,
    manifest_text,
    read_metadata,
    replace_metadata,
)
from stlm_edge.formats.protobuf import encode_entry, encode_field
from stlm_edge.strict_json import dump

VERSION = b"\x08\x08"  # field 1, a varint: 8, which is iOS 17
INPUT = encode_field(1, encode_field(1, b"image"))
AUTHOR = encode_field(3, b"somebody")
PROGRAM = encode_field(502, b"the program" * 1000)


def metadata(entries: dict[str, str]) -> bytes:
    return encode_field(100, AUTHOR + b"".join(encode_entry(100, *pair) for pair in entries.items()))


def write_package(package: Path, entries: dict[str, str] | None = None, model: bytes | None = None) -> Path:
    """A package that is whole as far as this side looks: its program is no program."""
    (package / WEIGHTS).parent.mkdir(parents=True)
    (package / WEIGHTS).write_bytes(b"weights")
    (package / MANIFEST).write_text(manifest_text())
    description = encode_field(2, INPUT + metadata(entries or {}))
    (package / MODEL).write_bytes(VERSION + description + PROGRAM if model is None else model)
    return package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "model.mlpackage", {"a": "1", "größe": "Δ" * 1000})


def test_entries_are_read_and_replaced_and_the_rest_is_kept(package: Path) -> None:
    assert read_metadata(package) == {"a": "1", "größe": "Δ" * 1000}
    replace_metadata(package, {"a": "2", "b": ""})
    assert read_metadata(package) == {"a": "2", "b": "", "größe": "Δ" * 1000}
    described = INPUT + metadata({"a": "2", "b": "", "größe": "Δ" * 1000})
    assert (package / MODEL).read_bytes() == VERSION + encode_field(2, described) + PROGRAM
    assert {path.name for path in (package / MODEL).parent.iterdir()} == {"model.mlmodel", "weights"}


def test_a_description_without_metadata_gets_some(tmp_path: Path) -> None:
    package = write_package(tmp_path / "model.mlpackage", model=VERSION + encode_field(2, INPUT) + PROGRAM)
    assert read_metadata(package) == {}
    replace_metadata(package, {"a": "1"})
    assert read_metadata(package) == {"a": "1"}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (VERSION, "0 descriptions, expected one"),
        (VERSION + encode_field(2, b"") * 2, "2 descriptions, expected one"),
        (encode_field(2, metadata({}) * 2), "its metadata stands twice"),
        (encode_field(2, encode_field(100, encode_entry(100, "a", "1") * 2)), "the metadata key 'a' stands twice"),
        (encode_field(2, INPUT)[:-3], "the field at byte 0 reaches beyond byte"),
        (encode_field(2, encode_field(100, b"x" * (1 << 20))), r"a description of 10485\d\d bytes, at most 1048576"),
        (b"", "0 descriptions"),
    ],
)
def test_what_is_not_intact_is_refused(tmp_path: Path, model: bytes, problem: str) -> None:
    package = write_package(tmp_path / "model.mlpackage", model=model)
    for attempt in (lambda: read_metadata(package), lambda: replace_metadata(package, {"a": "1"})):
        with pytest.raises(UsageError, match=f"model.mlmodel: not an intact Core ML model .*{problem}"):
            attempt()
    assert (package / MODEL).read_bytes() == model
    with pytest.raises(UsageError, match="cannot be read"):
        read_metadata(tmp_path / "nowhere.mlpackage")


def other_manifest(package: Path) -> None:
    (package / MANIFEST).write_text(manifest_text().replace("com.apple.CoreML/weights", "../../../etc"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda package: (package / WEIGHTS).unlink(), "expected Manifest.json, Data/com.apple.CoreML/model"),
        (lambda package: (package / "more.bin").write_bytes(b"x"), "holds .*more.bin; expected"),
        (other_manifest, "Manifest.json: not as stlm-export writes it"),
    ],
)
def test_another_package_is_refused(package: Path, change: Callable[[Path], None], problem: str) -> None:
    check_files(package)
    change(package)
    with pytest.raises(UsageError, match=problem):
        check_files(package)


# A bundle whose artifact is a folder


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with a Core ML package in place of its ONNX file."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    (folder / "model.onnx").unlink()
    manifest = read_manifest(folder / "manifest.json")
    write_package(folder / "model.mlpackage", stamp(manifest.decision_threshold, manifest.input.size))
    parts = [list_file(folder, f"model.mlpackage/{part}") for part in (MANIFEST, MODEL, WEIGHTS)]
    others = [file for file in manifest.files if file.path != "model.onnx"]
    changed = dataclasses.replace(manifest, artifact="model.mlpackage", runtime="coreml", files=(*parts, *others))
    (folder / "manifest.json").write_text(dump(changed), encoding="utf-8")
    return folder


def test_every_file_of_the_folder_is_listed_and_belongs_to_the_artifact(bundle: Path) -> None:
    manifest = stlm_edge.open(bundle).manifest
    parts = {f"model.mlpackage/{part}" for part in (MANIFEST, MODEL, WEIGHTS)}
    assert {file.path for file in manifest.artifact_files} == parts
    (bundle / "model.mlpackage" / "Data" / "extra.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"Data/extra.bin: not listed in the manifest"):
        stlm_edge.open(bundle)


def test_a_changed_or_missing_part_is_refused(bundle: Path) -> None:
    (bundle / "model.mlpackage" / WEIGHTS).write_bytes(b"WEIGHTS")
    with pytest.raises(UsageError, match=r"weight.bin: its content has changed"):
        stlm_edge.open(bundle)
    (bundle / "model.mlpackage" / WEIGHTS).unlink()
    with pytest.raises(UsageError, match=r"weight.bin: missing"):
        stlm_edge.open(bundle)


def test_a_folder_of_which_nothing_is_listed_is_no_artifact(bundle: Path) -> None:
    manifest = read_manifest(bundle / "manifest.json")
    for artifact in ("model.mlpack", "model.mlpackage/Data/com", "golden/none"):
        with pytest.raises(ValueError, match=f"artifact: {artifact} is not in files"):
            dataclasses.replace(manifest, artifact=artifact)


def test_a_new_threshold_reaches_the_package(bundle: Path) -> None:
    opened = stlm_edge.open(bundle)
    threshold = opened.manifest.decision_threshold.value + 0.01
    before = read_metadata(bundle / "model.mlpackage")
    recalibrate(opened, dataclasses.replace(opened.manifest.decision_threshold, value=threshold))
    after = read_metadata(bundle / "model.mlpackage")
    assert after == before | {"stlm_edge.threshold": repr(threshold)}
    assert stlm_edge.open(bundle).manifest.decision_threshold.value == threshold
    replace_metadata(bundle / "model.mlpackage", before)
    manifest = read_manifest(bundle / "manifest.json")
    files = tuple(list_file(bundle, file.path) for file in manifest.files)
    (bundle / "manifest.json").write_text(dump(dataclasses.replace(manifest, files=files)), encoding="utf-8")
    with pytest.raises(UsageError, match=r"model.mlpackage: its metadata says .* for stlm_edge.threshold"):
        stlm_edge.open(bundle)
