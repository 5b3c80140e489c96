"""The table of isolation backends, and which of them serves a GPU. A new backend is one entry here."""

from collections.abc import Callable, Mapping

from device_plugin.driver import gpu_source
from device_plugin.isolation import hami_core, mig, mps, none
from device_plugin.isolation.backend import Backend, BackendSettings

AUTO, NONE, MPS, HAMI_CORE, MIG = "auto", none.NAME, mps.NAME, hami_core.NAME, mig.NAME

BACKENDS: Mapping[str, Callable[[BackendSettings], Backend]] = {
    NONE: none.TimeSlicing,
    MPS: mps.Mps,
    HAMI_CORE: hami_core.HamiCore,
    MIG: mig.Mig,
}
"""How each backend is made, by the name that settings, records and events use."""

CHOICES = (AUTO, *BACKENDS)
"""What `--isolation` accepts."""

AUTO_CHOICE = HAMI_CORE
"""The backend that `auto` chooses for a GPU that is not in MIG mode; `none` where it is not available. Never MPS."""


def build(settings: BackendSettings) -> Mapping[str, Backend]:
    """Return all backends by name."""
    return {name: make(settings) for name, make in BACKENDS.items()}


def mode_of(device: gpu_source.Device, choice: str, problems: Mapping[str, str]) -> str:
    """Return the name of the backend of a GPU, which the node's annotation has for the scheduler.

    A GPU in MIG mode can only be used by instances.

    Args:
        device: The GPU.
        choice: One of `CHOICES`.
        problems: Why each backend is not available; empty texts for those that are.
    """
    if device.mig_enabled:
        return MIG
    if choice != AUTO:
        return choice
    return NONE if problems[AUTO_CHOICE] else AUTO_CHOICE
