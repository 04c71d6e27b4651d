"""Core ML packages without coremltools: which are accepted, their metadata, and a bundle whose artifact is a folder."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import coremltools
import pytest

import stlm_edge
from stlm_edge.bundle.manifest import read_manifest
from stlm_edge.bundle.writer import list_file
from stlm_edge.errors import UsageError
from stlm_edge.formats import metadata_entries
from stlm_edge.formats.coreml import MANIFEST, MODEL, WEIGHTS, check_files, manifest_text, read_metadata
from stlm_edge.strict_json import dump


def field(number: int, content: bytes) -> bytes:
    """Return a protobuf field that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])


VERSION = b"\x08\x08"  # field 1, a varint: 8, which is iOS 17
INPUT = field(1, field(1, b"image"))
ENTRY = field(100, field(1, b"a") + field(2, b"1"))
METADATA = field(100, field(3, b"somebody") + ENTRY)


def write_package(package: Path, entries: dict[str, str] | None = None, model: bytes | None = None) -> Path:
    """Write a package with a model that has no program, by coremltools' own protobuf unless `model` is given."""
    (package / WEIGHTS).parent.mkdir(parents=True)
    (package / WEIGHTS).write_bytes(b"weights")
    (package / MANIFEST).write_text(manifest_text())
    spec = coremltools.proto.Model_pb2.Model()
    spec.specificationVersion = 8
    spec.description.input.add(name="image")
    spec.description.metadata.author = "somebody"
    spec.description.metadata.userDefined.update(entries or {})
    (package / MODEL).write_bytes(spec.SerializeToString() if model is None else model)
    return package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "model.mlpackage", {"a": "1", "größe": "Δ" * 1000, "empty": ""})


def test_entries_are_read_as_protobuf_wrote_them(package: Path) -> None:
    assert read_metadata(package) == {"a": "1", "größe": "Δ" * 1000, "empty": ""}


@pytest.mark.parametrize("description", [INPUT, INPUT + field(100, b"")])
def test_description_without_metadata_has_no_entries(tmp_path: Path, description: bytes) -> None:
    package = write_package(tmp_path / "model.mlpackage", model=VERSION + field(2, description))
    assert read_metadata(package) == {}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (b"", "0 descriptions"),
        (VERSION, "0 descriptions"),
        (VERSION + field(2, b"") * 2, "2 descriptions"),
        (field(2, METADATA * 2), "duplicate metadata"),
        (field(2, field(100, ENTRY * 2)), "duplicate metadata key 'a'"),
        (field(2, varint(100 << 3) + b"\x01"), "field 100 is not a message"),
        (field(2, INPUT)[:-3], "the field at byte 0 reaches beyond byte"),
        (field(2, field(100, field(100, field(1, b"x" * (1 << 20))))), "larger than 1048576 bytes"),
    ],
)
def test_damaged_model_is_refused(tmp_path: Path, model: bytes, problem: str) -> None:
    package = write_package(tmp_path / "model.mlpackage", model=model)
    with pytest.raises(UsageError, match=f"model.mlmodel: not an intact Core ML model .*{problem}"):
        read_metadata(package)


def test_missing_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_metadata(tmp_path / "nowhere.mlpackage")


def another_manifest(package: Path) -> None:
    (package / MANIFEST).write_text(manifest_text().replace("com.apple.CoreML/weights", "../../../etc"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda package: (package / WEIGHTS).unlink(), "expected Manifest.json, Data/com.apple.CoreML/model"),
        (lambda package: (package / "more.bin").write_bytes(b"x"), "holds .*more.bin; expected"),
        (another_manifest, "Manifest.json: not an intact Core ML package"),
    ],
)
def test_package_of_other_files_is_refused(package: Path, change: Callable[[Path], None], problem: str) -> None:
    check_files(package)
    change(package)
    with pytest.raises(UsageError, match=problem):
        check_files(package)


# A bundle whose artifact is a folder


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return the tiny bundle with a Core ML package in place of its ONNX file."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    (folder / "model.onnx").unlink()
    manifest = read_manifest(folder / "manifest.json")
    write_package(folder / "model.mlpackage", metadata_entries(manifest.exported_threshold, manifest.input.size))
    parts = [list_file(folder, f"model.mlpackage/{part}") for part in (MANIFEST, MODEL, WEIGHTS)]
    others = [file for file in manifest.files if file.path != "model.onnx"]
    changed = dataclasses.replace(manifest, artifact="model.mlpackage", runtime="coreml", files=(*parts, *others))
    (folder / "manifest.json").write_text(dump(changed), encoding="utf-8")
    return folder


def test_every_file_of_an_artifact_folder_is_listed(bundle: Path) -> None:
    manifest = stlm_edge.open(bundle).manifest
    parts = {f"model.mlpackage/{part}" for part in (MANIFEST, MODEL, WEIGHTS)}
    assert {file.path for file in manifest.artifact_files} == parts
    (bundle / "model.mlpackage" / "Data" / "extra.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"Data/extra.bin: not listed in the manifest"):
        stlm_edge.open(bundle)


def test_changed_or_missing_part_of_the_artifact_is_refused(bundle: Path) -> None:
    (bundle / "model.mlpackage" / WEIGHTS).write_bytes(b"WEIGHTS")
    with pytest.raises(UsageError, match=r"weight.bin: its content has changed"):
        stlm_edge.open(bundle)
    (bundle / "model.mlpackage" / WEIGHTS).unlink()
    with pytest.raises(UsageError, match=r"weight.bin: missing"):
        stlm_edge.open(bundle)


def test_folder_without_listed_files_is_no_artifact(bundle: Path) -> None:
    manifest = read_manifest(bundle / "manifest.json")
    for artifact in ("model.mlpack", "model.mlpackage/Data/com", "golden/none"):
        with pytest.raises(ValueError, match=f"artifact: {artifact} is not in files"):
            dataclasses.replace(manifest, artifact=artifact)
