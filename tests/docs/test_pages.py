"""Commands and links in README.md, the docs and the runbooks exist in this release."""

import re
import shlex
from pathlib import Path

import pytest

from stlm_edge.commands.stlm import parsers
from stlm_edge.export import targets
from stlm_edge.teachers import TEACHERS
from stlm_edge.training.recipes import RECIPES

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "android_demo/README.md")
    for path in ROOT.glob(pattern)
    if path.name != "cli.md"  # generated from the parsers themselves
)
PARSERS = parsers()


def commands() -> list[tuple[str, list[str]]]:
    """Return the page and the words of each call of make or one of our commands in a shell block."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        for line in "".join(blocks).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["stlm"]:
                words = [f"stlm-{words[1]}", *words[2:]]
            if words and (words[0] == "make" or words[0].removeprefix("stlm-") in PARSERS):
                found.append((str(page.relative_to(ROOT)), words))
    return found


def parse(words: list[str]) -> dict[str, object]:
    """Return the options as the command reads them; SystemExit where it does not accept them."""
    return vars(PARSERS[words[0].removeprefix("stlm-")].parse_args(words[1:]))


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[0])
def test_documented_commands_exist(page: str, words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return
    options = parse(words)
    if words[0] == "stlm-export":
        assert options["target"] in {target.name for target in targets.TARGETS}
    if words[0] == "stlm-train":
        assert options.get("recipe") in (None, *RECIPES)
        assert options.get("teacher") in (None, *TEACHERS)


def test_every_command_is_documented_and_a_wrong_one_is_detected() -> None:
    assert {words[0] for _, words in commands()} >= {"make", *(f"stlm-{name}" for name in PARSERS)}
    for words in (["stlm-predict", "--bundle", "b", "--nowhere", "a.png"], ["stlm-export", "--target", "cpu", "-x"]):
        with pytest.raises(SystemExit):
            parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text("utf-8")):
        place = next(filter(None, link)).split("#")[0]
        if place and "://" not in place:
            assert (page.parent / place).exists(), place
