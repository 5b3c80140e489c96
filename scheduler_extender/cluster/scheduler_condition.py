"""What kube-scheduler writes into a pod's condition `PodScheduled`, as values: which rule rejects how many nodes. Pure.

Source: k8s.io/kubernetes 1.36, `FitError.Error` of pkg/scheduler/framework/types.go, and the reasons of its plugins.
"""

import functools
import re
from dataclasses import dataclass

from gpu_sharing.core import error_codes

GATED = "SchedulingGated"
"""The condition's reason for a pod with gates; its message names none."""

_HEAD = re.compile(r"\d+/\d+ nodes are available: ")
_COUNTED = re.compile(r"(\d+) (.+)", re.DOTALL)
_BETWEEN = re.compile(r", (?=\d+ )")
_MOST_BYTES = 4096

_INSUFFICIENT = "Insufficient "
_CODES = (
    (error_codes.NODE_SELECTOR, ("node(s) didn't match Pod's node affinity/selector",)),
    (error_codes.NODE_TAINT, ("node(s) had untolerated taint", "node(s) had taints that the pod didn't tolerate")),
    (error_codes.NODE_CORDONED, ("node(s) were unschedulable",)),
    (error_codes.NODE_RESOURCES, (_INSUFFICIENT, "Too many pods")),
)
"""The codes of the rules that are known, each by the first words of its texts."""
_OF_VOLUMES = re.compile(r"volume|pvc|disk|free storage", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule by which kube-scheduler rejects nodes."""

    text: str
    """kube-scheduler's words, without the count."""
    nodes: int = 0
    """How many nodes it rejects; 0 where it rejected the pod before it examined nodes."""

    @property
    def code(self) -> error_codes.Code:
        """Our code for it; NOT_OFFERED for a rule without a code of its own, such as pod affinity."""
        for code, beginnings in _CODES:
            if self.text.startswith(beginnings):
                return code
        return error_codes.VOLUME if _OF_VOLUMES.search(self.text) else error_codes.NOT_OFFERED

    @property
    def resource(self) -> str:
        """The resource that is insufficient; empty for other rules."""
        return self.text.removeprefix(_INSUFFICIENT) if self.text.startswith(_INSUFFICIENT) else ""

    def __str__(self) -> str:
        return f"{self.nodes} {self.text}" if self.nodes else self.text


@functools.lru_cache(maxsize=1024)
def rules(message: str) -> tuple[Rule, ...]:
    """Return the rules of a condition's message; one rule with the whole text where it has another form.

    Replicas of a controller have equal messages, and each list of pods reads all of them: hence the cache.
    """
    text, head = message[:_MOST_BYTES].strip(), _HEAD.match(message)
    if not text:
        return ()
    if head is None:
        return (Rule(text),)
    # What follows is about preemption: it repeats counts and gives no reason.
    body = text[head.end() :].partition(". ")[0].rstrip(".")
    return tuple(_rule(part) for part in _BETWEEN.split(body) if part)


def _rule(part: str) -> Rule:
    counted = _COUNTED.fullmatch(part)
    return Rule(counted[2], int(counted[1])) if counted else Rule(part)
