"""Write docs/reference/cli.md from the parsers of all commands."""

import argparse
from pathlib import Path

from stlm_edge.commands.stlm import USAGE, parsers

PAGE = Path(__file__).parent / "reference" / "cli.md"


def main() -> None:
    """Write the page."""
    sections = [section(parser) for parser in parsers().values()]
    PAGE.write_text("\n".join(["# Commands", "", "```text", USAGE, "```", "", *sections]), encoding="utf-8")


def section(parser: argparse.ArgumentParser) -> str:
    """Return a command's heading, description, table of arguments, and examples."""
    lines = [f"## {parser.prog}", "", parser.description or "", "", "| argument | meaning |", "| --- | --- |"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            required = "Required. " if action.required and action.option_strings else ""
            lines.append(f"| {argument(action)} | {required}{help_of(action)} |")
    return "\n".join([*lines, "", "```text", parser.epilog or "", "```", ""])


def argument(action: argparse.Action) -> str:
    """Return an argument as it is typed, such as `--recipe quick|standard|paper`."""
    choices = "\\|".join(map(str, action.choices)) if action.choices else ""
    value = choices or (" ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar or "")
    name = action.option_strings[-1] if action.option_strings else ""
    return f"`{name} {value}`" if name and action.nargs != 0 and value else f"`{name or value or action.dest}`"


def help_of(action: argparse.Action) -> str:
    """Return the help text with the default filled in, as a sentence in a table."""
    text = (action.help or "") % {"default": action.default, "prog": "", "choices": action.choices}
    return (text[:1].upper() + text[1:]).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    main()
