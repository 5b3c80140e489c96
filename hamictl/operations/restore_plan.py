"""The steps of a restore: what differs between a backup and a cluster, and the writes that end it. Pure.

A restore adds and changes. It deletes nothing, ends no cordon, and leaves state that was learned since as it is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_sharing.core import records
from hamictl.operations import backup_file
from hamictl.operations.backup_file import Content

CREATE, CHANGE, SKIP = "create", "change", "skip"
_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One object that differs."""

    kind: str
    """`CREATE`, `CHANGE` or `SKIP`."""
    about: str
    """The object, such as `node/a`."""
    lines: Sequence[str]
    """The differences, or why it is skipped."""
    path: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)


def steps(saved: Content, now: Content, versions: Mapping[str, str], namespace: str) -> list[Step]:
    """Return the steps, in the order in which they are done.

    Args:
        saved: The backup.
        now: The cluster, with every node.
        versions: As of `ClusterState.versions`, the preconditions of the writes.
        namespace: Of the installation.
    """
    return [
        *_priority_classes(saved, now),
        *_quotas(saved, now, versions),
        *_config_maps(saved, now, versions, namespace),
        *_secrets(saved, now, versions, namespace),
        *_nodes(saved, now, versions),
    ]


def _priority_classes(saved: Content, now: Content) -> Iterator[Step]:
    present = {one.name: one for one in now.priority_classes}
    for one in saved.priority_classes:
        about, known = f"priorityclass/{one.name}", present.get(one.name)
        if known is not None:
            if known.value != one.value:
                yield Step(kind=SKIP, about=about, lines=[f"value {known.value} cannot be changed to {one.value}"])
            continue
        body: dict[str, Any] = {"metadata": {"name": one.name}, "value": one.value, "description": one.description}
        body |= {"globalDefault": True} if one.global_default else {}
        body |= {"preemptionPolicy": one.preemption_policy} if one.preemption_policy else {}
        path = "/apis/scheduling.k8s.io/v1/priorityclasses"
        yield Step(kind=CREATE, about=about, lines=[f"+ value {one.value}"], path=path, body=body)


def _quotas(saved: Content, now: Content, versions: Mapping[str, str]) -> Iterator[Step]:
    present = {(one.namespace, one.name): one for one in now.quotas}
    for one in saved.quotas:
        about, known = f"resourcequota/{one.namespace}/{one.name}", present.get((one.namespace, one.name))
        path = f"/api/v1/namespaces/{one.namespace}/resourcequotas"
        if known is None:
            spec: dict[str, Any] = {"hard": one.hard}
            spec |= {"scopes": one.scopes} if one.scopes else {}
            spec |= {"scopeSelector": one.scope_selector} if one.scope_selector else {}
            body = {"metadata": {"name": one.name}, "spec": spec}
            yield Step(kind=CREATE, about=about, lines=_added(one.hard), path=path, body=body)
            continue
        changed = {key: text for key, text in one.hard.items() if known.hard.get(key) != text}
        if changed:
            yield Step(
                kind=CHANGE, about=about, lines=_lines(known.hard, changed), path=f"{path}/{one.name}",
                body={"metadata": {"resourceVersion": versions.get(about)}, "spec": {"hard": changed}},
            )  # fmt: skip


def _config_maps(saved: Content, now: Content, versions: Mapping[str, str], namespace: str) -> Iterator[Step]:
    present = {one.name: one for one in now.config_maps}
    for one in saved.config_maps:
        about, known = f"configmap/{one.name}", present.get(one.name)
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        if known is None and one.chart:
            yield Step(kind=SKIP, about=about, lines=[f"it was made by {one.chart}: restore the Helm values"])
        elif known is None:
            body = {"metadata": {"name": one.name}, "data": one.data}
            yield Step(kind=CREATE, about=about, lines=_added(one.data), path=path, body=body)
        elif known.chart != one.chart:
            made = f"it is now of {known.chart or 'no chart'}, and was of {one.chart or 'no chart'}"
            yield Step(kind=SKIP, about=about, lines=[f"{made}: restore the Helm values"])
        elif known.data != one.data:
            data: dict[str, str | None] = dict.fromkeys(known.data) | one.data
            data = {key: text for key, text in data.items() if known.data.get(key) != text}
            yield Step(
                kind=CHANGE, about=about, lines=_lines(known.data, data), path=f"{path}/{one.name}",
                body={"metadata": {"resourceVersion": versions.get(about)}, "data": data},
            )  # fmt: skip


