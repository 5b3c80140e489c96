"""Each flag that `--help` lists is read, and each policy of the core can be written wherever policies are named."""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

import webui.settings
from device_plugin import mps_daemon, settings
from device_plugin.monitor import settings as monitor_settings
from fault_injector import settings as fault_settings
from gpu_sharing.adapters import flags
from gpu_sharing.core import policies
from scheduler_extender import settings as extender_settings

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("parse", "help_texts"),
    [
        (extender_settings.parse, extender_settings.HELP),
        (settings.parse, settings.HELP),
        (monitor_settings.parse, monitor_settings.HELP),
        (mps_daemon.parse, mps_daemon.HELP),
        (webui.settings.parse, webui.settings.HELP),
        (fault_settings.parse, fault_settings.HELP),
    ],
    ids=["extender", "plugin", "monitor", "mps", "webui", "faults"],
)
def test_each_flag_of_the_help_is_read(
    parse: Callable[[Sequence[str], Mapping[str, str]], Any],
    help_texts: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flag that is accepted and changes nothing would mislead the operator who sets it."""
    asked: set[str] = set()
    read = flags.read

    def recording(*arguments: Any, **named: Any) -> Callable[[str], str | None]:
        value = read(*arguments, **named)

        def recorded(name: str) -> str | None:
            asked.add(name)
            return value(name)

        return recorded

    monkeypatch.setattr(flags, "read", recording)
    parse(["--node-name", "n"] if "node-name" in help_texts else [], {})

    assert asked == set(help_texts)


def test_the_policies_of_the_core_are_those_of_help_and_chart() -> None:
    """A policy that works in an annotation works as the default of a cluster, too."""
    of_gpus = policies.GPU_POLICY_NAMES
    chart = json.loads((ROOT / "charts/hami/values.schema.json").read_text())["properties"]["scheduler"]
    chosen = chart["properties"]["defaultSchedulerPolicy"]["properties"]

    assert chosen["nodeSchedulerPolicy"]["enum"] == list(policies.NODE_POLICIES)
    pattern = chosen["gpuSchedulerPolicy"]["pattern"]
    assert all(re.fullmatch(pattern, f"{name},{other}") for name in of_gpus for other in of_gpus)
    assert not re.fullmatch(pattern, "best")
    for name in of_gpus:
        assert name in chosen["gpuSchedulerPolicy"]["description"]
        assert name in extender_settings.HELP["gpu-scheduler-policy"]
    for name in policies.NODE_POLICIES:
        assert name in extender_settings.HELP["node-scheduler-policy"]
