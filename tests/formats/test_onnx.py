"""Metadata is read and replaced as the onnx package itself would, and everything else stays byte for byte."""

import random
import resource
from pathlib import Path

import onnx
import pytest
from tiny import write_tiny_onnx

from stlm_edge.errors import UsageError
from stlm_edge.formats.onnx import read_metadata, replace_metadata


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    write_tiny_onnx(path, 64)
    return path


def by_onnx(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def field(number: int, wire: int, content: bytes = b"") -> bytes:
    """A protobuf field whose tag and length fit into one byte each, or two for the tag."""
    tag = number << 3 | wire
    head = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
    return head + (bytes([len(content)]) if wire == 2 else b"") + content


def test_entries_are_read_as_onnx_wrote_them(model: Path) -> None:
    assert read_metadata(model) == {}
    proto = onnx.load(model)
    entries = {"threshold": "0.5", "größe": "Δ" * 1000, "empty": ""}
    onnx.helper.set_model_props(proto, entries)
    onnx.save(proto, model)
    assert read_metadata(model) == entries


def test_replaced_entries_are_seen_by_onnx_and_the_rest_is_kept(model: Path) -> None:
    replace_metadata(model, {"a": "1", "b": "long " * 100})
    before = onnx.load(model)
    replace_metadata(model, {"a": "2", "c": ""})
    assert by_onnx(model) == read_metadata(model) == {"a": "2", "b": "long " * 100, "c": ""}
    after = onnx.load(model)
    for each in (before, after):
        del each.metadata_props[:]
    assert after == before
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_replacing_twice_changes_nothing(model: Path) -> None:
    replace_metadata(model, {"a": "1"})
    once = model.read_bytes()
    replace_metadata(model, {"a": "1"})
    assert model.read_bytes() == once


def test_any_order_of_fields_is_read(model: Path) -> None:
    graph = model.read_bytes()
    entry = field(14, 2, field(2, 2, b"value") + field(1, 2, b"key"))
    unknown = field(200, 0, b"\x05") + field(201, 1, b"12345678") + field(202, 5, b"1234") + field(203, 2, b"bytes")
    for content in (entry + graph, graph + entry, unknown + entry + graph + unknown):
        model.write_bytes(content)
        assert read_metadata(model) == {"key": "value"}
    replace_metadata(model, {"key": "other"})
    assert by_onnx(model) == {"key": "other"}
    assert unknown in model.read_bytes()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "0 graphs"),
        (b"\x89PNG\r\n\x1a\n", "not an intact ONNX file"),
        (b"hello, world", "not an intact ONNX file"),
        (field(7, 2) + field(7, 2), "2 graphs, expected one"),
        (field(7, 0, b"\x01"), "0 graphs"),
        (field(7, 2) + field(0, 2), "no field begins at byte 2"),
        (field(7, 2) + field(3, 3), "no field begins"),
        (field(7, 2) + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "beyond"),
        (field(7, 2) + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "too long"),
        (field(7, 2) + b"\x3a", "ends in the middle"),
        (field(7, 2) + b"\x3a\x05abc", "beyond byte 7"),
        (field(7, 2) + field(14, 0, b"\x05"), "no text"),
        (field(7, 2) + field(14, 2, b"\x0a\x7fkey"), "beyond byte"),
        (field(7, 2) + field(14, 2, field(3, 2, b"x")), "not a key and a value"),
        (field(7, 2) + field(14, 2, field(1, 2, b"\xff")), "not UTF-8"),
        (field(7, 2) + field(14, 2, field(1, 2, b"k")) * 2, "'k' stands twice"),
        (field(7, 2) + b"\x72\x80\x80\x80\x01" + b"\0" * (2 << 20), "larger than 1048576 bytes"),
    ],
)
def test_malformed_files_are_refused_in_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for act in (read_metadata, lambda place: replace_metadata(place, {"a": "b"})):
        with pytest.raises(UsageError, match=problem) as refused:
            act(path)
        assert str(path) in str(refused.value)
    assert path.read_bytes() == content


def test_truncated_anywhere_is_refused_or_whole_fields_are_missing(model: Path) -> None:
    replace_metadata(model, {"a": "1"})
    whole = model.read_bytes()
    for length in range(len(whole)):
        model.write_bytes(whole[:length])
        try:
            assert read_metadata(model) == {}
        except UsageError:
            continue
        onnx.load(model)


def test_random_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    path, rng = tmp_path / "model.onnx", random.Random(0)
    for _ in range(500):
        path.write_bytes(rng.randbytes(rng.randrange(60)))
        with pytest.raises(UsageError):
            read_metadata(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx: cannot be read"):
        read_metadata(tmp_path / "nowhere.onnx")


def test_a_full_disk_keeps_the_old_file(model: Path) -> None:
    before = model.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            replace_metadata(model, {"a": "1"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
