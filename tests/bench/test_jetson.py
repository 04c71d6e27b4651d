"""Output of a Jetson's tools in the form of each JetPack's documentation; no Jetson has run this yet."""

from pathlib import Path

import pytest

from stlm_edge.bench.machine.jetson import (
    Clock,
    jetpack,
    parse_jetson_clocks,
    parse_nvpmodel,
    parse_release,
    power_mode,
    read_jetson,
)
from stlm_edge.bench.machine.nvidia import parse_tegrastats
from stlm_edge.errors import JobError, UsageError

JETPACK_4 = (
    "RAM 1903/3964MB (lfb 2x2MB) SWAP 8/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [12%@1479,off,off,5%@1479] "
    "EMC_FREQ 1%@1600 GR3D_FREQ 99%@921 APE 25 PLL@38C CPU@41.5C PMIC@100C GPU@40C AO@46.5C thermal@41C "
    "POM_5V_IN 4123/3987 POM_5V_GPU 1320/1211 POM_5V_CPU 560/571"
)
JETPACK_5 = (
    "11-23-2026 09:00:01 RAM 3396/30536MB (lfb 5770x4MB) SWAP 0/15268MB (cached 0MB) CPU [7%@1190,0%@1190,off,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 10%@[1300,1300] VIC_FREQ 115 APE 174 CV0@-256C CPU@46.5C Tboard@35C GPU@-256C "
    "tj@46.5C VDD_GPU_SOC 2390mW/2401mW VDD_CPU_CV 398mW/398mW VIN_SYS_5V0 3020mW/3021mW NC 0mW/0mW"
)
JETPACK_6 = (
    "RAM 20642/62817MB (lfb 1x2MB) SWAP 0/31408MB (cached 0MB) CPU [1%@729,0%@729,0%@729,off] GR3D_FREQ 10% "
    "cpu@52.9C soc2@48.2C gpu@-256C tj@52.9C VDD_IN 4970mW/5012mW VDD_CPU_GPU_CV 912mW/930mW VDD_SOC 1454mW/1454mW"
)
JETPACK_7_0_THOR = "RAM 5121/125772MB (lfb 4x4MB) CPU [0%@972,1%@972] GR3D_FREQ @[1000,1000,1000] cpu@41.2C tj@42C"
JETPACK_7_2 = (
    "11-23-2026 09:00:01 RAM 4100/15656MB (lfb 8x4MB) CPU [3%@1728,2%@1728] GR3D_FREQ 12%@[1020,1020] "
    "cpu@52.9C/52.9C gpu@51.1C/50.9C cv0@-256C/-256C VDD_IN 7411mW/7390mW/7402mW VDD_SOC 1500mW/1500mW/1500mW"
)


@pytest.mark.parametrize(
    ("line", "memory", "percent", "clock", "celsius", "milliwatts"),
    [
        (
            *(JETPACK_4, 1903, 99, 921),
            {"PLL": 38.0, "CPU": 41.5, "PMIC": 100.0, "GPU": 40.0, "AO": 46.5, "thermal": 41.0},
            {"POM_5V_IN": 4123.0, "POM_5V_GPU": 1320.0, "POM_5V_CPU": 560.0},
        ),
        (
            *(JETPACK_5, 3396, 10, 1300),
            {"CPU": 46.5, "Tboard": 35.0, "tj": 46.5},
            {"VDD_GPU_SOC": 2390.0, "VDD_CPU_CV": 398.0, "VIN_SYS_5V0": 3020.0},
        ),
        (
            *(JETPACK_6, 20642, 10, None),
            {"cpu": 52.9, "soc2": 48.2, "tj": 52.9},
            {"VDD_IN": 4970.0, "VDD_CPU_GPU_CV": 912.0, "VDD_SOC": 1454.0},
        ),
        (JETPACK_7_0_THOR, 5121, None, 1000, {"cpu": 41.2, "tj": 42.0}, {}),
        (
            *(JETPACK_7_2, 4100, 12, 1020),
            {"cpu": 52.9, "gpu": 51.1},
            {"VDD_IN": 7411.0, "VDD_SOC": 1500.0},
        ),
        ("", None, None, None, {}, {}),
        ("GR3D_FREQ \x00 cpu@C VDD_IN mW", None, None, None, {}, {}),
    ],
    ids=["4", "5.1", "6", "7.0 Thor", "7.2", "nothing", "nonsense"],
)
def test_tegrastats_of_each_jetpack(
    line: str,
    memory: int | None,
    percent: int | None,
    clock: int | None,
    celsius: dict[str, float],
    milliwatts: dict[str, float],
) -> None:
    reading = parse_tegrastats(line)
    assert (reading.memory_mb, reading.gpu_percent, reading.clocks.get("GPU")) == (memory, percent, clock)
    assert (reading.celsius, reading.milliwatts) == (celsius, milliwatts)


