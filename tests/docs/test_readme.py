"""What README.md and the docs tell to type: the tools, options and values are those of this release."""

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from stlm_edge.commands import bench as bench
from stlm_edge.commands import calibrate, cli, predict
from stlm_edge.export import targets
from stlm_edge.runtimes import tensorrt
from stlm_edge.teachers import TEACHERS
from stlm_edge.training.recipes import RECIPES

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "android_demo/README.md", "benchmarks/iphone.md", "docs/tensorrt.md"]
BY_TYPER = {"stlm-train": cli._train, "stlm-eval": cli._evaluate, "stlm-export": cli._export}
BY_ARGPARSE: dict[str, Callable[[], None]] = {
    "stlm-predict": predict.main,
    "stlm-calibrate": calibrate.main,
    "stlm-bench": bench.main,
    "stlm_edge.runtimes.tensorrt": tensorrt.main,
}


class Parsed(BaseException):
    """Instead of what a tool would go on to do."""


def commands() -> list[tuple[str, list[str]]]:
    """Every call of our own in a block of shell lines, with the page's name."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
        for line in "".join(blocks).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                words = words[2:]
            if words and re.match(r"stlm[-_]|make$", words[0]):
                found.append((page, words))
    return found


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The options as the tool itself reads them; SystemExit or typer's error where it does not take them."""
    if words[0] in BY_TYPER:
        app = typer.Typer()
        app.command()(BY_TYPER[words[0]])
        return dict(typer.main.get_command(app).make_context(words[0], list(words[1:])).params)
    real = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *given: object) -> None:
        raise Parsed(vars(real(self, *given)))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(Parsed) as caught:
        BY_ARGPARSE[words[0]]()
    return dict(caught.value.args[0])


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[0])
def test_every_command_is_one_of_this_release(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return
    options = parse(words, monkeypatch)
    if words[0] == "stlm-export":
        assert options["target"] in {target.name for target in targets.TARGETS}
    if words[0] == "stlm-train":
        assert options.get("recipe") in (None, *RECIPES)
        assert options.get("teacher") in (None, *TEACHERS)


def test_each_page_has_some_and_a_wrong_one_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {page for page, _ in commands()} == set(PAGES)
    assert {words[0] for _, words in commands()} >= {*BY_TYPER, *BY_ARGPARSE, "make"}
    with pytest.raises(SystemExit):
        parse(["stlm-predict", "--bundle", "b", "--nowhere", "a.png"], monkeypatch)
    with pytest.raises(Exception, match="--nowhere"):
        parse(["stlm-export", "--nowhere"], monkeypatch)


def test_every_link_leads_to_a_file() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "android_demo" / "README.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", path.read_text("utf-8")):
            place = next(filter(None, link)).split("#")[0]
            if place and "://" not in place:
                assert (path.parent / place).exists(), f"{path.name}: {place}"
