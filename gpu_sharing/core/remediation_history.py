"""What remediation has done on one node: an annotation of the node, so that a crash or a new leader loses nothing.

Attempts, cool-downs, the budget of the cluster and the question whose a cordon is are all answered from it. A cordon
and its entry here are written by one patch, so that neither exists without the other.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_sharing.core import gpus, identifiers
from gpu_sharing.core.remediation_rules import MOST_ATTEMPTS, Action

ANNOTATION = "hami.io/remediation"
REQUEST = "hami.io/remediation-request"
"""What is requested from the maintenance of the node: `reset GPU-…` or `reboot`, with commas."""
TAINT = "hami.io/gpu-unhealthy"
NODE = identifiers.GpuUuid("")
"""In place of a GPU, for what concerns the node."""
DAY_SECONDS, HOUR_SECONDS = 86_400, 3_600
_MOST_BYTES = 64 * 1024
_MOST_ENTRIES = gpus.MOST_GPUS * len(Action)
_MOST_UNIX_SECONDS = 2**40
_LONGEST_NAME = 63
_UUID = re.compile(r"[A-Za-z0-9._/-]{0,128}")
_ACTIONS = {action.value: action for action in Action}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The acts of one kind on one GPU, or on the node."""

    action: Action
    gpu: identifiers.GpuUuid = NODE
    """Empty for an act on the node."""
    rule: str
    """The rule of the last act."""
    times: tuple[int, ...] = ()
    """Unix seconds of the acts of the last day, ascending."""
    holds: bool = False
    """Whether the effect stands by our act, so that a release ends it."""

    def within(self, seconds: int, now: float) -> int:
        """Return the number of acts of the last seconds; one in the future, by another clock, counts."""
        return sum(1 for at in self.times if at > now - seconds)


History = tuple[Entry, ...]


def entry(history: History, action: Action, gpu: identifiers.GpuUuid) -> Entry | None:
    """Return the entry of an action on a GPU, or with an empty UUID on the node."""
    return next((one for one in history if one.action is action and one.gpu == gpu), None)


def with_act(history: History, done: Entry, now: float) -> History:
    """Return the history after one more act, without what is older than a day and holds nothing.

    Args:
        history: Before the act.
        done: The act: its action, GPU and rule, and whether its effect stands from now on; its times are ignored.
        now: Unix seconds.
    """
    before = entry(history, done.action, done.gpu)
    times = (*(before.times if before else ()), int(now))[-MOST_ATTEMPTS:]
    acted = Entry(action=done.action, gpu=done.gpu, rule=done.rule, times=times, holds=done.holds)
    return _recent((*(one for one in history if one is not before), acted), now)


def without_hold(history: History, released: Iterable[Entry], now: float) -> History:
    """Return the history after a release: the entries stay for their attempts, and hold nothing."""
    keys = {(one.action, one.gpu) for one in released}
    return _recent(
        tuple(
            Entry(action=one.action, gpu=one.gpu, rule=one.rule, times=one.times)
            if (one.action, one.gpu) in keys
            else one
            for one in history
        ),
        now,
    )


def _recent(history: History, now: float) -> History:
    return tuple(one for one in history if one.holds or one.within(DAY_SECONDS, now))


def encode(history: History) -> str | None:
    """Return the annotation; None, which removes it, for an empty history."""
    items = [
        {
            "action": one.action.value, "rule": one.rule, "at": list(one.times),
            **({"gpu": one.gpu} if one.gpu else {}), **({"holds": True} if one.holds else {}),
        }
        for one in sorted(history, key=lambda one: (one.gpu, one.action.value))
    ]  # fmt: skip
    return json.dumps(items, separators=(",", ":")) if items else None


def decode(text: str) -> History:
    """Return what was done on a node; unreadable entries are ignored, so what they hold is never released."""
    try:
        items = json.loads(text) if text and len(text) <= _MOST_BYTES else []
    except (ValueError, RecursionError):
        return ()
    listed = items[:_MOST_ENTRIES] if isinstance(items, list) else []
    entries: dict[tuple[Action, str], Entry] = {}
    for item in listed:
        if isinstance(item, dict) and (read := _entry(item)):
            entries.setdefault((read.action, read.gpu), read)
    return tuple(entries.values())


def _entry(item: Mapping[str, Any]) -> Entry | None:
    action, gpu, rule = item.get("action"), item.get("gpu", ""), item.get("rule", "")
    times, holds = item.get("at", []), item.get("holds", False)
    if not isinstance(action, str) or action not in _ACTIONS or not isinstance(rule, str) or len(rule) > _LONGEST_NAME:
        return None
    if not isinstance(gpu, str) or not _UUID.fullmatch(gpu) or not isinstance(times, list):
        return None
    if not all(type(at) is int and 0 <= at < _MOST_UNIX_SECONDS for at in times[:MOST_ATTEMPTS]):
        return None
    return Entry(
        action=_ACTIONS[action],
        gpu=identifiers.GpuUuid(gpu),
        rule=rule,
        times=tuple(sorted(times[:MOST_ATTEMPTS])),
        holds=holds is True,
    )
