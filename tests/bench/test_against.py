"""--against: an earlier bench.json as the baseline of a later one."""

import json
from pathlib import Path

import pytest

from stlm_edge.commands.bench import main

QUICK = ["--queries", "200", "--seconds", "0"]


@pytest.fixture(scope="module")
def earlier(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("earlier")
    main(["--bundle", str(tiny_bundle), *QUICK, "--out", str(out)])
    return out / "bench.json"


def scaled(earlier: Path, path: Path, factor: float) -> Path:
    """Write the earlier bench as it would be on a machine slower by this factor."""
    bench = json.loads(earlier.read_text("utf-8"))
    for row in bench["rows"]:
        row["round_p50_ms"] = [factor * value for value in row["round_p50_ms"]]
    path.write_text(json.dumps(bench), encoding="utf-8")
    return path


@pytest.mark.usefixtures("without_report")
def test_a_slower_row_is_a_regression(
    tiny_bundle: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ten_times_as_fast = scaled(earlier, tmp_path / "fast.json", 0.1)
    with pytest.raises(SystemExit) as left:
        main(
            ["--bundle", str(tiny_bundle), *QUICK, "--out", str(tmp_path / "out"), "--against", str(ten_times_as_fast)]
        )
    assert left.value.code == 1
    assert "slower by +" in capsys.readouterr().err
    assert (tmp_path / "out" / "bench.json").exists()


@pytest.mark.usefixtures("without_report")
def test_a_faster_row_is_no_regression(
    tiny_bundle: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = scaled(earlier, tmp_path / "slow.json", 10)
    main(["--bundle", str(tiny_bundle), *QUICK, "--out", str(tmp_path / "out"), "--against", str(slow)])
    assert "within 5%" in capsys.readouterr().err


def test_a_row_that_now_fails_is_a_regression(earlier: Path) -> None:
    from dataclasses import replace

    from stlm_edge.bench.other_benches import changes
    from stlm_edge.bench.result import read_bench

    before = read_bench(earlier)
    (change,) = changes(before, [replace(before.rows[0], passed=False, failure="2 of 8 verdicts fail")], 0.05)
    assert change.regressed
    assert "2 of 8 verdicts fail" in change.text


@pytest.mark.parametrize(
    ("content", "line"),
    [("{}", "format_version"), ("nonsense", "not valid JSON"), (None, "cannot be read")],
)
def test_an_invalid_baseline_is_refused_before_measuring(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, line: str
) -> None:
    if content is not None:
        (tmp_path / "bench.json").write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main(["--bundle", str(tiny_bundle), "--out", str(tmp_path / "out"), "--against", str(tmp_path / "bench.json")])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert line in error, error
    assert not (tmp_path / "out").exists()


def test_a_baseline_without_common_rows_is_refused(
    tiny_bundle: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(tiny_bundle), *QUICK, "--threads", "2", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--against", str(earlier)])
    assert left.value.code == 2
    assert "--against: has no row" in capsys.readouterr().err
