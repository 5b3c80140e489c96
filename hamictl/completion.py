"""`hamictl completion`: a script for a shell, made from the parser, so that it has every command, flag and choice.

For names of nodes, pods, namespaces and contexts the script runs `hamictl completion bash --values KIND LINE`, which
prints nothing where the cluster does not answer within two seconds.
"""

import argparse
import contextlib
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpu_sharing.core import error_codes
from hamictl import commands, failures, flags, reader

SHELLS = ("bash", "zsh", "fish")
_SECONDS = 2.0
_KINDS = {
    "nodes": "nodes",
    "pods": "pods",
    "explain": "pods",
    "explain-code": "codes",
    "gpu": "nodes",
    "fault": "faults",
}
"""What the words of a command name that are no flags."""
_KINDS_OF_FLAGS = {"--drain": "nodes", "--node": "nodes", "--namespace": "namespaces",
                   "--system-namespace": "namespaces", "--context": "contexts"}  # fmt: skip

_BASH = """_hamictl() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words= values=
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "$command" in
      {groups}) [ "$COMP_CWORD" -gt 2 ] && command="$command ${{COMP_WORDS[2]}}" ;;
    esac
    case "$command" in
{commands_cases}
    esac
    case "$command $before" in
{flags_cases}
    esac
  fi
  case "$word" in -*) values= ;; esac
  [ -n "$values" ] && words="$words $(hamictl completion bash --values "$values" "$COMP_LINE" 2>/dev/null)"
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ ${{#COMPREPLY[@]}} -eq 0 ] && COMPREPLY=($(compgen -f -- "$word"))
}}
complete -F _hamictl hamictl
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flag:
    """A flag as a shell completes it."""

    names: Sequence[str]
    choices: Sequence[str]
    """Its values, where they are few."""
    kind: str
    """What its value names, such as `nodes`; empty where that is neither of the cluster nor of the kubeconfig."""

    @property
    def values(self) -> str:
        """Return the assignments of the script for its value."""
        return f'words="{" ".join(self.choices)}" values={self.kind}'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("shell", choices=SHELLS)
    parser.add_argument("--values", nargs=2, metavar=("KIND", "LINE"), help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Print the shell's script, or the values for which the script asks. Returns the exit status."""
    if options.values:
        print("\n".join(values(*options.values)))
        return 0
    known = {name: _flags(parser) for name, parser in commands.subparsers(commands.make_parser())}
    print(_fish(known) if options.shell == "fish" else _bash(known, zsh=options.shell == "zsh"))
    return 0


def _flags(parser: argparse.ArgumentParser) -> list[_Flag]:
    return [
        _Flag(
            names=action.option_strings,
            choices=[str(choice) for choice in action.choices or ()],
            kind=next((_KINDS_OF_FLAGS[name] for name in action.option_strings if name in _KINDS_OF_FLAGS), ""),
        )
        for action in parser._actions
        if action.option_strings and action.help != argparse.SUPPRESS
    ]


def _bash(known: dict[str, list[_Flag]], *, zsh: bool) -> str:
    cases, flag_cases = [], []
    for name, its_flags in known.items():
        words = " ".join([*_operations(known, name), *(text for flag in its_flags for text in flag.names)])
        aliases = next((command.aliases for command in commands.COMMANDS if command.name == name), ())
        patterns = [f'"{one}"' if " " in one else one for one in (name, *aliases)]
        cases.append(f'      {"|".join(patterns)}) words="{words}" values={_KINDS.get(name, "")} ;;')
        for flag in its_flags:
            if flag.choices or flag.kind:
                texts = "|".join(f'"{pattern} {text}"' for pattern in (name, *aliases) for text in flag.names)
                flag_cases.append(f"      {texts}) {flag.values} ;;")
    head = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    script = _BASH.format(
        commands=" ".join(name for name in known if " " not in name),
        groups="|".join(name for name in known if _operations(known, name)),
        commands_cases="\n".join(cases),
        flags_cases="\n".join(flag_cases),
    )
    return head + script.rstrip("\n")


def _operations(known: Iterable[str], name: str) -> list[str]:
    """Return the commands below a command, such as `scale` below `ops`."""
    return [one.partition(" ")[2] for one in known if one.startswith(f"{name} ")]


def _fish(known: dict[str, list[_Flag]]) -> str:
    lines = []
    for name, its_flags in known.items():
        group, _, operation = name.partition(" ")
        used = f"complete -c hamictl -n '__fish_seen_subcommand_from {group}'"
        if operation:
            names = " ".join(_operations(known, group))
            both = f"__fish_seen_subcommand_from {group}; and not __fish_seen_subcommand_from {names}"
            lines.append(f"complete -c hamictl -n '{both}' -f -a {operation}")
            used = (
                f"complete -c hamictl -n '__fish_seen_subcommand_from {group}; "
                f"and __fish_seen_subcommand_from {operation}'"
            )
        else:
            lines.append(f"complete -c hamictl -n __fish_use_subcommand -f -a {name}")
        if name in _KINDS:
            lines.append(f"{used} -f -a '{_fish_values(_KINDS[name])}'")
        for flag in its_flags:
            long = next(text[2:] for text in flag.names if text.startswith("--"))
            offered = " ".join(flag.choices) or (_fish_values(flag.kind) if flag.kind else "")
            lines.append(f"{used} -l {long}" + (f" -x -a '{offered}'" if offered else ""))
    return "\n".join(lines)


def _fish_values(kind: str) -> str:
    return f"(hamictl completion fish --values {kind} (commandline -cp | string collect) 2>/dev/null)"


def values(kind: str, line: str) -> list[str]:
    """Return the names of a kind; empty where they cannot be read.

    Args:
        kind: `codes`, `nodes`, `pods`, `namespaces` or `contexts`.
        line: The command line so far, whose flags say which cluster.
    """
    if kind == "codes":
        return sorted(error_codes.REGISTRY)
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    flags.add_namespace(parser)
    flags.add_reaching(parser)
    with contextlib.suppress(
        failures.CommandFailed, argparse.ArgumentError, ValueError, OSError, subprocess.SubprocessError
    ):
        options, _ = parser.parse_known_args(shlex.split(line)[1:])
        address = flags.address(options)
        if address.url and kind in ("nodes", "pods"):
            return _by_extender(kind, address, flags.namespace(options))
        if address.reachable:
            return _by_kubectl(kind, options)
    return []


def _by_extender(kind: str, address: reader.Address, namespace: str) -> list[str]:
    with reader.reaching(address, _SECONDS) as api:
        if kind == "nodes":
            return [node.name for node in api.nodes()]
        pods = api.pods()
    return [pod.name for pod in pods if pod.namespace == namespace] + [f"{pod.namespace}/{pod.name}" for pod in pods]


def _by_kubectl(kind: str, options: argparse.Namespace) -> list[str]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return []
    command = [kubectl, *(("--kubeconfig", options.kubeconfig) if options.kubeconfig else ())]
    if kind == "contexts":
        return _lines([*command, "config", "get-contexts", "-o", "name"])
    command += ["--context", options.context] if options.context else []
    command += ["-n", flags.namespace(options)] if kind == "pods" else []
    lines = _lines([*command, "get", kind, "-o", "name", f"--request-timeout={_SECONDS:g}s"])
    return [line.rpartition("/")[2] for line in lines]


def _lines(command: Iterable[str]) -> list[str]:
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=2 * _SECONDS, check=False)
    return done.stdout.split() if done.returncode == 0 else []