def _secrets(saved: Content, now: Content, versions: Mapping[str, str], namespace: str) -> Iterator[Step]:
    present = {one.name: one for one in now.secrets}
    for one in saved.secrets:
        about, known = f"secret/{one.name}", present.get(one.name)
        path = f"/api/v1/namespaces/{namespace}/secrets"
        keys = sorted(key for key in one.data if known is None or known.data.get(key) != one.data[key])
        lines = [f"~ {key}: not shown" for key in keys]
        if known is None:
            body = {"metadata": {"name": one.name}, "type": one.type, "data": one.data}
            yield Step(kind=CREATE, about=about, lines=lines, path=path, body=body)
        elif keys:
            yield Step(
                kind=CHANGE, about=about, lines=lines, path=f"{path}/{one.name}",
                body={
                    "metadata": {"resourceVersion": versions.get(about)}, "data": {key: one.data[key] for key in keys}
                },
            )  # fmt: skip


def _nodes(saved: Content, now: Content, versions: Mapping[str, str]) -> Iterator[Step]:
    present = {one.name: one for one in now.nodes}
    for one in saved.nodes:
        about, known = f"node/{one.name}", present.get(one.name)
        if known is None:
            yield Step(kind=SKIP, about=about, lines=["the node does not exist"])
            continue
        annotations = dict(_annotations(one.annotations, known.annotations))
        labels = {key: text for key, text in one.labels.items() if known.labels.get(key) != text}
        if annotations or labels:
            metadata = {"resourceVersion": versions.get(about), "annotations": annotations, "labels": labels}
            lines = [*_lines(known.annotations, annotations), *_lines(known.labels, labels)]
            body = {"metadata": {key: part for key, part in metadata.items() if part}}
            yield Step(kind=CHANGE, about=about, lines=lines, path=f"/api/v1/nodes/{one.name}", body=body)


def _annotations(saved: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key in backup_file.SET_BY_ADMINISTRATORS:
        before = records.decode_cordon(now.get(key, ""))
        together = before | records.decode_cordon(saved.get(key, ""))
        if together != before:
            yield key, ",".join(sorted(together))
    for key in backup_file.LEARNED:
        if saved.get(key) and not now.get(key):
            yield key, saved[key]


def _added(values: Mapping[str, str]) -> list[str]:
    return [f"+ {key}: {_short(text)}" for key, text in sorted(values.items())]


def _lines(before: Mapping[str, str], after: Mapping[str, str | None]) -> list[str]:
    """Return one line for each key of `after`; None there removes the key."""
    lines = []
    for key, text in sorted(after.items()):
        if text is None:
            lines.append(f"- {key}: {_short(before[key])}")
        elif key in before:
            lines.append(f"~ {key}: {_short(before[key])} -> {_short(text)}")
        else:
            lines.append(f"+ {key}: {_short(text)}")
    return lines


def _short(text: str) -> str:
    """Return a value on one line; a long one by its size."""
    if len(text) <= _LONGEST_SHOWN and text.isprintable():
        return text or '""'
    return (
        f"{len(text):,} characters, {text.count(chr(10)) + 1:,} lines" if "\n" in text else f"{len(text):,} characters"
    )


def encode(step: Step) -> bytes:
    """Return the body of a step's write."""
    return json.dumps(step.body).encode()
