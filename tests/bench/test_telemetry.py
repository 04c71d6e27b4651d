"""Sensors and energy while rows are timed, by fake nvidia-smi and tegrastats; emulators; throttling."""

import os
import sys
import time
from pathlib import Path

import pytest
from test_jetson import JETPACK_6, JETPACK_7_2, write

from stlm_edge.bench.machine import system, telemetry
from stlm_edge.bench.machine.nvidia import Reading, parse_nvidia_smi
from stlm_edge.bench.machine.telemetry import board_milliwatts, read_rails, watching
from stlm_edge.bench.measure import Plan, Subject, measure, unmeasured
from stlm_edge.bundle import open_bundle

ONE = "NVIDIA GeForce RTX 4070, 550.54.14, 2475, 10501, 61, 97, 1234"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts a fake program on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    return write


def test_nvidia_smi_is_read() -> None:
    one = parse_nvidia_smi(ONE + "\n")
    assert one.gpu == "NVIDIA GeForce RTX 4070, driver 550.54.14"
    assert (one.clocks, one.celsius) == ({"GPU": 2475.0, "GPU memory": 10501.0}, {"GPU": 61.0})
    assert (one.gpu_percent, one.memory_mb) == (97.0, 1234.0)
    two = parse_nvidia_smi(f"{ONE}\n{ONE.replace('4070', '3060').replace('61', '[N/A]')}\n")
    assert two.gpu == "NVIDIA GeForce RTX 4070 and NVIDIA GeForce RTX 3060, driver 550.54.14"
    assert two.celsius == {"GPU 0": 61.0}
    for text in ("", "No devices were found\n", "Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n"):
        assert parse_nvidia_smi(text) == Reading()


def test_a_gpu_is_part_of_the_machine(tool) -> None:
    tool("nvidia-smi", f'echo "{ONE}"')
    machine = system.describe((), system.moment())
    assert machine.gpu == "NVIDIA GeForce RTX 4070, driver 550.54.14"
    assert machine.clocks["GPU"] == 2475.0
    assert machine.celsius_before["GPU"] == machine.celsius_after["GPU"] == 61.0
    tool("nvidia-smi", "exit 9")
    assert system.describe().gpu is None


@pytest.mark.xdist_group("timing")
@pytest.mark.usefixtures("without_report")
def test_a_row_has_telemetry_of_the_time_it_was_timed(tool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "INTERVAL_S", 0.1)
    cooler = JETPACK_7_2.replace("[1020,1020]", "[510,510]").replace("52.9C/52.9C", "40C/40C")
    tool("tegrastats", f"while echo '{cooler}'; do sleep 0.1; echo '{JETPACK_7_2}'; sleep 0.1; done")
    bundle = open_bundle(tiny_bundle)
    (row,) = measure([Subject(unmeasured(bundle, 1, 1), bundle)], Plan(20, 2.0), lambda _: None)
    assert row.telemetry is not None
    assert row.telemetry.readings > 3
    low, mean, high = row.telemetry.clocks["GPU"]
    assert (low, high) == (510, 1020)
    assert low < mean < high
    assert row.telemetry.celsius["cpu"] == 52.9
    assert (row.telemetry.gpu_percent, row.telemetry.memory_mb) == (12.0, 4100.0)


def test_a_machine_without_sensors_has_no_telemetry() -> None:
    assert telemetry.summary([]) is None
    assert telemetry.summary([Reading()]) is None


def test_an_emulator_is_detected_behind_its_forged_maps(tmp_path: Path) -> None:
    maps = tmp_path / "proc" / "thread-self" / "maps"
    maps.parent.mkdir(parents=True)
    line = "00400000-00401000 r-xp 00000000 08:01 1234                       "
    for program, found in {
        "/usr/bin/qemu-aarch64-static": "qemu-aarch64-static",
        "/usr/local/bin/box64": "box64",
        "/usr/bin/python3.11": None,
        "/home/me/qemu-tests/python3": None,
        "": None,
    }.items():
        maps.write_text(f"{line}{program}\n")
        assert system.emulator(tmp_path) == found
    assert system.emulator() is None, sys.platform


def test_power_rails_are_read(tmp_path: Path) -> None:
    monitor = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/"
    root = write(
        tmp_path,
        {
            **{monitor + "in1_label": "VDD_IN\n", monitor + "in1_input": "5000\n", monitor + "curr1_input": "1200\n"},
            **{monitor + "in2_label": "VDD_SOC\n", monitor + "in2_input": "5000\n", monitor + "curr2_input": "300\n"},
            monitor + "in3_label": "broken\n",
        },
    )
    assert read_rails(root) == {"VDD_IN": 6000.0, "VDD_SOC": 1500.0}
    assert board_milliwatts(read_rails(root)) == 6000.0


def test_power_of_unknown_rails_is_none() -> None:
    agx_orin = {"VDD_GPU_SOC": 2000.0, "VDD_CPU_CV": 400.0, "VIN_SYS_5V0": 3000.0, "VDDQ_VDD2_1V8AO": 400.0}
    assert board_milliwatts(agx_orin) == 5400.0
    assert board_milliwatts({"VDD_GPU": 2000.0}) is None
    assert board_milliwatts({}) is None


@pytest.mark.xdist_group("timing")
def test_energy_is_power_times_time(monkeypatch: pytest.MonkeyPatch) -> None:
    power = {"VDD_IN": 2000.0}
    monkeypatch.setattr(telemetry, "read_rails", lambda: power)
    with watching() as watch:
        start, began = watch.millijoules(), time.monotonic()
        time.sleep(0.35)
        used, seconds = watch.millijoules() - start, time.monotonic() - began
        assert used == pytest.approx(2000.0 * seconds, rel=0.05)
        power["VDD_IN"] = 0.0
        watch.millijoules()
        nothing = watch.millijoules()
        time.sleep(0.15)
        assert watch.millijoules() == nothing


@pytest.mark.xdist_group("timing")
def test_tegrastats_measures_power_without_readable_rails(tool) -> None:
    tool("tegrastats", f"while echo '{JETPACK_6}'; do sleep 0.05; done")
    with watching() as watch:
        start, began = watch.millijoules(), time.monotonic()
        time.sleep(0.3)
        end, seconds = watch.millijoules(), time.monotonic() - began
    assert start is not None
    assert end is not None
    assert end - start == pytest.approx(4970.0 * seconds, rel=0.05)


def test_a_machine_without_a_meter_has_no_energy() -> None:
    with watching() as watch:
        assert watch.millijoules() is None


def test_throttling_is_counted_during_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core, current = "cpus/cpu0/thermal_throttle/core_throttle_count", "hwmon/hwmon3/oc2_event_cnt"
    write(tmp_path, {core: "7\n", current: "1\n"})
    monkeypatch.setattr(system, "_CPUS", tmp_path / "cpus")
    monkeypatch.setattr(system, "_HWMON", tmp_path / "hwmon")
    before = system.moment()
    assert system.describe((), before).throttling_events == 0
    write(tmp_path, {core: "9\n", current: "2\n"})
    assert system.describe((), before).throttling_events == 3


def test_a_raspberry_pi_that_throttled_before_cannot_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"get_throttled": "0\n"})
    monkeypatch.setattr(system, "_CPUS", tmp_path)
    monkeypatch.setattr(system, "_HWMON", tmp_path)
    monkeypatch.setattr(system, "_FIRMWARE", tmp_path / "get_throttled")
    fresh = system.moment()
    write(tmp_path, {"get_throttled": "50005\n"})
    assert system.describe((), fresh).throttling_events == 2
    assert system.describe((), system.moment()).throttling_events is None
