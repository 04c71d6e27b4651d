"""ONNX metadata is read as the onnx package reads it, and damaged files are refused in one line."""

import random
from pathlib import Path

import onnx
import pytest
from tiny import set_metadata, write_tiny_onnx

from stlm_edge.errors import UsageError
from stlm_edge.formats.onnx import read_metadata


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    write_tiny_onnx(path, 64)
    return path


def field(number: int, wire: int, content: bytes = b"") -> bytes:
    """Return a protobuf field whose tag and length fit into one byte each, or two for the tag."""
    tag = number << 3 | wire
    head = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
    return head + (bytes([len(content)]) if wire == 2 else b"") + content


def test_entries_are_read_as_onnx_wrote_them(model: Path) -> None:
    assert read_metadata(model) == {}
    entries = {"threshold": "0.5", "größe": "Δ" * 1000, "empty": ""}
    set_metadata(model, entries)
    assert read_metadata(model) == entries


def test_fields_are_read_in_any_order(model: Path) -> None:
    graph = model.read_bytes()
    entry = field(14, 2, field(2, 2, b"value") + field(1, 2, b"key"))
    unknown = field(200, 0, b"\x05") + field(201, 1, b"12345678") + field(202, 5, b"1234") + field(203, 2, b"bytes")
    for content in (entry + graph, graph + entry, unknown + entry + graph + unknown):
        model.write_bytes(content)
        assert read_metadata(model) == {"key": "value"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "0 graphs"),
        (b"\x89PNG\r\n\x1a\n", "not an intact ONNX file"),
        (b"hello, world", "not an intact ONNX file"),
        (field(7, 2) + field(7, 2), "2 graphs, expected one"),
        (field(7, 0, b"\x01"), "field 7 is not a message"),
        (field(7, 2) + field(0, 2), "no field begins at byte 2"),
        (field(7, 2) + field(3, 3), "no field begins"),
        (field(7, 2) + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "beyond"),
        (field(7, 2) + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "too long"),
        (field(7, 2) + b"\x3a", "ends in the middle"),
        (field(7, 2) + b"\x3a\x05abc", "beyond byte 7"),
        (field(7, 2) + field(14, 0, b"\x05"), "field 14 is not a message"),
        (field(7, 2) + field(14, 2, b"\x0a\x7fkey"), "beyond byte"),
        (field(7, 2) + field(14, 2, field(3, 2, b"x")), "not a key and a value"),
        (field(7, 2) + field(14, 2, field(1, 2, b"\xff")), "not UTF-8"),
        (field(7, 2) + field(14, 2, field(1, 2, b"k")) * 2, "duplicate metadata key 'k'"),
        (field(7, 2) + b"\x72\x80\x80\x80\x01" + b"\0" * (2 << 20), "larger than 1048576 bytes"),
    ],
)
def test_malformed_files_are_refused_in_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as refused:
        read_metadata(path)
    assert str(path) in str(refused.value)


def test_truncated_file_is_refused_or_lacks_whole_fields(model: Path) -> None:
    set_metadata(model, {"a": "1"})
    whole = model.read_bytes()
    for length in range(len(whole)):
        model.write_bytes(whole[:length])
        try:
            assert read_metadata(model) == {}
        except UsageError:
            continue
        onnx.load(model)


def test_random_bytes_raise_nothing_but_usage_errors(tmp_path: Path) -> None:
    path, rng = tmp_path / "model.onnx", random.Random(0)
    for _ in range(500):
        path.write_bytes(rng.randbytes(rng.randrange(60)))
        with pytest.raises(UsageError):
            read_metadata(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx: cannot be read"):
        read_metadata(tmp_path / "nowhere.onnx")