@pytest.mark.parametrize(
    ("text", "l4t", "name"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64", "35.4.1", "JetPack 5"),
        ("# R36 (release), REVISION: 3.0, GCID: 36191598", "36.3.0", "JetPack 6.0"),
        ("# R36 (release), REVISION: 4.7, GCID: 42132812", "36.4.7", "JetPack 6.1 or 6.2"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464", "38.2.0", "JetPack 7.0"),
        ("# R38 (release), REVISION: 4, GCID: 1", "38.4", "JetPack 7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0", "JetPack 7.2"),
        ("# R40 (release), REVISION: 1.0, GCID: 1", "40.1.0", None),
    ],
)
def test_release_and_jetpack(text: str, l4t: str, name: str | None) -> None:
    assert parse_release(text) == l4t
    assert jetpack(l4t) == name


def test_other_systems_have_no_release() -> None:
    assert parse_release("") is None
    assert parse_release("Debian GNU/Linux 12") is None


def test_power_mode_and_clocks_are_parsed() -> None:
    assert parse_nvpmodel("NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n") == ("25W", 1)
    assert parse_nvpmodel("NV Power Mode: MAXN_SUPER\n2\n") == ("MAXN_SUPER", 2)
    assert parse_nvpmodel("NVPM ERROR: failed to read PARAM") is None
    clocks = parse_jetson_clocks(
        "SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Developer Kit\nOnline CPUs: 0-5\n"
        "cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1728000 CurrentFreq=960000 IdleStates: WFI=1 c7=1\n"
        "GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000\n"
        "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0\n"
    )
    assert clocks == {
        "cpu0": Clock(729.6, 1728.0, 960.0),
        "GPU": Clock(1020.0, 1020.0, 1020.0),
        "EMC": Clock(204.0, 3199.0, 2133.0),
    }
    assert clocks["GPU"].locked
    assert not clocks["cpu0"].locked


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on PATH with fake nvpmodel and sudo that keep the mode in a file."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "mode").write_text("0")
    scripts = {
        "nvpmodel": f"""case "$1" in
            -q) echo "NV Power Mode: MODE_$(cat {folder}/mode)"; cat {folder}/mode; echo;;
            -m) [ "$2" = 9 ] && {{ echo "NVPM ERROR: REBOOT required"; exit 1; }}; echo "$2" > {folder}/mode;; esac""",
        "sudo": 'echo "$@" >> ' + f'{folder}/sudo_log; shift; exec "$@"',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_power_mode_is_set_and_restored(tools: Path) -> None:
    with power_mode(None):
        assert not (tools / "sudo_log").exists()
    with power_mode(2):
        assert (tools / "mode").read_text().strip() == "2"
    assert (tools / "mode").read_text().strip() == "0"
    with pytest.raises(ZeroDivisionError), power_mode(1):
        raise ZeroDivisionError
    assert (tools / "mode").read_text().strip() == "0"
    with pytest.raises(JobError, match=r"did not change to mode 9 \(NVPM ERROR: REBOOT required\)"), power_mode(9):
        pass
    assert (tools / "mode").read_text().strip() == "0"


def test_power_mode_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--set-power-mode: .*expected a Jetson"), power_mode(1):
        pass


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_board_is_read_from_its_files(tools: Path, tmp_path: Path) -> None:
    gpu = "sys/class/devfreq/17000000.gpu/"
    root = write(
        tmp_path / "root",
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 1\n",
            **{gpu + "min_freq": "306000000\n", gpu + "max_freq": "1020000000\n", gpu + "cur_freq": "612000000\n"},
        },
    )
    found = read_jetson(root)
    assert found is not None
    assert (found.l4t, found.jetpack, found.power_mode) == ("36.4.7", "JetPack 6.1 or 6.2", "MODE_0")
    assert found.clocks == {"GPU": Clock(306.0, 1020.0, 612.0)}
    assert read_jetson(tmp_path) is None
