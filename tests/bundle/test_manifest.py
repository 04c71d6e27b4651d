"""The manifest is read strictly, and its published schema accepts and refuses the same."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import stlm_edge
from stlm_edge.bundle.manifest import read_manifest
from stlm_edge.errors import UsageError

SCHEMA = json.loads((Path(stlm_edge.__file__).parent / "schemas" / "manifest-1.schema.json").read_text())


@pytest.fixture
def good(tiny_bundle: Path) -> dict[str, Any]:
    return json.loads((tiny_bundle / "manifest.json").read_text())


def refusal(value: Any, tmp_path: Path) -> str:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError) as refused:
        read_manifest(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_schema_accepts_a_real_manifest(good: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(good, SCHEMA)


def set_to(*path: Any) -> Callable[[Any], None]:
    *parents, last, value = path

    def change(tree: Any) -> None:
        for key in parents:
            tree = tree[key]
        tree[last] = value

    return change


WRONG = [
    (set_to("extra", 1), "extra: unknown key"),
    (lambda tree: tree.pop("golden"), "golden: missing"),
    (set_to("parameters", True), "parameters: found true, expected an integer"),
    (set_to("parameters", -1), "parameters: found -1, expected at least 0"),
    (set_to("input", "size", 64.0), "input.size: found 64.0, expected an integer"),
    (set_to("input", "size", 8192), "input.size: found 8192, expected at least 32 and at most 4096"),
    (set_to("input", "dtype", "int8"), 'input.dtype: found "int8", expected "uint8" or "float32"'),
    (set_to("decision_threshold", "value", "0.5"), 'decision_threshold.value: found "0.5", expected a number'),
    (set_to("decision_threshold", "method", "guess"), "decision_threshold.method"),
    (set_to("files", 0, "sha256", "ab"), "files[0].sha256"),
    (set_to("files", 0, "path", "../model.onnx"), 'files[0].path: found "../model.onnx", expected a plain path inside'),
    (set_to("files", 0, "path", "golden/../../x"), "files[0].path"),
    (set_to("files", 0, "path", "/etc/passwd"), "files[0].path"),
    (set_to("files", 0, "path", "C:\\model.onnx"), "files[0].path"),
    (set_to("files", 0, "path", "golden\\01.png"), "files[0].path"),
    (set_to("files", 0, "path", ".hidden"), "files[0].path"),
    (set_to("files", 0, "path", ""), "files[0].path"),
    (set_to("files", 0, "bytes", 1 << 40), "files[0].bytes: found 1099511627776"),
    (set_to("golden", []), "golden: 0 items, expected 8 to 64"),
    (set_to("golden", 0, "map", "stride", 0), "golden[0].map.stride: found 0"),
    (set_to("target", "cpu; rm"), "target"),
]


@pytest.mark.parametrize(("change", "line"), WRONG)
def test_reader_and_schema_refuse_the_same(
    good: dict[str, Any], tmp_path: Path, change: Callable[[Any], None], line: str
) -> None:
    change(good)
    assert line in refusal(good, tmp_path)
    valid_as_a_whole_number = line.startswith("input.size: found 64.0")  # JSON Schema calls 64.0 an integer
    assert valid_as_a_whole_number or not jsonschema.Draft202012Validator(SCHEMA).is_valid(good)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (set_to("files", 0, "path", "model.onnx\n"), "files[0].path"),
        (set_to("files", 1, "path", "MODEL.onnx"), "files: a path is listed twice"),
        (set_to("files", 1, "path", "manifest.json"), "files: a path is listed twice, or the manifest itself is"),
        (set_to("artifact", "other.onnx"), "artifact: other.onnx is not in files"),
        (set_to("input", "size", 65), "input.size: found 65, expected a multiple of 32"),
        (set_to("input", "size", 96), "outputs.anomaly_map.shape: expected [1, 1, 96, 96]"),
        (set_to("outputs", "anomaly_map", "shape", [1, 1, 99999, 99999]), "outputs.anomaly_map.shape"),
        (set_to("decision_threshold", "value", 0.0), "decision_threshold: value < median_score"),
        (set_to("verdict_delta", 0.5), "verdict_delta: expected"),
        (set_to("golden", 1, "image", "golden/99.png"), "golden[1]: golden/99.png is not in files"),
        (set_to("golden", 1, "tensor", "shape", [64, 64, 3000]), "golden[1].tensor.shape: expected [64, 64, 3]"),
        (set_to("golden", 1, "map", "shape", [40000, 40000]), "golden[1].map.shape: expected [64, 64]"),
        (set_to("golden", 1, "map", "offset", 64), "golden[1].map.shape"),
        (set_to("golden", 1, "tensor", "file", "golden/01.f32"), "golden[1].tensor: 16384 bytes, expected 12288"),
        (set_to("golden", 1, "map", "file", "golden/01.rgb"), "golden[1].map: 12288 bytes, expected 16384"),
        (set_to("files", 1, "bytes", 9_000_000), "golden: 9"),
    ],
)
def test_contradictions_are_refused(
    good: dict[str, Any], tmp_path: Path, change: Callable[[Any], None], line: str
) -> None:
    change(good)
    assert line in refusal(good, tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], "9\u001b[31m"])
def test_another_version_is_reported_before_anything_else(good: dict[str, Any], tmp_path: Path, version: Any) -> None:
    newer = copy.deepcopy(good) | {"format_version": version, "another": "field"}
    line = refusal(newer, tmp_path)
    assert "this release reads 1; install the release that wrote it or export again" in line
    assert "\u001b" not in line


def test_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    assert "expected an object" in refusal([1, 2], tmp_path)


def test_nan_is_refused(good: dict[str, Any], tmp_path: Path) -> None:
    good["decision_threshold"]["value"] = float("nan")
    assert "NaN is not a JSON number" in refusal(good, tmp_path)


def test_manifest_above_a_mebibyte_is_refused(good: dict[str, Any], tmp_path: Path) -> None:
    good["provenance"]["long"] = "x" * (1 << 20)
    assert "larger than 1048576 bytes" in refusal(good, tmp_path)
