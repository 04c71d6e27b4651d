"""Strict JSON for frozen dataclasses, validated by their type hints.

Supported hints: dataclasses, str, int, float, bool, Literal, `X | None`, tuple[X, ...], dict[str, Any] (free-form),
and Annotated[X, ...] with `Between`, `Pattern`, `Items` or a plain string (a description).
Every field without a default is required and no other key is allowed. A `__post_init__` may raise ValueError for
fields that contradict each other.
"""

import dataclasses
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from stlm_edge.errors import JobError, UsageError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Between:
    """Inclusive bounds of a number."""

    minimum: float
    maximum: float | None = None


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A regular expression for the whole string, and its meaning in words."""

    regex: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Items:
    """Inclusive bounds of a list's length."""

    minimum: int
    maximum: int


def load(path: Path, limit: int = 1 << 20) -> Any:
    """Read the JSON value of a UTF-8 file of at most `limit` bytes, without duplicate keys, NaN or Infinity."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise UsageError(f"{path}: larger than {limit} bytes, the limit for this file")
    return parse(data, str(path))


def parse(text: str | bytes, name: str) -> Any:
    """Read the JSON value of UTF-8 text as strictly as `load`; error messages start with `name`."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"{name}: not valid JSON: {problem}") from None


def read(cls: type[T], value: Any, name: str) -> T:
    """Build `cls` from a parsed JSON value; errors name the file (`name`) and the JSON path."""
    return _read(cls, value, name, "")


def dump(value: Any) -> str:
    """Return the JSON text of a dataclass, after reading it back. Raises JobError for a number that is not finite."""
    try:
        text = json.dumps(dataclasses.asdict(value), indent=2, allow_nan=False)
    except ValueError:
        raise JobError(f"{type(value).__name__}: contains NaN or Infinity, which JSON cannot represent") from None
    read(type(value), json.loads(text), type(value).__name__)
    return text + "\n"


def required_fields(cls: Any) -> list[str]:
    """Return the names of a dataclass's fields without a default."""
    missing = dataclasses.MISSING
    return [field.name for field in dataclasses.fields(cls) if field.default is missing]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("duplicate key in an object")
    return keys


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _wrong(name: str, where: str, value: Any, expected: str) -> UsageError:
    text = json.dumps(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return UsageError(f"{name}: {where or 'the whole file'}: found {text}, expected {expected}")


def _read(hint: Any, value: Any, name: str, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        result = _read(arguments[0], value, name, where)
        for rule in arguments[1:]:
            _check(rule, result, name, where)
        return result
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(hint, value, name, where)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (other,) = (argument for argument in arguments if argument is not types.NoneType)
        return _read(other, value, name, where)
    if origin is typing.Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise _wrong(name, where, value, " or ".join(json.dumps(choice) for choice in arguments))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(name, where, value, "a list")
        return tuple(_read(arguments[0], item, name, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(name, where, value, "an object")
        return value
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not hint:
        raise _wrong(
            name, where, value, {str: "a string", int: "an integer", float: "a number", bool: "a boolean"}[hint]
        )
    return value


def _read_dataclass(cls: Any, value: Any, name: str, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(name, where, value, "an object")
    hints = typing.get_type_hints(cls, include_extras=True)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise UsageError(f"{name}: {prefix}{json.dumps(key)[1:-1][:60]}: unknown key, expected {', '.join(hints)}")
    for key in required_fields(cls):
        if key not in value:
            raise UsageError(f"{name}: {prefix}{key}: missing")
    fields = {key: _read(hint, value[key], name, prefix + key) for key, hint in hints.items() if key in value}
    try:
        return cls(**fields)
    except ValueError as contradiction:
        raise UsageError(f"{name}: {prefix}{contradiction}") from None


def _check(rule: Any, value: Any, name: str, where: str) -> None:
    if isinstance(rule, Between):
        if value < rule.minimum or (rule.maximum is not None and value > rule.maximum):
            most = "" if rule.maximum is None else f" and at most {rule.maximum}"
            raise _wrong(name, where, value, f"at least {rule.minimum}{most}")
    elif isinstance(rule, Pattern):
        if not re.fullmatch(rule.regex, value):
            raise _wrong(name, where, value, rule.meaning)
    elif isinstance(rule, Items) and not rule.minimum <= len(value) <= rule.maximum:
        raise UsageError(f"{name}: {where}: {len(value)} items, expected {rule.minimum} to {rule.maximum}")
