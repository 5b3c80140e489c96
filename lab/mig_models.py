"""MIG profiles of several GPU models.

Source: NVIDIA Multi-Instance GPU User Guide, "Supported MIG Profiles" and "GPU Instance Placements"; memory is that of
the name, minus about 3 percent for the driver.
"""

from gpu_sharing.core import mig

_SEVEN = {
    "1g": (1, (0, 1, 2, 3, 4, 5, 6)),
    "1g double": (2, (0, 2, 4, 6)),
    "2g": (2, (0, 2, 4)),
    "3g": (4, (0, 4)),
    "4g": (4, (0,)),
    "7g": (8, (0,)),
}
_FOUR = {"1g": (1, (0, 1, 2, 3)), "2g": (2, (0, 2)), "4g": (4, (0,))}


def _profiles(geometry: dict[str, tuple[int, tuple[int, ...]]], *gigabytes: int) -> tuple[mig.Profile, ...]:
    compute = max(int(kind[0]) for kind in geometry)
    return tuple(
        mig.Profile(
            f"{kind[:2]}.{size}gb",
            size * 1024 * 97 // 100,
            100 * int(kind[0]) // compute,
            tuple(mig.Slices(start, slices) for start in starts),
        )
        for (kind, (slices, starts)), size in zip(geometry.items(), gigabytes, strict=True)
    )


PROFILES = {
    "a30": _profiles(_FOUR, 6, 12, 24),
    "a100-40": _profiles(_SEVEN, 5, 10, 10, 20, 20, 40),
    "a100": _profiles(_SEVEN, 10, 20, 20, 40, 40, 80),
    "h100": _profiles(_SEVEN, 10, 20, 20, 40, 40, 80),
    "h200": _profiles(_SEVEN, 18, 35, 35, 71, 71, 141),
    "b200": _profiles(_SEVEN, 23, 45, 45, 90, 90, 180),
}
"""The profiles by model; `1g` of two memory slices has twice the memory for the compute of one."""
