"""Completion for shells, generated from the parser, so that it has every command and flag."""

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")

_BASH = """_hamictl() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "$command" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ ${{#COMPREPLY[@]}} -eq 0 ] && COMPREPLY=($(compgen -f -- "$word"))
}}
complete -F _hamictl hamictl
"""


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the shell's script. Returns the exit status."""
    commands = {
        name: [flag for one in added._actions for flag in one.option_strings] for name, added in commands_of(parser)
    }
    match options.shell:
        case "fish":
            for name, flags in commands.items():
                print(f"complete -c hamictl -n __fish_use_subcommand -f -a {name}")
                for flag in flags:
                    if flag.startswith("--"):
                        print(f"complete -c hamictl -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}")
        case shell:
            if shell == "zsh":
                print("autoload -U +X bashcompinit && bashcompinit")
            cases = "\n".join(f'      {name}) words="{" ".join(flags)}" ;;' for name, flags in commands.items())
            print(_BASH.format(commands=" ".join(commands), cases=cases), end="")
    return 0


def commands_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command with its parser."""
    for action in parser._actions:  # argparse has no public access to subparsers.
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()
