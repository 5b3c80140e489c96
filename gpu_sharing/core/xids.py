"""The required action for each XID, the number with which NVIDIA's driver reports a fault.

Source: NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors) and its machine-readable form in NVSentinel, both of
2026. Codes that it does not list are treated as a fault of the GPU, which `Overrides` can change.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

TABLE_VERSION = "2026-06"


class Need(enum.IntEnum):
    """The action before a GPU may be used again; the larger one applies."""

    NOTHING = 0
    """It may recover by itself."""
    RESET = 1
    """The GPU must be reset."""
    REBOOT = 2
    """The node must be restarted."""
    REPLACEMENT = 3
    """The hardware must be checked."""


WORDS = {
    Need.NOTHING: "wait: it may recover by itself",
    Need.RESET: "drain its pods and reset the GPU (nvidia-smi --gpu-reset)",
    Need.REBOOT: "drain and reboot the node",
    Need.REPLACEMENT: "drain the node and have the hardware checked",
}
"""The action, as events print it."""


class Verdict(enum.Enum):
    """The effect of a fault on the GPU."""

    IGNORE = "ignore"
    """Information only; counted."""
    RESTART_APP = "restart the application"
    """A fault of the program that used the GPU; the GPU stays healthy."""
    ASK_DRIVER = "ask the driver"
    """The driver's recovery action decides."""
    FAULTY = "faulty"
    """The GPU must not be used until `Xid.need` has happened."""


@dataclass(frozen=True, slots=True)
class Xid:
    """One line of the table."""

    number: int
    name: str
    verdict: Verdict
    need: Need = Need.NOTHING
    most_per_hour: int = 0
    """If positive: more than this many in an hour make the GPU unhealthy, with need `RESET`."""


_NAMES = {
    8: "GPU stopped processing", 11: "invalid push buffer stream", 13: "graphics engine exception",
    14: "unused", 25: "invalid or corrupted push buffer", 31: "GPU memory page fault", 32: "invalid push buffer stream",
    37: "driver firmware error", 38: "driver firmware error", 43: "GPU stopped processing",
    44: "graphics engine fault during context switch", 45: "preemptive cleanup, due to previous errors",
    46: "GPU stopped processing", 48: "double bit ECC error", 54: "auxiliary power is not connected",
    62: "internal micro-controller halt", 63: "row remapping recorded", 64: "row remapping failed to record",
    68: "video processor exception", 74: "NVLink error", 78: "vGPU start error", 79: "GPU has fallen off the bus",
    92: "high single bit ECC error rate", 94: "contained ECC error", 95: "uncontained ECC error",
    109: "context switch timeout", 110: "security fault", 119: "GSP RPC timeout", 120: "GSP error",
    121: "C2C NVLink error", 136: "ALI training failed", 137: "NVLink fault of a neighbour",
    140: "unrecovered ECC error", 142: "NVENC3 error", 143: "GPU initialization failed", 151: "key rotation error",
    154: "GPU recovery action changed", 155: "NVLink: software defined error", 156: "resource retirement event",
    158: "GPU fatal timeout", 159: "CHI non-data error", 163: "the reset of a feature failed",
}  # fmt: skip


def _build() -> Mapping[int, Xid]:
    table: dict[int, Xid] = {}

    def add(verdict: Verdict, numbers: range | tuple[int, ...], need: Need = Need.NOTHING, per_hour: int = 0) -> None:
        for number in numbers:
            table[number] = Xid(number, _NAMES.get(number, "application fault"), verdict, need, per_hour)

    add(Verdict.RESTART_APP, (8, 11, 13, 25, 31, 32, 39, 40, 41, 45, 60, 80, 88, 89, 94, 139))
    for first, last in ((68, 72), (75, 77), (82, 86), (96, 105), (126, 135)):
        add(Verdict.RESTART_APP, range(first, last + 1))
    add(Verdict.IGNORE, (14, 37, 38, 43, 44, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 157, 160, 161))
    add(Verdict.FAULTY, (46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158), Need.RESET)
    add(Verdict.FAULTY, (74, *range(144, 151)), Need.RESET)
    add(Verdict.FAULTY, (79, 151), Need.REBOOT)
    add(Verdict.FAULTY, (54, 142), Need.REPLACEMENT)
    add(Verdict.RESTART_APP, (78, 159), per_hour=3)
    add(Verdict.ASK_DRIVER, (154,))
    return table


TABLE = _build()


def of(number: int) -> Xid:
    """Return the line of an XID; one that the catalogue does not list is a fault that needs a reset."""
    return TABLE.get(number) or Xid(number, "not in the catalogue", Verdict.FAULTY, Need.RESET)


@dataclass(frozen=True, slots=True)
class Overrides:
    """An administrator's changes of the table: `DP_DISABLE_HEALTHCHECKS` and `DP_ENABLE_HEALTHCHECKS`."""

    disabled: frozenset[int] = frozenset()
    all_disabled: bool = False
    enabled: frozenset[int] = field(default_factory=frozenset)
    all_enabled: bool = False

    def of(self, number: int) -> Xid:
        """Return the line that applies: enabled overrides disabled, both override the table."""
        line = of(number)
        if self.all_enabled or number in self.enabled:
            return line if line.verdict is Verdict.FAULTY else Xid(number, line.name, Verdict.FAULTY, Need.RESET)
        if self.all_disabled or number in self.disabled:
            return Xid(number, line.name, Verdict.IGNORE)
        return line


_LONGEST_NUMBER = 10
"""Digits of an XID, which is an unsigned 32-bit number."""
_LONGEST_WORD = 40


def read_overrides(disable: str, enable: str) -> tuple[Overrides, tuple[str, ...]]:
    """Read the two variables as NVIDIA's device plugin does.

    Args:
        disable: `all`, `xids`, or numbers separated by commas.
        enable: `all`, or numbers; overrides `disable`.

    Returns:
        The overrides, and the unknown words, which are ignored.
    """
    off, on = _words(disable), _words(enable)
    strange = tuple(
        word[:_LONGEST_WORD] for word in (*off, *on) if not _is_number(word) and word not in ("all", "xids")
    )
    return (
        Overrides(
            frozenset(int(word) for word in off if _is_number(word)),
            "all" in off or "xids" in off,
            frozenset(int(word) for word in on if _is_number(word)),
            "all" in on,
        ),
        strange,
    )


def _is_number(word: str) -> bool:
    return word.isdecimal() and len(word) <= _LONGEST_NUMBER


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",") if word.strip()]
