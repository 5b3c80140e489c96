"""The rows and texts of a simulation: replicas of one controller together, and for each no its numbers. Pure."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_sharing.adapters import read_api_types
from hamictl import views
from hamictl.simulation import Filling, Outcome
from scheduler_extender.fleet import model_stats

_MOST_NODES_NAMED = 3


@dataclass(frozen=True, slots=True)
class Group:
    """The pods of one controller, or one pod."""

    name: str
    outcomes: Sequence[Outcome]

    @property
    def fitting(self) -> int:
        """The number of its pods that fit, or that request no GPU."""
        return sum(1 for one in self.outcomes if one.node or not one.code)

    @property
    def rejected(self) -> list[Outcome]:
        """Its pods that would be pending."""
        return [one for one in self.outcomes if one.code]

    def to_facts(self) -> dict[str, Any]:
        """Return the group for JSON."""
        reasons = collections.Counter(one.code for one in self.rejected)
        return {"group": self.name, "pods": len(self.outcomes), "fit": self.fitting, "rejected_by_code": dict(reasons)}


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a simulation."""

    pods: Sequence[Outcome]
    models_before: Sequence[model_stats.ModelCount]
    models_after: Sequence[model_stats.ModelCount]
    trace: Filling | None = None
    """The statistics of a trace, if the cluster is one's."""

    @property
    def groups(self) -> list[Group]:
        """The pods by their controllers."""
        return grouped(self.pods)

    def to_facts(self) -> dict[str, Any]:
        """Return the result for JSON."""
        facts: dict[str, Any] = {
            "pods": msgspec.to_builtins(self.pods),
            "groups": [group.to_facts() for group in self.groups],
            "models": {
                "before": msgspec.to_builtins(self.models_before), "after": msgspec.to_builtins(self.models_after),
            },
        }  # fmt: skip
        return facts | ({"trace": msgspec.to_builtins(self.trace)} if self.trace else {})


def grouped(outcomes: Iterable[Outcome]) -> list[Group]:
    """Return the groups in the order of their first pods."""
    by_name: dict[str, list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        by_name[outcome.group].append(outcome)
    return [Group(name, members) for name, members in by_name.items()]


def pod_rows(outcomes: Iterable[Outcome]) -> list[dict[str, str]]:
    """Return one row a pod."""
    return [
        {
            "POD": one.pod,
            "NODE": one.node or "-",
            "GPUS": ",".join(dict.fromkeys(one.gpus)) or "-",
            "WHY": one.why.partition("\n")[0] or "fits",
        }
        for one in outcomes
    ]


def group_rows(groups: Iterable[Group]) -> list[dict[str, str]]:
    """Return one row a group; a group of one pod has the row of the pod."""
    rows = []
    for group in groups:
        if len(group.outcomes) == 1:
            rows += pod_rows(group.outcomes)
            continue
        used = {uuid for one in group.outcomes for uuid in one.gpus}
        why = f"{group.fitting} of {len(group.outcomes)} fit"
        rejections = collections.Counter(one.why.partition("\n")[0] for one in group.rejected)
        if rejections:
            why += f"; {rejections.most_common(1)[0][0]}"
        rows.append(
            {
                "POD": f"{group.name} ({len(group.outcomes)} pods)",
                "NODE": _nodes(group.outcomes),
                "GPUS": ",".join(sorted(used)) if len(used) == 1 else f"{len(used)} GPUs" if used else "-",
                "WHY": why,
            }
        )
    return rows


def _nodes(outcomes: Iterable[Outcome]) -> str:
    """Return the nodes with the number of pods on each, such as `a (3), b (2) and 4 more nodes`."""
    counts = collections.Counter(one.node for one in outcomes if one.node)
    named = [f"{name} ({count})" for name, count in counts.most_common(_MOST_NODES_NAMED)]
    others = len(counts) - len(named)
    return (", ".join(named) + (f" and {others} more nodes" if others else "")) or "-"


def rejections(groups: Iterable[Group], explanations: Mapping[str, read_api_types.Explanation]) -> str:
    """Return for each group with rejected pods the reason with its numbers, and what to do; empty without any.

    Args:
        groups: Of a simulation.
        explanations: By the name of the group, of its first rejected pod.
    """
    texts = []
    for group in groups:
        if not group.rejected:
            continue
        first = group.rejected[0]
        explained = explanations.get(group.name)
        if explained:
            text = views.explanation(explained).replace(" is pending: ", " would be pending: ", 1)
            text = text.replace(" (hamictl explain --all lists each)", "")
        else:
            text = f"{first.pod} would be refused: {first.why} [{first.code}]\n  what to do: {first.advice}"
        count = len(group.rejected)
        texts.append(text + (f"\n({count - 1} more of {group.name} would be pending)" if count > 1 else ""))
    return "\n\n".join(texts)
