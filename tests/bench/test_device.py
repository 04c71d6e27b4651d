"""`--device`: plain names are accepted, anything that a shell or an option parser could misread is refused."""

from pathlib import Path

import pytest

from stlm_edge.bench.devices.device import Device, parse_device
from stlm_edge.commands.bench import main
from stlm_edge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("local", Device("local", "local")),
        ("ssh:pi@raspberrypi.local", Device("ssh:pi@raspberrypi.local", "ssh", "ssh://pi@raspberrypi.local")),
        ("ssh:nano:2222", Device("ssh:nano:2222", "ssh", "ssh://nano:2222")),
        ("ssh:pi@[fe80::1]:22", Device("ssh:pi@[fe80::1]:22", "ssh", "ssh://pi@[fe80::1]:22")),
        ("adb", Device("adb", "adb")),
        ("adb:127.0.0.1:5555", Device("adb:127.0.0.1:5555", "adb", "127.0.0.1:5555")),
    ],
)
def test_device_names_are_parsed(text: str, device: Device) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize(
    "text",
    [
        *("ssh:", "ssh:-oProxyCommand=sh", "ssh:pi@-oProxyCommand=sh", "ssh:-l@host", "ssh:pi@host;reboot"),
        *("ssh:pi@host name", "ssh:$(id)@host", "ssh:pi@`id`", "ssh:pi@host:0", "ssh:pi@host:65536", "ssh:pi@host:22x"),
        *("ssh:pi@host\n", "ssh:a@b@c", "ssh:pi@[::1", "ssh:pi@host/..", "ssh:pi@host%eth0", "ssh:pi@höst"),
        *("adb:", "adb:-s", "adb:a b", "adb:a;b", "adb:$(id)", "adb:a'b", "adb:../x", "adb:" + "a" * 200, "adb:x\0"),
        *("", "Local", "local:", "usb:1", "ssh", "ssh:\x1b[31mpi"),
    ],
)
def test_names_that_a_shell_could_misread_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected local, ssh:") as refused:
        parse_device(text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--device", "ssh:pi@host;id"], "--device: found 'ssh:pi@host;id', expected local, ssh:"),
        (["--device", "local", "--device", "local"], "--device local: given twice"),
        (["--device", "adb", "--data", "d"], "--data: not supported by phones and browsers; expected --device local"),
        (
            ["--device", "adb"],
            "for cpu, and no device here runs onnxruntime; found --device adb, expected local or ssh",
        ),
        (["--device", "ssh:pi@host", "--ssh-config", "nowhere"], "nowhere: no such file; --ssh-config expects"),
        (["--device", "ssh:pi@host", "--remote-python", "python3;id"], "found 'python3;id', expected a path"),
        (["--device", "ssh:pi@host", "--remote-python", "-c"], "expected one argument"),
    ],
)
def test_unusable_options_are_refused_before_anything_is_reached(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--bundle", str(tiny_bundle), "--out", str(tmp_path / "out"), *arguments])
    assert left.value.code == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
