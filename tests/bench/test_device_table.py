"""README's table of devices says what the recorded benches say."""

import subprocess
import sys
from pathlib import Path

import pytest

from stlm_edge.bench.result import read_bench
from stlm_edge.commands.bench import main
from stlm_edge.errors import UsageError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from table import BEGIN, DEVICES, END, with_table  # noqa: E402


def test_readme_s_table_is_what_the_recorded_benches_give() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "table.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    recorded = sorted(DEVICES.glob("*.json"))
    assert recorded
    for bench in map(read_bench, recorded):
        assert all(row.passed for row in bench.rows), "a row that failed is no measurement"


@pytest.mark.usefixtures("without_report")
def test_a_bench_becomes_a_row_and_what_stood_there_goes(tiny_bundle: Path, tmp_path: Path) -> None:
    main(["--bundle", str(tiny_bundle), "--queries", "50", "--seconds", "0", "--out", str(tmp_path)])
    bench = read_bench(tmp_path / "bench.json")
    readme = with_table(f"before\n{BEGIN}typed by hand\n{END}after\n", [bench])
    assert "typed by hand" not in readme
    assert readme.startswith(f"before\n{BEGIN}| device |")
    assert readme.endswith(f"{END}after\n")
    row = readme.splitlines()[4]
    assert "| onnxruntime | fp32 |" in row
    assert "| 8 of 8 |" in row
    assert row.endswith(f"| {bench.date[:10]} |")
    assert with_table(readme, [bench]) == readme


def test_a_readme_without_its_marks_is_refused() -> None:
    with pytest.raises(UsageError, match="were expected around"):
        with_table("no table here", [])
