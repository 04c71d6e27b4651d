"""The .tflite that an export for android writes, run by the app's own model class on a JVM.

LiteRT's classes are those of `litert/`, which call the library inside Python's wheel.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import ai_edge_litert
import jdk
import jsonschema
import pytest

from stlm_edge.bench.latency import parity_of
from stlm_edge.bench.result import schema
from stlm_edge.bundle import open_bundle

if TYPE_CHECKING:
    from stlm_edge.export import Exported

LIBRARY = Path(ai_edge_litert.__file__).parent / "libLiteRt.so"


@pytest.fixture(scope="module")
def bundles(
    exported_for_android: dict[str, Exported],
    tiny_bundle: Path,
    core_classes: Path,
    core_test_classes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the bundles and, beside each, what Java found of it."""
    folder = tmp_path_factory.mktemp("android")
    for precision, exported in exported_for_android.items():
        shutil.copytree(exported.folder, folder / precision)
        (folder / f"{precision}-maps").mkdir()
        bundle = open_bundle(exported.folder, threads=1)
        for number, golden in enumerate(bundle.golden()):
            bundle.runtime.run(golden.tensor)[0].tofile(folder / f"{precision}-maps/{number}.f32")
    shutil.copytree(tiny_bundle, folder / "onnx")
    properties = {"litert": LIBRARY, "bundles": folder}
    select = ["--select-class", "org.stlm_edge.demo.LiteRtModelTest"]
    jdk.junit(core_test_classes, [core_classes, jdk.GSON, jdk.JNA], properties, *select)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_java_gives_the_verdicts_and_the_parity_that_python_gives(bundles: Path, precision: str) -> None:
    found = json.loads((bundles / f"{precision}.json").read_text())
    jsonschema.validate(found, schema())
    (row,) = found["rows"]
    bundle = open_bundle(bundles / precision, threads=1)
    total, answers, wrong = parity_of(bundle.runtime, bundle, precision)
    assert row["passed"] is not bool(wrong)
    assert [golden["verdict"] for golden in row["golden"]] == [answer.verdict for answer in answers]
    scores = [golden["score"] for golden in row["golden"]]
    assert scores == pytest.approx([answer.score for answer in answers], abs=1e-6)
    expected = vars(total) | {"resize_max_diff": pytest.approx(total.resize_max_diff, abs=1)}
    assert row["parity"] == {key: pytest.approx(value, abs=1e-6) for key, value in expected.items()}
    assert row["latency_ms"]["p50"] > 0
    assert row["end_to_end_ms"]["p50"] > 0
    assert row["queries"] == 20
