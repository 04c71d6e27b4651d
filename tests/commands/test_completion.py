"""Shell completion: the scripts propose the commands, their options and the values of options."""

import shlex
import shutil
import subprocess

import pytest

from stlm_edge.commands import stlm as umbrella
from stlm_edge.commands.completion import main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    main([shell])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stlm", "ex"], {"export"}),
        (["stlm", ""], {*umbrella.COMMANDS, "--help", "--version"}),
        (["stlm", "train", "--rec"], {"--recipe"}),
        (["stlm", "train", "--recipe", ""], {"quick", "standard", "paper"}),
        (["stlm-train", "--recipe", "p"], {"paper"}),
        (["stlm-predict", "--bund"], {"--bundle"}),
        (["stlm-predict", "--bundle", ""], set()),  # the shell then proposes files
        (["/usr/bin/stlm-edge", "completion", "b"], {"bash"}),
    ],
)
def test_bash_completes(words: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    call = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _stlm\n"
    line = script("bash", capsys) + call + 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for option in ("recipe", "quantization-set", "ssh-config"):
        assert option in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)
