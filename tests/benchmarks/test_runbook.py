"""The runbook's commands, as far as they can be tried without a GPU: options exist, values are of their kind."""

import re
import shlex
from pathlib import Path

import pytest

from stlm_edge.commands.stlm import parsers
from stlm_edge.teachers import TEACHERS
from stlm_edge.training.recipes import RECIPES

RUNBOOK = Path(__file__).parents[2] / "benchmarks" / "published.md"
PARSERS = parsers()


def lines():
    """The shell lines of the code blocks, those that go on joined, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", RUNBOOK.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands():
    """Every call of one of the tools, as words; what a shell would fill in stays as it is."""
    found = []
    for line in lines():
        words = shlex.split(line.replace("$(which stlm-eval)", "stlm-eval"), comments=True)
        for at, word in enumerate(words):
            if word.startswith("stlm-") and not word.startswith("stlm-edge"):
                found.append(words[at:])
    return found


def parsed(words):
    return vars(PARSERS[words[0].removeprefix("stlm-")].parse_args(words[1:]))


def test_it_trains_and_evaluates_all_three_sets():
    whole = [parsed(words) | {"tool": words[0]} for words in commands() if "all" in words]
    for data in ("data/mvtec_ad", "data/visa", "data/dagm"):
        of_data = [params for params in whole if params["data"] == Path(data)]
        (training,) = [params for params in of_data if params["tool"] == "stlm-train"]
        assert (training["recipe"], training["teacher"]) == ("paper", "vit_h")
        evaluations = [params for params in of_data if params["tool"] == "stlm-eval"]
        assert evaluations
        assert all(params["checkpoint"] == training["out"] for params in evaluations)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one_that_exists(words):
    params = parsed(words)
    if words[0] == "stlm-train":
        assert params["recipe"] in RECIPES
        assert params["teacher"] in TEACHERS


@pytest.mark.parametrize("mistake", [["--nowhere"], ["--size", "large"]])
def test_an_option_that_does_not_exist_would_be_seen(mistake, capsys):
    with pytest.raises(SystemExit):
        parsed([*commands()[0], *mistake])
    assert mistake[0] in capsys.readouterr().err


def test_the_published_recipe_is_the_one_that_is_described():
    paper = RECIPES["paper"]
    assert (paper.size, paper.batch, paper.length) == (1024, 2, 200)
    assert RECIPES["paper"].longer(0.01).length == 2
    for images, steps in ((3629, "308,000"), (8659, "736,000"), (7000, "595,000")):
        assert f"{round(0.85 * images * paper.length / paper.batch, -3):,.0f}" == steps
        assert steps in RUNBOOK.read_text(encoding="utf-8")
