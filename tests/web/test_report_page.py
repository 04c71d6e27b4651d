"""The report in a real browser, narrow and wide, light and dark."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from test_report import evaluation, host_and_board, run_folder

from stlm_edge.bench.latency import parity_of, worst_of
from stlm_edge.bundle import open_bundle
from stlm_edge.report.report import write_report

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def seen(node: str, chromium: str, tools: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A browser's view of a report with everything: devices, one of them lost, all charts, images."""
    folder = tmp_path_factory.mktemp("report")
    bundle = open_bundle(tiny_bundle)
    _, answers, _ = parity_of(bundle.runtime, bundle, "fp32")
    worst = dataclasses.asdict(worst_of(bundle.runtime, bundle, answers))
    parts = [{"name": name, "ms": 9.0, "gflop": 1.5, "megabytes": 150.0} for name in ("encoders", "decoder")]
    given = host_and_board()
    given["rows"][0] |= {
        "bundle": "b",
        "worst": json.loads(json.dumps(worst)),
        "quantiles_ms": [50 + percent / 10 for percent in range(101)],
        "profile": {"parts": parts, "gflop_per_second": 200.0, "gigabyte_per_second": 20.0},
        "accuracy": {"image_auroc": 0.99, "pixel_auroc": 0.9, "aupro": None},
        "placement": [{"by": "CPUExecutionProvider", "nodes": 40, "fell_back": True}],
    }
    given["rows"][1]["golden"][3] |= {"verdict": "flip", "max_abs_diff": None}
    run = run_folder(folder / "run")
    write_report(folder / "report.html", given, run, evaluation(run / "evaluation"), {"b": bundle})
    config = {
        "chromium": chromium,
        "tools": str(tools),
        "report": (folder / "report.html").as_uri(),
        "shots": str(folder),
    }
    command = [node, str(HERE / "report.mjs"), json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "shots": sorted(path.name for path in folder.glob("*.png"))}


def test_page_fits_phone_and_desktop_and_is_accessible(seen: dict) -> None:
    assert seen["problems"] == []
    assert seen["shots"] == ["dark-1280.png", "dark-390.png", "light-1280.png", "light-390.png"]


def test_page_is_complete_without_a_network(seen: dict) -> None:
    assert seen["heading"] == "Same verdicts as the trained model on 1 of 2 devices; 1 more returned no result"
    assert (seen["fetched"], seen["console"], seen["blank"]) == ([], [], [])
