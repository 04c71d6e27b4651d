"""What README.md and the docs tell to type: the tools, options and values are those of this release."""

import re
import shlex
from pathlib import Path

import pytest

from stlm_edge.commands.stlm import parsers
from stlm_edge.export import targets
from stlm_edge.teachers import TEACHERS
from stlm_edge.training.recipes import RECIPES

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "android_demo/README.md", "benchmarks/iphone.md", "docs/tensorrt.md"]
PARSERS = parsers()


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


def parse(words: list[str]) -> dict[str, object]:
    """The options as the command reads them; SystemExit where it does not take them."""
    return vars(PARSERS[words[0].removeprefix("stlm-")].parse_args(words[1:]))


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[0])
def test_every_command_is_one_of_this_release(page: str, words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return
    options = parse(words)
    if words[0] == "stlm-export":
        assert options["target"] in {target.name for target in targets.TARGETS}
    if words[0] == "stlm-train":
        assert options.get("recipe") in (None, *RECIPES)
        assert options.get("teacher") in (None, *TEACHERS)


def test_each_page_has_some_and_a_wrong_one_would_be_seen() -> None:
    assert {page for page, _ in commands()} == set(PAGES)
    assert {words[0] for _, words in commands()} >= {"make", *(f"stlm-{name}" for name in PARSERS)}
    for words in (["stlm-predict", "--bundle", "b", "--nowhere", "a.png"], ["stlm-export", "--target", "cpu", "-x"]):
        with pytest.raises(SystemExit):
            parse(words)


def test_every_link_leads_to_a_file() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "android_demo" / "README.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", path.read_text("utf-8")):
            place = next(filter(None, link)).split("#")[0]
            if place and "://" not in place:
                assert (path.parent / place).exists(), f"{path.name}: {place}"
