"""`--device`: where bundles are measured. What a user gives here reaches command lines, so it is plain or refused.

local                       this machine
ssh:[USER@]HOST[:PORT]      a machine with Python, numpy, Pillow and the bundle's runtime; HOST may be ssh's alias
adb[:SERIAL]                a phone with the demo app
web                         the web page in this machine's Chromium
"""

import re
from dataclasses import dataclass
from typing import Literal

from stlm_edge.errors import UsageError

_USER = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9._\-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:]{2,45}\]"
_SSH = re.compile(rf"(?:(?P<user>{_USER})@)?(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?")
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}")  # 127.0.0.1:5555 and names of mDNS are serials too


@dataclass(frozen=True)
class Device:
    """A device as `--device` names it. `host` is without brackets; None where it has no meaning or isn't given."""

    name: str
    kind: Literal["local", "ssh", "adb", "web"]
    user: str | None = None
    host: str | None = None
    port: int | None = None
    serial: str | None = None


def parse_device(text: str) -> Device:
    """Read one `--device`. Raises UsageError for anything but the forms above, in plain characters."""
    kind, _, rest = text.partition(":")
    if text == "local":
        return Device(text, "local")
    if kind == "ssh" and (found := _SSH.fullmatch(rest)):
        port = int(found["port"]) if found["port"] else None
        if port is None or 1 <= port <= 65535:
            return Device(text, "ssh", user=found["user"], host=found["host"].strip("[]"), port=port)
    if text == "web":
        return Device(text, "web")
    if text == "adb":
        return Device(text, "adb")
    if kind == "adb" and _SERIAL.fullmatch(rest):
        return Device(text, "adb", serial=rest)
    shown = "".join(character if character.isprintable() else "?" for character in text[:80])
    raise UsageError(
        f"--device: found {shown!r}, expected local, ssh:[USER@]HOST[:PORT], adb[:SERIAL] or web in letters, digits, "
        "'.', '_' and '-'"
    )
