"""Reads flags of the processes of a GPU node, each by its name alone, and the settings that these processes share.

A setting of a process is a field of its `Settings` with a docstring, a line in its `HELP`, and a line in its `parse`.
"""

import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from gpu_sharing.adapters import flags
from gpu_sharing.core import errors, requests

NODE_HELP = {"node-name": "the node's name (default: $NODE_NAME)"}
"""The first flag of every process."""


class LogSettings(TypedDict):
    """Settings that every process has."""

    node_name: str
    verbosity: int
    log_format: str


class ServiceSettings(LogSettings):
    """Settings that the device plugin and the monitor have."""

    kubeconfig: pathlib.Path | None
    kubelet_dir: pathlib.Path
    hook_path: pathlib.Path
    proc_dir: pathlib.Path
    driver_root: pathlib.Path | None
    nvml_timeout_seconds: float
    resource_names: requests.ResourceNames


@dataclass(frozen=True, slots=True)
class NodeFlags:
    """The values of a process's flags."""

    text: Callable[[str], str | None]
    """Returns what is set for a flag; None where nothing is."""
    environment: Mapping[str, str]
    """Variables, also those that HAMi's plugin reads."""

    def number(self, name: str, default: float, lowest: float, highest: float) -> float:
        """Return a number from `lowest` to `highest`. Raises `SettingsError`."""
        return flags.number(f"--{name}", self.text(name), default, lowest, highest)

    def count(self, name: str, default: int, lowest: int, highest: int) -> int:
        """Return a whole number from `lowest` to `highest`. Raises `SettingsError`."""
        return int(self.number(name, default, lowest, highest))

    def switch(self, name: str, *, variable: str = "") -> bool:
        """Return true or false, false by default; a variable may set it, too. Raises `SettingsError`."""
        return flags.truth(f"--{name}", self.text(name) or self.environment.get(variable))

    def one_of(self, name: str, accepted: Sequence[str], default: str) -> str:
        """Return one of a few words. Raises `SettingsError`."""
        return flags.one_of(f"--{name}", self.text(name), accepted, default)

    def path(self, name: str, default: pathlib.Path, *, variable: str = "") -> pathlib.Path:
        """Return a file or folder; a variable may set it, too."""
        return flags.path(self.text(name) or self.environment.get(variable)) or default

    def optional_path(self, name: str) -> pathlib.Path | None:
        """Return a file or folder; None where none is set."""
        return flags.path(self.text(name))

    def paths(self, name: str, default: tuple[pathlib.Path, ...]) -> tuple[pathlib.Path, ...]:
        """Return files or folders, which commas separate."""
        text = self.text(name)
        return tuple(map(pathlib.Path, text.split(","))) if text else default

    def address(self, name: str, default: flags.Address) -> flags.Address:
        """Return where a listener binds. Raises `SettingsError`."""
        return flags.address(f"--{name}", self.text(name), default)

    def log_settings(self) -> LogSettings:
        """Return the settings that every process has.

        Raises:
            SettingsError: No node is named, or a value is not valid.
        """
        node_name = self.text("node-name") or self.environment.get("NODE_NAME", "")
        if not node_name:
            raise errors.SettingsError("--node-name (or NODE_NAME) must name this node")
        return {
            "node_name": node_name,
            "verbosity": flags.verbosity(self.text("v")),
            "log_format": flags.log_format(self.text("log-format")),
        }

    def service_settings(self) -> ServiceSettings:
        """Return the settings that the device plugin and the monitor have. Raises `SettingsError`."""
        return {
            **self.log_settings(),
            "kubeconfig": self.optional_path("kubeconfig"),
            "kubelet_dir": self.path("kubelet-dir", pathlib.Path("/var/lib/kubelet")),
            "hook_path": self.path("hook-path", pathlib.Path("/usr/local"), variable="HOOK_PATH"),
            "proc_dir": self.path("proc-dir", pathlib.Path("/proc")),
            "driver_root": self.optional_path("driver-root"),
            "nvml_timeout_seconds": self.number("nvml-timeout", 5, 0.1, 600),
            "resource_names": flags.resource_names(self.text),
        }


def read(
    program: str,
    description: str,
    help_texts: Mapping[str, str],
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None,
    switches: Collection[str] = (),
) -> NodeFlags:
    """Read a command line.

    Args:
        program: The command, as in `--help`.
        description: The first line of `--help`.
        help_texts: Every flag and its text, in the order of `--help`.
        arguments: The command line without the program.
        environment: Variables; None for those of this process.
        switches: Flags that mean `true` where they stand alone.
    """
    environment = os.environ if environment is None else environment
    text = flags.read(program, description, help_texts, arguments, environment, switches)
    return NodeFlags(text, environment)
