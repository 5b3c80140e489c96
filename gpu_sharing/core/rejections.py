"""Every reason to reject a pod on a node: code, numbers, sentence, and whether an eviction could help.

A rejection is data. kube-scheduler gets the low-cardinality phrase, because it groups identical strings; our own event,
the log and the read API print the same value with its numbers.
"""

import enum
import re
from dataclasses import dataclass

from gpu_sharing.core import error_codes

_MEGABYTES = re.compile(r"\b(\d+)MB\b")


class Reason(enum.IntEnum):
    """Why, in the order in which a node is examined: the first stage that leaves too few GPUs is the reason."""

    NONE = 0
    """It fits."""
    NODE_UNKNOWN = 1
    NODE_NOT_REGISTERED = 2
    CORRUPT_NODE_RECORD = 3
    FOREIGN_AGENT = 4
    HAMI_NODE_BUSY = 5
    TOO_FEW_GPUS = 6
    MODE = 7
    UUID = 8
    TYPE = 9
    UNHEALTHY = 10
    CORDONED = 11
    UNKNOWN_USAGE = 12
    SLOTS = 13
    EXCLUSIVE = 14
    MEMORY = 15
    CORES = 16
    NUMA = 17
    QUOTA = 18
    QUOTA_UNREADABLE = 19
    MIG_INSTANCE = 20
    GANG = 21
    DRA = 22
    """The GPUs are allocated by dynamic resource allocation."""
    NOT_OFFERED = 23
    """The GPUs fit, but kube-scheduler did not offer the node."""
    NODE_NOT_READY = 24
    """The node's kubelet is down. kube-scheduler checks its taint; these two are for people, and reject no pod."""
    NODE_CORDONED = 25
    DEVICE_CLASS = 27
    """kube-scheduler itself rejects the pod, because of a DeviceClass; likewise for people."""
    HELD_EXCLUSIVELY = 26
    """Examined with `EXCLUSIVE`, for a pod that would share: another pod holds the GPU exclusively."""


@dataclass(frozen=True, slots=True)
class ReasonInfo:
    """The code and texts of a reason."""

    code: error_codes.Code
    phrase: str
    """The text for kube-scheduler: the same for every node, so that it can count them."""
    curable: bool = False
    """Whether evicting pods of lower priority could help."""


REASONS: dict[Reason, ReasonInfo] = {
    Reason.NODE_UNKNOWN: ReasonInfo(error_codes.NODE_UNKNOWN, "node unknown to the GPU scheduler"),
    Reason.NODE_NOT_REGISTERED: ReasonInfo(error_codes.NODE_NOT_REGISTERED, "no GPUs registered"),
    Reason.CORRUPT_NODE_RECORD: ReasonInfo(error_codes.CORRUPT_NODE_RECORD, "GPU record of the node unreadable"),
    Reason.FOREIGN_AGENT: ReasonInfo(error_codes.FOREIGN_AGENT, "GPUs served by another device plugin"),
    Reason.DRA: ReasonInfo(error_codes.DRA_NODE, "GPUs allocated by DRA"),
    Reason.HAMI_NODE_BUSY: ReasonInfo(error_codes.HAMI_NODE_BUSY, "node still starting another GPU pod"),
    Reason.TOO_FEW_GPUS: ReasonInfo(error_codes.TOO_FEW_GPUS, "too few GPUs"),
    Reason.MODE: ReasonInfo(error_codes.MODE_MISMATCH, "GPU mode mismatch"),
    Reason.UUID: ReasonInfo(error_codes.UUID_MISMATCH, "GPU UUID mismatch"),
    Reason.TYPE: ReasonInfo(error_codes.TYPE_MISMATCH, "device type mismatch"),
    Reason.UNHEALTHY: ReasonInfo(error_codes.GPU_UNHEALTHY, "GPU unhealthy"),
    Reason.CORDONED: ReasonInfo(error_codes.GPU_CORDONED, "GPU cordoned"),
    Reason.UNKNOWN_USAGE: ReasonInfo(error_codes.UNKNOWN_USAGE, "GPU usage unknown"),
    Reason.SLOTS: ReasonInfo(error_codes.SLOTS_EXHAUSTED, "GPU slots exhausted", curable=True),
    Reason.EXCLUSIVE: ReasonInfo(error_codes.GPU_NOT_EXCLUSIVE, "no GPU free for exclusive use", curable=True),
    Reason.HELD_EXCLUSIVELY: ReasonInfo(
        error_codes.GPU_HELD_EXCLUSIVELY, "GPU held exclusively by another pod", curable=True
    ),
    Reason.MEMORY: ReasonInfo(error_codes.INSUFFICIENT_GPU_MEMORY, "GPU memory insufficient", curable=True),
    Reason.CORES: ReasonInfo(error_codes.INSUFFICIENT_GPU_CORES, "GPU cores insufficient", curable=True),
    Reason.NUMA: ReasonInfo(error_codes.NUMA_MISMATCH, "too few GPUs on one NUMA node", curable=True),
    Reason.QUOTA: ReasonInfo(error_codes.QUOTA_EXCEEDED, "quota exceeded"),
    Reason.QUOTA_UNREADABLE: ReasonInfo(error_codes.QUOTA_UNREADABLE, "quota unreadable"),
    Reason.MIG_INSTANCE: ReasonInfo(error_codes.NO_MIG_INSTANCE, "no MIG instance free", curable=True),
    Reason.GANG: ReasonInfo(error_codes.GANG_WAITS, "waits for its gang"),
    Reason.NOT_OFFERED: ReasonInfo(error_codes.NOT_OFFERED, "ruled out by kube-scheduler"),
    Reason.NODE_NOT_READY: ReasonInfo(error_codes.NODE_NOT_READY, "node not ready"),
    Reason.NODE_CORDONED: ReasonInfo(error_codes.NODE_CORDONED, "node cordoned"),
    Reason.DEVICE_CLASS: ReasonInfo(error_codes.DEVICE_CLASS, "kept away by a DeviceClass"),
}


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one pod does not fit on one node."""

    reason: Reason
    requested: str = ""
    """What was requested, with its unit, such as `8000MB`; empty where the reason has no numbers."""
    available: str = ""
    """The most that the node has free, in the same unit."""
    namespace: str = ""
    """The namespace of the quota, if the reason is a quota."""
    detail: str = ""
    """More than the phrase, as a separate sentence."""

    @property
    def available_words(self) -> str:
        """What is available, with MiB, such as `4000 MiB` or `30%`; empty where there is nothing of it."""
        return "" if self.available in ("0MB", "0%") else _MEGABYTES.sub(r"\1 MiB", self.available)

    @property
    def sentence(self) -> str:
        """The same as `str`, with MiB and thousands: only the texts of events have MB, as HAMi's do."""
        return _MEGABYTES.sub(lambda match: f"{int(match[1]):,} MiB", str(self))

    @property
    def info(self) -> ReasonInfo:
        """Its code, phrase and curability."""
        return REASONS[self.reason]

    @property
    def code(self) -> error_codes.Code:
        """Its code in the registry."""
        return self.info.code

    def __str__(self) -> str:
        if self.namespace:
            return f"{self.info.phrase} (namespace {self.namespace}): {self.detail}"
        if self.detail:
            return f"{self.info.phrase} ({self.detail})"
        if not self.requested:
            return self.info.phrase
        verb = "has" if self.reason in (Reason.TYPE, Reason.MODE, Reason.TOO_FEW_GPUS) else "available"
        return f"{self.info.phrase} (requested {self.requested}, {verb} {self.available})"
