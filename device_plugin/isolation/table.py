"""Which backend serves which GPU."""

import pathlib
from collections.abc import Mapping

from device_plugin.driver import gpu_source
from device_plugin.isolation import hami_core, mig, mps, none
from device_plugin.isolation.backend import Backend

AUTO, NONE, HAMI_CORE, MPS, MIG = "auto", "none", hami_core.NAME, "mps", "mig"
CHOICES = (AUTO, NONE, MPS, HAMI_CORE, MIG)


def build(core: hami_core.Options, server: mps.Options, create_mig: mig.Create | None = None) -> Mapping[str, Backend]:
    """All backends by name; `create_mig` where MIG instances may be made."""
    return {
        NONE: none.TimeSlicing(),
        HAMI_CORE: hami_core.HamiCore(core),
        MPS: mps.Mps(server),
        MIG: mig.Mig(create_mig),
    }


def mode_of(device: gpu_source.Device, setting: str, hook_path: pathlib.Path) -> str:
    """The backend of a GPU; the node's annotation names it, so that the scheduler knows what it offers.

    A GPU in MIG mode can only be used by instances. `auto` takes HAMi-core where its library can be
    preloaded, and never MPS.
    """
    if device.mig_enabled:
        return MIG
    if setting != AUTO:
        return setting
    return HAMI_CORE if not hami_core.problem(hook_path) else NONE
