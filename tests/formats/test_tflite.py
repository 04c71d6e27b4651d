"""TFLite metadata is read as flatbuffers wrote it, and damaged files are refused in one line."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_tflite import add_metadata, tiny_model, write_tflite

from stlm_edge.errors import UsageError
from stlm_edge.formats.tflite import check_self_contained, read_metadata

ENTRIES = {"threshold": "0.5", "größe": "Δ" * 100, "empty": ""}
CONTENT = json.dumps(ENTRIES).encode() + b" " * 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tflite(tmp_path / "model.tflite", tiny_model(64, CONTENT))
    return tmp_path / "model.tflite"


def test_entries_are_read_as_flatbuffers_wrote_them(path: Path) -> None:
    assert read_metadata(path) == ENTRIES
    write_tflite(path, tiny_model(64, metadata=None))
    assert read_metadata(path) == {}


def test_other_metadata_is_ignored(path: Path) -> None:
    model = tiny_model(64)
    model.buffers.append(schema.BufferT())
    add_metadata(model, "min_runtime_version", len(model.buffers) - 1)
    add_metadata(model, "stlm_edg\0", len(model.buffers) - 1)
    write_tflite(path, model)
    assert read_metadata(path) == {"key": "value"}


def with_content(content: bytes) -> Callable[[], Any]:
    return lambda: tiny_model(64, content)


def twice() -> Any:
    model = tiny_model(64)
    add_metadata(model, "stlm_edge", model.metadata[0].buffer)
    return model


def in_buffer(number: int) -> Callable[[], Any]:
    def make() -> Any:
        model = tiny_model(64)
        model.metadata[0].buffer = number
        return model

    return make


def without_graphs() -> Any:
    model = tiny_model(64)
    model.subgraphs = []
    return model


def many_entries() -> Any:
    model = tiny_model(64)
    for _ in range(100):
        add_metadata(model, "other", 0)
    return model


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (with_content(b"not JSON"), "metadata: not valid JSON"),
        (with_content(b'{"a": "\xff"}'), "metadata: not valid JSON"),
        (with_content(b"[" * 100_000), "metadata: not valid JSON"),
        (with_content(b'{"a": 1}'), "not an object of strings"),
        (with_content(b'["a"]'), "not an object of strings"),
        (with_content(b'{"a": "1", "a": "2"}'), "metadata: not valid JSON"),
        (with_content(b" " * (2 << 20)), "2097152 bytes of metadata, at most 1048576"),
        (twice, "duplicate metadata 'stlm_edge'"),
        (in_buffer(0), "buffer 0, which the metadata names, is missing or empty"),
        (in_buffer(99), "buffer 99, which the metadata names, is missing or empty"),
        (without_graphs, "it has no graph"),
        (many_entries, "101 entries at byte"),
    ],
)
def test_malformed_metadata_is_refused_in_one_line(tmp_path: Path, make: Callable[[], Any], problem: str) -> None:
    path = tmp_path / "model.tflite"
    write_tflite(path, make())
    with pytest.raises(UsageError, match=problem) as refused:
        read_metadata(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"TFL3", b"hello, world", b"\0\0\0\0TFL3", struct.pack("<I4sI", 8, b"TFL3", 0), b"\xff" * 4 + b"TFL3" * 20],
)
def test_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    for act in (read_metadata, check_self_contained):
        with pytest.raises(UsageError, match="not an intact TFLite file"):
            act(path)


def test_damaged_files_raise_nothing_but_usage_errors(path: Path) -> None:
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refused += not is_read(path)
    assert refused > 50
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        is_read(path)


def is_read(path: Path) -> bool:
    try:
        read_metadata(path)
        check_self_contained(path)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("where", ["behind", "in other files"])
def test_weights_outside_the_flatbuffer_are_refused(path: Path, where: str) -> None:
    check_self_contained(path)
    model = tiny_model(64)
    if where == "behind":
        model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 4096, 4
    else:
        model.externalBuffers = [schema.ExternalBufferT()]
    write_tflite(path, model)
    with pytest.raises(UsageError, match="keeps weights outside its FlatBuffer"):
        check_self_contained(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.tflite: cannot be read"):
        read_metadata(tmp_path / "nowhere.tflite")
