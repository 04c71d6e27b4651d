"""benchmarks/peers.py: what it refuses, that a peer which can't be had is a row, and the table's honesty."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import peers  # noqa: E402

from stlm_edge.errors import JobError, UsageError  # noqa: E402

MEASURED = {"max_abs_diff": 2e-6, "verdict_flips": 1, "verdict_failures": 0, "images": 24}


def row(**known):
    return vars(peers.Row("EfficientAD-S", "fp32", 256, "random", **known))


def test_what_was_not_measured_has_no_figure():
    _, _, line = peers.table({"rows": [row(failure="not installed: no such version")]})
    assert "not installed: no such version" in line
    assert not set("0123456789") & set(line.replace("EfficientAD-S", "").replace("256", "").replace("fp32", ""))


def test_a_measured_row_shows_its_weights_and_its_flips():
    known = row(parity=MEASURED, gate=[], p50_ms=812.4, ratio=6.31, size_mb=32.4, peak_memory_mb=210.0, gflops=75.9)
    cells = [cell.strip() for cell in peers.table({"rows": [known]})[2].strip("| ").split("|")]
    assert cells == [
        *("256", "EfficientAD-S", "random", "fp32", "812", "6.31", "210", "32.4", "75.9"),
        *("1, 0 of 24", "2e-06", "holds", "not compared"),
    ]


def test_a_gate_that_found_something_fails():
    line = peers.table({"rows": [row(parity=MEASURED, gate=["2 of 24 verdicts fail"])]})[2]
    assert "| fails |" in line


def test_a_ratio_is_taken_within_turns_so_that_a_busy_moment_does_not_count():
    assert peers.ratio([200, 900, 210], [100, 450, 105]) == 2
    assert np.median([200, 900, 210]) / np.median([100, 450, 105]) == 2
    assert peers.ratio([200, 2000, 900], [100, 1000, 450]) == 2


def test_the_table_replaces_only_what_is_between_its_marks():
    readme = "before\n" + peers.BEGIN + "old\n" + peers.END + "after\n"
    once = peers.with_table(readme, {"rows": [row(failure="gone")]})
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once
    assert peers.with_table(once, {"rows": [row(failure="gone")]}) == once
    with pytest.raises(UsageError, match="were expected around its table of peers"):
        peers.with_table("no marks", {"rows": []})


@pytest.mark.skipif(not (ROOT / "benchmarks/results/peers.json").is_file(), reason="no recorded run")
def test_the_recorded_table_is_what_the_recorded_run_gives():
    readme = peers.README.read_text("utf-8")
    assert peers.with_table(readme, peers.read(ROOT / "benchmarks" / "results" / "peers.json")) == readme


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "error: --checkpoint and --data and --out not given; expected --checkpoint F --data DIR --out F.json"),
        (("--size", "250"), "error: --size: found 250, expected a multiple of 32 up to 512, such as 256"),
        (("--rounds", "0"), "error: --rounds: found 0, expected at least 1"),
    ],
)
def test_refusals_take_one_line(tmp_path, monkeypatch, capsys, arguments, says):
    given = ["--checkpoint", "F", "--data", "D", "--out", str(tmp_path / "o.json")] if arguments else []
    monkeypatch.setattr(sys, "argv", ["peers.py", *given, *arguments])
    with pytest.raises(SystemExit) as left:
        peers.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.strip() == says
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_network_is_told_in_one_line(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((1, 32, 32, 3), np.uint8))
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(JobError) as refused:
        peers.Worker("packed", tmp_path / "model.onnx", tmp_path / "images.npy")
    assert "model.onnx" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_peer_that_was_not_installed_is_two_rows_that_say_why(tmp_path):
    rows, files = [], {}
    peers.peer("PatchCore", peers.Images(tmp_path, 256, [], [], []), None, "not installed: offline", files, rows)
    assert [(r.precision, r.failure) for r in rows] == [(p, "not installed: offline") for p in ("fp32", "int8")]
    assert not files
    json.dumps([vars(r) for r in rows], allow_nan=False)
