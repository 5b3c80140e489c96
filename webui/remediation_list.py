"""What remediation has done and what it does not do, as rows of a table. Pure."""

from dataclasses import dataclass

from gpu_sharing.adapters import read_api_types


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One act on a node or a GPU."""

    node: str
    gpu: str
    """Empty where it concerns the node."""
    action: str
    rule: str
    state: str
    """`in effect`, `done`, or the reason why it is not done."""
    cause: str = ""
    """The fault; empty for what was done before."""


def rows(remediation: read_api_types.Remediation, node: str = "") -> list[Row]:
    """Return the acts of a node, or of all: first what is not done, then what is in effect, then what was done."""
    in_effect = {(entry.node, entry.gpu, entry.action) for entry in remediation.history if entry.holds}
    waiting = [
        Row(
            node=act.node, gpu=act.gpu, action=act.action, rule=act.rule, cause=act.cause,
            state=f"{act.reason}{f', {act.wait_seconds} s' if act.wait_seconds else ''}" if act.reason else "done",
        )
        for act in remediation.acts
        if (act.node, act.gpu, act.action) not in in_effect  # It is done, and repeated at most after its cool-down.
    ]  # fmt: skip
    done = [
        Row(
            node=entry.node, gpu=entry.gpu, action=entry.action, rule=entry.rule,
            state="in effect" if entry.holds else _done(len(entry.times)),
        )
        for entry in sorted(remediation.history, key=lambda entry: not entry.holds)
    ]  # fmt: skip
    return [row for row in (*waiting, *done) if not node or row.node == node]


def _done(times: int) -> str:
    return "done once in a day" if times == 1 else f"done {times} times in a day"
