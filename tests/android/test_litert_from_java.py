"""The .tflite of an export for android, run by the app's own model class on a JVM.

The LiteRT classes are those of `litert/`, which call the library in Python's wheel.
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

import stlm_edge
from stlm_edge.bench.latency import parity_of
from stlm_edge.bundle import open_bundle
from stlm_edge.data.demo import write_demo
from stlm_edge.export.pipeline import export
from stlm_edge.training.job import Job
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.train import train

if TYPE_CHECKING:
    from stlm_edge.export.pipeline import Exported

SCHEMA = json.loads((Path(stlm_edge.__file__).parent / "schemas" / "bench-1.schema.json").read_text("utf-8"))
FOR_EACH_BUNDLE = ("anExportedBundleSaysWhatItSaysInPython", "aLoneModelKnowsItsThreshold")
LIBRARY = Path(ai_edge_litert.__file__).parent / "libLiteRt.so"


@pytest.fixture(scope="module")
def bundles(
    exported_for_android: dict[str, Exported],
    tiny_bundle: Path,
    core_classes: Path,
    core_test_classes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the bundles and, beside each, the bench.json that Java wrote."""
    folder = tmp_path_factory.mktemp("android")
    for precision, exported in exported_for_android.items():
        lay_out(exported.folder, folder, precision)
    shutil.copytree(tiny_bundle, folder / "onnx")
    properties = {"litert": LIBRARY, "bundles": folder}
    select = ["--select-class", "org.stlm_edge.demo.LiteRtModelTest"]
    jdk.junit(core_test_classes, [core_classes, jdk.GSON, jdk.JNA], properties, *select)
    return folder


def lay_out(bundle_folder: Path, folder: Path, precision: str) -> None:
    """Copy the bundle, and write beside it the maps of Python's interpreter for its golden images."""
    shutil.copytree(bundle_folder, folder / precision)
    (folder / f"{precision}-maps").mkdir()
    bundle = open_bundle(bundle_folder, threads=1)
    for number, golden in enumerate(bundle.golden()):
        bundle.runtime.run(golden.tensor)[0].tofile(folder / f"{precision}-maps/{number}.f32")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_java_gives_the_same_verdicts_and_parity_as_python(bundles: Path, precision: str) -> None:
    found = json.loads((bundles / f"{precision}.json").read_text())
    jsonschema.validate(found, SCHEMA)
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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_network_gives_the_same_results_in_java(
    core_classes: Path, core_test_classes: Path, tmp_path: Path
) -> None:
    checkpoint = train(Job(write_demo(tmp_path / "data"), RECIPES["quick"].longer(0.05), 224), tmp_path / "run")
    done = export("android", checkpoint=checkpoint, out=tmp_path / "bundle")
    (tmp_path / "bundles").mkdir()
    lay_out(done.folder, tmp_path / "bundles", done.manifest.precision)
    select = [f"org.stlm_edge.demo.LiteRtModelTest#{name}(java.lang.String)" for name in FOR_EACH_BUNDLE]
    words = [word for name in select for word in ("--select-method", name)]
    properties = {"litert": LIBRARY, "bundles": tmp_path / "bundles"}
    jdk.junit(core_test_classes, [core_classes, jdk.GSON, jdk.JNA], properties, *words)
    (row,) = json.loads((tmp_path / f"bundles/{done.manifest.precision}.json").read_text())["rows"]
    assert row["passed"]
    assert row["size_mb"] > 15
