"""stlm completion: print a shell completion script, generated from the parsers of all commands."""

import argparse
from collections.abc import Iterator, Sequence

from stlm_edge.commands.parser import CommandParser
from stlm_edge.commands.stlm import COMMANDS, parsers

EXAMPLES = """examples, for ~/.bashrc, ~/.zshrc and ~/.config/fish/config.fish:
  source <(stlm completion bash)
  source <(stlm completion zsh)
  stlm completion fish | source"""
BASH = """_stlm() {{
  local command="${{COMP_WORDS[0]##*/}}" word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [[ $command == stlm || $command == stlm-edge ]]; then
    command="stlm-${{COMP_WORDS[1]}}"
    if (( COMP_CWORD == 1 )); then command="stlm"; fi
  fi
  case "$command ${{COMP_WORDS[COMP_CWORD-1]}}" in
    "stlm "*) words="{commands} --help --version" ;;
{choices}
    *) if [[ $word == -* ]]; then case "$command" in
{options}
    esac; fi ;;
  esac
  COMPREPLY=( $(compgen -W "$words" -- "$word") )
}}
complete -o default -F _stlm stlm stlm-edge {executables}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm completion."""
    shell = parser().parse_args(arguments).shell
    script = "\n".join(_fish()) if shell == "fish" else _bash()
    print(("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + script)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm completion", "Print a shell completion script.", EXAMPLES)
    command.add_argument("shell", choices=("bash", "zsh", "fish"))
    return command


def _bash() -> str:
    names = {name: " ".join(option for option, _ in options) for name, options in _options()}
    choices = [
        f'    "stlm-{name} {option}") words="{" ".join(action.choices)}" ;;'
        for name, options in _options()
        for option, action in options
        if action.choices
    ]
    return BASH.format(
        commands=" ".join(COMMANDS),
        choices="\n".join(choices),
        options="\n".join(f'      stlm-{name}) words="{words}" ;;' for name, words in names.items()),
        executables=" ".join(f"stlm-{name}" for name in COMMANDS),
    )


def _fish() -> Iterator[str]:
    yield f"complete -c stlm -f -n __fish_use_subcommand -a '{' '.join(COMMANDS)}'"
    for name, options in _options():
        for option, action in options:
            flag = f"-l {option[2:]} " if action.option_strings else ""
            values = f"-x -a '{' '.join(action.choices)}'" if action.choices else "-r" if action.nargs != 0 else ""
            yield f"complete -c stlm -n '__fish_seen_subcommand_from {name}' {flag}{values}"
            yield f"complete -c stlm-{name} {flag}{values}"
    yield "complete -c stlm-edge -w stlm"


def _options() -> list[tuple[str, list[tuple[str, argparse.Action]]]]:
    """Return each command's name with its long options; an argument with choices is listed under the command's name."""
    options = []
    for name, parser in parsers().items():
        actions = [action for action in parser._actions if action.option_strings or action.choices]
        options.append((name, [([name, *action.option_strings][-1], action) for action in actions]))
    return options
