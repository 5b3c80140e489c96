"""Flags and environment variables, read in one way by every process.

Each flag is also an environment variable (`--http-bind` is `HAMI_HTTP_BIND`); the flag wins. HAMi's spellings with
underscores are accepted.
"""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.adapters import logs
from gpu_sharing.core import errors, requests

RESOURCE_HELP = {
    "resource-name": "resource that counts GPUs (default nvidia.com/gpu)",
    "resource-mem": "resource for GPU memory in MiB (default nvidia.com/gpumem)",
    "resource-mem-percentage": "resource for GPU memory in percent (default nvidia.com/gpumem-percentage)",
    "resource-cores": "resource for GPU compute in percent (default nvidia.com/gpucores)",
    "resource-priority": "resource for task priority (default nvidia.com/priority)",
}
"""The flags that `resource_names` reads."""
LOG_HELP = {
    "v": "verbosity 0 to 6 (default 3): 0 errors, 1 warnings, 2 changes, 3 decisions, 4 nodes, 5 GPUs, 6 everything",
    "log-format": "json, text or console (default: console on a terminal, else json)",
}
"""The flags that `verbosity` and `log_format` read."""


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a listener."""

    host: str
    """Empty: every address, IPv6 and IPv4."""
    port: int
    """0 selects a free port, which the first log line has."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine (in a cluster: this pod) can reach it."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def __str__(self) -> str:
        """Return the address as on the command line."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read(
    program: str,
    description: str,
    texts: Mapping[str, str],
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    switches: Collection[str] = (),
) -> Callable[[str], str | None]:
    """Read a command line.

    Args:
        program: The command, for the usage line.
        description: The first line of `--help`.
        texts: The help of every flag, in the order of `--help`.
        arguments: Without the program's name.
        environment: Used where a flag is absent: `HAMI_` and the flag's name in capitals.
        switches: Flags that may stand alone, which then means `true`.

    Returns:
        The value of a flag; None if it is not set.
    """
    environment = os.environ if environment is None else environment
    first = next(iter(texts))
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"Each flag is also an environment variable: --{first} is {_variable(first)}.",
    )
    for name, text in texts.items():
        spellings = [f"--{name}"] + ([f"--{name.replace('-', '_')}"] if "-" in name else [])
        optional = {"nargs": "?", "const": "true"} if name in switches else {}
        parser.add_argument(*spellings, dest=name, help=text, metavar="", **optional)  # type: ignore[arg-type]
    given = vars(parser.parse_args(arguments))

    def value(name: str) -> str | None:
        text: str | None = given[name]
        return text if text is not None else environment.get(_variable(name))

    return value


def _variable(name: str) -> str:
    return "HAMI_" + name.upper().replace("-", "_")


def verbosity(text: str | None) -> int:
    """The value of `--v`, 3 by default."""
    return int(number("--v", text, 3, 0, logs.HIGHEST))


def log_format(text: str | None) -> str:
    """Return the value of `--log-format`: by default colours on a terminal, JSON elsewhere."""
    return one_of("--log-format", text, logs.FORMATS, "console" if sys.stdout.isatty() else "json")


def resource_names(value: Callable[[str], str | None]) -> requests.ResourceNames:
    """Return the names of the GPU resources."""
    names = requests.ResourceNames()
    return requests.ResourceNames(
        value("resource-name") or names.count,
        value("resource-mem") or names.memory,
        value("resource-mem-percentage") or names.memory_percent,
        value("resource-cores") or names.cores,
        value("resource-priority") or names.priority,
    )


def path(text: str | None) -> pathlib.Path | None:
    """Return a path, or None for an empty text."""
    return pathlib.Path(text) if text else None


def address(flag: str, text: str | None, default: Address) -> Address:
    """Return the address in `HOST:PORT`; an empty host is every address of both families.

    Raises:
        SettingsError: The text has another form.
    """
    if not text:
        return default
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:\[\]\s]*)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise errors.SettingsError(f"{flag} {text!r} is not HOST:PORT, for example 127.0.0.1:9444 or :8080")
    return Address(match[1] or match[2] or "", int(match[3]))


def truth(flag: str, text: str | None) -> bool:
    """True or false, false by default."""
    return one_of(flag, text.lower() if text else None, ("true", "false"), "false") == "true"


def one_of(flag: str, text: str | None, accepted: Sequence[str], default: str) -> str:
    """Return the text if it is one of the accepted words.

    Raises:
        SettingsError: It is another word.
    """
    if not text:
        return default
    if text not in accepted:
        raise errors.SettingsError(f"{flag} {text!r} is not one of {', '.join(accepted)}")
    return text


def number(flag: str, text: str | None, default: float, lowest: float, highest: float) -> float:
    """Return a number in a range.

    Raises:
        SettingsError: It is not a number, or out of range.
    """
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not lowest <= number <= highest:
        raise errors.SettingsError(f"{flag} {text!r} is not a number from {lowest:g} to {highest:g}")
    return number
