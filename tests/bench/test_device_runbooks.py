"""Commands of the device runbooks, as far as they can be tested without a device."""

import re
import shlex
from pathlib import Path

import pytest

from stlm_edge.bench.devices.device import parse_device
from stlm_edge.commands.bench import parser
from stlm_edge.export import targets

FOLDER = Path(__file__).parents[2] / "benchmarks"
RUNBOOKS = ("android", "desktop-gpu", "iphone", "jetson", "raspberry-pi")


def blocks(name: str) -> list[list[list[str]]]:
    """Return the commands of each shell block, split into words."""
    text = (FOLDER / f"{name}.md").read_text("utf-8")
    found = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [[words for line in block.splitlines() if (words := shlex.split(line, comments=True))] for block in found]


@pytest.mark.parametrize("name", RUNBOOKS)
def test_runbook_takes_at_most_ten_commands(name: str) -> None:
    first = blocks(name)[0]
    assert len(first) <= 10
    assert first[-1] == ["python", "benchmarks/table.py"]
    assert any(words[0].endswith("stlm-bench") for words in first)


@pytest.mark.parametrize("name", RUNBOOKS)
def test_commands_have_options_of_this_version(name: str) -> None:
    calls = [words for block in blocks(name) for words in block]
    assert calls
    for words in calls:
        if words[0].endswith("stlm-bench"):
            options = parser().parse_args(words[1:])
            assert all(parse_device(device).kind in ("ssh", "adb") for device in options.device or [])
        elif words[0] == "stlm-export":
            assert words[words.index("--target") + 1] in {target.name for target in targets.TARGETS}


@pytest.mark.parametrize("name", RUNBOOKS)
def test_runbook_states_what_has_never_run(name: str) -> None:
    assert "**Status: no " in (FOLDER / f"{name}.md").read_text("utf-8")
