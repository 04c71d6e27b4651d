"""JSON is read exactly by the type hints; errors give the JSON path."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from stlm_edge import strict_json
from stlm_edge.errors import JobError, UsageError
from stlm_edge.strict_json import Between, Items, Pattern


@dataclass(frozen=True)
class Leaf:
    """A leaf."""

    count: Annotated[int, Between(0, 5)]
    share: float


@dataclass(frozen=True)
class Tree:
    """A tree."""

    name: Annotated[str, Pattern("[a-z]+", "lower-case letters")]
    kind: Literal["oak", "elm"]
    leaves: Annotated[tuple[Leaf, ...], Items(1, 2)]
    nest: Leaf | None
    notes: dict[str, Any]
    felled: bool


GOOD: dict[str, Any] = {
    "name": "tree",
    "kind": "oak",
    "leaves": [{"count": 1, "share": 0.5}],
    "nest": None,
    "notes": {"free": [1, {"form": None}]},
    "felled": False,
}


def test_written_values_are_read_back() -> None:
    tree = Tree("tree", "elm", (Leaf(1, 0.5), Leaf(2, 1.0)), Leaf(0, 0.1), {"a": [1]}, True)
    assert strict_json.read(Tree, json.loads(strict_json.dump(tree)), "t") == tree


def test_whole_number_is_read_as_float() -> None:
    leaf = strict_json.read(Leaf, {"count": 1, "share": 2}, "t")
    assert isinstance(leaf.share, float)


def test_field_with_default_may_be_missing_but_not_wrong() -> None:
    @dataclass(frozen=True)
    class Nest:
        eggs: int
        bird: str | None = None

    assert strict_json.read(Nest, {"eggs": 2}, "t") == Nest(2)
    assert strict_json.required_fields(Nest) == ["eggs"]
    with pytest.raises(UsageError, match="bird: found 3, expected a string"):
        strict_json.read(Nest, {"eggs": 2, "bird": 3}, "t")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"extra": 1}, "t: extra: unknown key, expected name, kind"),
        ({"name": ...}, "t: name: missing"),
        ({"name": 3}, "t: name: found 3, expected a string"),
        ({"name": "TREE"}, 't: name: found "TREE", expected lower-case letters'),
        ({"name": "tree\n"}, 't: name: found "tree\\n", expected lower-case letters'),
        ({"kind": "fir"}, 't: kind: found "fir", expected "oak" or "elm"'),
        ({"felled": 0}, "t: felled: found 0, expected a boolean"),
        ({"leaves": []}, "t: leaves: 0 items, expected 1 to 2"),
        ({"leaves": {}}, "t: leaves: found {}, expected a list"),
        ({"leaves": [{"count": True, "share": 1.0}]}, "t: leaves[0].count: found true, expected an integer"),
        ({"leaves": [{"count": 1.0, "share": 1.0}]}, "t: leaves[0].count: found 1.0, expected an integer"),
        ({"leaves": [{"count": 6, "share": 1.0}]}, "t: leaves[0].count: found 6, expected at least 0 and at most 5"),
        ({"leaves": [{"count": 1, "share": "1"}]}, 't: leaves[0].share: found "1", expected a number'),
        ({"leaves": [{"count": 1, "share": 10**400}]}, "expected a number"),
        ({"leaves": [{"count": 1, "share": 1.0, "x": 0}]}, "t: leaves[0].x: unknown key"),
        ({"nest": {"count": 1}}, "t: nest.share: missing"),
        ({"notes": []}, "t: notes: found [], expected an object"),
    ],
)
def test_invalid_value_is_refused_with_its_path(change: dict[str, Any], line: str) -> None:
    value = {key: item for key, item in (GOOD | change).items() if item is not ...}
    with pytest.raises(UsageError) as refused:
        strict_json.read(Tree, value, "t")
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": 1, "a": 2}', "duplicate key"),
        ('{"a": ', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_invalid_json_file_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=problem):
        strict_json.load(path)


def test_file_above_size_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(" " * 101)
    with pytest.raises(UsageError, match="larger than 100 bytes"):
        strict_json.load(path, limit=100)


def test_nan_is_never_written() -> None:
    with pytest.raises(JobError, match="NaN or Infinity"):
        strict_json.dump(Leaf(1, math.nan))


def test_unreadable_value_is_never_written() -> None:
    with pytest.raises(UsageError, match="count: found 9"):
        strict_json.dump(Leaf(9, 0.0))
