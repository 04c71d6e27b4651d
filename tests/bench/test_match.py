"""Assignment of bundles to devices and runtimes, and rows of other bench.json files beside them."""

import json
import shutil
from pathlib import Path

import pytest

from stlm_edge.bench.devices.device import parse_device
from stlm_edge.bench.measure import Plan
from stlm_edge.bench.subjects import Capabilities, assigned, is_for
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.bench import main, parser, plan_of
from stlm_edge.errors import UsageError

QUICK = ["--queries", "30", "--seconds", "0"]
RUNTIMES = {"cpu": "onnxruntime", "jetson": "tensorrt", "android": "litert", "ios": "coreml", "web": "onnxruntime-web"}


@pytest.fixture
def bundles(tiny_bundle: Path, tmp_path: Path) -> dict[str, Path]:
    """Return copies of the tiny bundle by the target in their manifest; only that of cpu can be run."""
    found = {}
    for target, runtime in RUNTIMES.items():
        found[target] = tmp_path / target
        shutil.copytree(tiny_bundle, found[target])
        manifest = found[target] / "manifest.json"
        text = manifest.read_text().replace('"target": "cpu"', f'"target": "{target}"')
        manifest.write_text(text.replace('"runtime": "onnxruntime"', f'"runtime": "{runtime}"'))
    return found


def bench(out: Path, *given: str, exit_code: int = 0) -> dict:
    arguments = [*given, *QUICK, "--out", str(out)]
    if exit_code:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == exit_code
    else:
        main(arguments)
    return json.loads((out / "bench.json").read_text("utf-8"))


def test_bundles_are_assigned_to_the_devices_of_their_target(bundles: dict[str, Path]) -> None:
    devices = [parse_device(name) for name in ("local", "ssh:nano", "adb", "web")]
    opened = [open_bundle(folder) for folder in bundles.values()]
    found = assigned(devices, opened)
    names = {name: [opened[number].manifest.target for number in numbers] for name, numbers in found.items()}
    assert names == {
        "local": ["cpu", "jetson", "ios"],
        "ssh:nano": ["cpu", "jetson"],
        "adb": ["android"],
        "web": ["web"],
    }
    assert assigned([parse_device("web")], opened[:1]) == {"web": [0]}, "where nothing else is asked for"


def test_a_machine_among_several_gets_the_bundles_that_it_can_run(bundles: dict[str, Path]) -> None:
    desktop = Capabilities(frozenset({"onnxruntime", "tensorrt"}), jetson=False)
    nano = Capabilities(frozenset({"tensorrt"}), jetson=True)
    takes = {
        name: [target for target, folder in bundles.items() if is_for(open_bundle(folder).manifest, machine)]
        for name, machine in {"desktop": desktop, "nano": nano}.items()
    }
    assert takes == {"desktop": ["cpu", "web"], "nano": ["jetson"]}


def test_a_bundle_without_device_or_device_without_bundle_is_refused(bundles: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="android, and no device here runs litert; found --device web, expected adb"):
        assigned([parse_device("web")], [open_bundle(bundles["android"])])
    with pytest.raises(UsageError, match="--device adb: no bundle is for it, they are for cpu"):
        assigned([parse_device("adb"), parse_device("local")], [open_bundle(bundles["cpu"])])


@pytest.mark.usefixtures("without_report")
def test_runtime_all_runs_a_bundle_by_each_installed_runtime(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = bench(tmp_path / "out", "--bundle", str(tiny_bundle), "--runtime", "all")
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) >= {"tiny by onnxruntime", "tiny by openvino"}
    assert not any("azure" in name for name in rows), "it calls a remote service"
    assert all(row["passed"] and row["latency_ms"] for row in rows.values())
    (placed,) = rows["tiny by openvino"]["placement"]
    assert (placed["by"], placed["fell_back"]) == ("CPU", False)
    assert placed["nodes"] > 3
    assert set(found["machine"]["packages"]) >= {"onnxruntime", "openvino"}


def test_max_regression_is_a_percentage() -> None:
    allowed = [parser().parse_args(["--max-regression", text]).max_regression for text in ("5%", "5", "0.5%", "0")]
    assert allowed == [0.05, 0.05, 0.005, 0.0]


def test_default_plan() -> None:
    usual, quick = (plan_of(parser().parse_args(given)) for given in ([], ["--quick"]))
    assert (usual.queries, usual.seconds) == (1024, 60.0) == (Plan().queries, Plan().seconds)
    assert (quick.queries, quick.seconds) == (128, 10.0)
    assert usual.time_limit_s == 7200
    assert parser().parse_args([]).out == "bench"


def test_with_adds_the_rows_of_other_files(tiny_bundle: Path, tmp_path: Path) -> None:
    first = bench(tmp_path / "phone", "--bundle", str(tiny_bundle))
    first["rows"][0] |= {"passed": False, "failure": "2 of 8 verdicts fail"}
    (tmp_path / "phone" / "bench.json").write_text(json.dumps(first))
    other = ["--with", str(tmp_path / "phone" / "bench.json")]
    found = bench(tmp_path / "both", "--bundle", str(tiny_bundle), *other)  # 0: what failed there isn't of this run
    assert [(row["device"], row["passed"]) for row in found["rows"]] == [(None, True), ("phone", False)]
    (device,) = found["devices"]
    assert (device["name"], device["date"]) == ("phone", first["date"])
    assert device["machine"]["architecture"] == first["machine"]["architecture"]
    again = bench(tmp_path / "again", "--with", str(tmp_path / "both" / "bench.json"), *other)
    assert [row["device"] for row in again["rows"]] == ["both", "phone", "phone (2)"]
    assert {device["date"] for device in again["devices"]} == {first["date"], found["date"]}
    assert "phone (2)" in (tmp_path / "again" / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("without_report")
def test_with_refuses_rows_of_an_unlisted_device(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench(tmp_path / "one", "--bundle", str(tiny_bundle))
    found["rows"][0]["device"] = "nobody"
    (tmp_path / "bad.json").write_text(json.dumps(found))
    bench_all = ["--with", str(tmp_path / "bad.json"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as left:
        main(bench_all)
    assert left.value.code == 2
    assert "its row 'tiny' is of 'nobody', which is not among its devices" in capsys.readouterr().err
