"""The report in a real browser, narrow and wide, light and dark."""

import csv
import dataclasses
import io
import json
import subprocess
from pathlib import Path

import pytest
from test_report import desk_and_board, evaluation, run_folder

from stlm_edge.bench.latency import parity_of, worst_of
from stlm_edge.bundle import open_bundle
from stlm_edge.report.report import write_report

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def seen(node: str, chromium: str, tools: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a browser makes of a report that has everything: devices, one of them lost, all charts, images, files."""
    folder = tmp_path_factory.mktemp("report")
    bundle = open_bundle(tiny_bundle)
    _, answers, _ = parity_of(bundle.runtime, bundle, "fp32")
    worst = dataclasses.asdict(worst_of(bundle.runtime, bundle, answers))
    parts = [{"name": name, "ms": 9.0, "gflop": 1.5, "megabytes": 150.0} for name in ("encoders", "decoder")]
    given = desk_and_board()
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
        "files": ["bench.json", "rows.csv"],
    }
    command = [node, str(HERE / "report.mjs"), json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "given": given, "shots": sorted(path.name for path in folder.glob("*.png"))}


def test_it_fits_a_phone_and_a_desk_and_hinders_nobody(seen: dict) -> None:
    assert seen["problems"] == []
    assert seen["shots"] == ["dark-1280.png", "dark-390.png", "light-1280.png", "light-390.png"]


def test_it_shows_itself_whole_without_a_network(seen: dict) -> None:
    assert seen["heading"] == "Same verdicts as the trained model on 1 of 2 devices; 1 more gave no answer"
    assert (seen["fetched"], seen["console"], seen["blank"]) == ([], [], [])


def test_its_files_can_be_saved(seen: dict) -> None:
    assert json.loads(seen["downloads"]["bench.json"]) == seen["given"]
    lines = list(csv.DictReader(io.StringIO(seen["downloads"]["rows.csv"], newline="")))
    assert [line["name"] for line in lines] == [each["name"] for each in seen["given"]["rows"]]
