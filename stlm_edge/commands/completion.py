"""Shell completion scripts, generated from the parsers of the commands.

Use: `source <(stlm completion bash)`, `source <(stlm completion zsh)` or `stlm completion fish | source`.
"""

import argparse
from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")
_BASH = """_stlm() {{
  local command="${{COMP_WORDS[0]##*/}}" word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [[ $command == stlm || $command == stlm-edge ]]; then
    if (( COMP_CWORD == 1 )); then
      COMPREPLY=( $(compgen -W "{commands} completion --help --version" -- "$word") )
      return
    fi
    command="stlm-${{COMP_WORDS[1]}}"
  fi
  case "$command ${{COMP_WORDS[COMP_CWORD-1]}}" in
    "stlm-completion completion") words="{shells}" ;;
{choices}
  esac
  if [[ -z $words && $word == -* ]]; then
    case "$command" in
{options}
    esac
  fi
  COMPREPLY=( $(compgen -W "$words" -- "$word") )
}}
complete -o default -F _stlm stlm stlm-edge {executables}
"""


def completion(parsers: Mapping[str, argparse.ArgumentParser], shell: str) -> str:
    """Return a shell's completion script for the umbrella command and each of these commands."""
    if shell == "fish":
        return _fish(parsers)
    script = _BASH.format(
        commands=" ".join(parsers),
        shells=" ".join(SHELLS),
        choices="\n".join(
            f'    "stlm-{name} {action.option_strings[-1]}") words="{" ".join(map(str, action.choices))}" ;;'
            for name, parser in parsers.items()
            for action in options_of(parser)
            if action.choices
        ),
        options="\n".join(
            f'      stlm-{name}) words="{" ".join(action.option_strings[-1] for action in options_of(parser))}" ;;'
            for name, parser in parsers.items()
        ),
        executables=" ".join(f"stlm-{name}" for name in parsers),
    )
    return script if shell == "bash" else "autoload -U +X bashcompinit && bashcompinit\n" + script


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options of a parser, without its positional arguments."""
    return [action for action in parser._actions if action.option_strings]


def _fish(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    names = " ".join([*parsers, "completion"])
    lines = [f"complete -c stlm -f -n 'not __fish_seen_subcommand_from {names}' -a '{names}'"]
    lines.append(f"complete -c stlm -f -n '__fish_seen_subcommand_from completion' -a '{' '.join(SHELLS)}'")
    for name, parser in parsers.items():
        for action in options_of(parser):
            option = f"-l {action.option_strings[-1].removeprefix('--')}"
            if action.choices:
                option += f" -x -a '{' '.join(map(str, action.choices))}'"
            elif action.nargs != 0:
                option += " -r"
            lines.append(f"complete -c stlm -n '__fish_seen_subcommand_from {name}' {option}")
            lines.append(f"complete -c stlm-{name} {option}")
    return "\n".join(lines) + "\ncomplete -c stlm-edge -w stlm\n"
