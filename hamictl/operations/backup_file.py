"""The file of a backup: versioned JSON with a checksum, read within limits. Pure.

The checksum finds damage, not forgery: what a file may contain is limited by the kinds and keys that are read here.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gpu_sharing.core import error_codes, records, remediation_history
from hamictl import failures
from hamictl.operations import writing

KIND, VERSION = "hami-backup", 1
MOST_BYTES = 64 * 1024 * 1024
SET_BY_ADMINISTRATORS = (records.CORDON, records.RELEASE)
"""Annotations of nodes with UUIDs of GPUs; a restore adds UUIDs and removes none."""
LEARNED = (remediation_history.ANNOTATION, records.MIG_MADE)
"""Annotations of nodes that our processes write; a restore writes them only where they are missing."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class NodeState(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a node has that is not read from its machine."""

    name: str
    annotations: dict[str, str] = {}  # msgspec copies it
    """Of `SET_BY_ADMINISTRATORS` and `LEARNED`."""
    labels: dict[str, str] = {}
    """Those that select our DaemonSets."""


class ConfigMap(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A ConfigMap of the installation."""

    name: str
    data: dict[str, str] = {}
    chart: str = ""
    """The chart and version that made it; empty where a person did."""


class Quota(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A ResourceQuota that limits GPUs."""

    namespace: str
    name: str
    hard: dict[str, str] = {}
    scopes: list[str] = []
    scope_selector: dict[str, Any] = {}


class PriorityClass(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A priority class, by which preemption decides."""

    name: str
    value: int = 0
    global_default: bool = False
    preemption_policy: str = ""
    description: str = ""


class Secret(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A Secret of the installation; only on demand."""

    name: str
    type: str = ""
    data: dict[str, str] = {}
    """In base64, as in the API."""


class Content(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The content of a backup, by kind."""

    config_maps: list[ConfigMap] = []
    nodes: list[NodeState] = []
    quotas: list[Quota] = []
    priority_classes: list[PriorityClass] = []
    secrets: list[Secret] = []
    helm_values: dict[str, Any] | None = None
    """The values that were set, without the chart's defaults."""

    def counts(self) -> str:
        """Return the numbers of objects for people."""
        words: dict[str, Sequence[object]] = {
            "ConfigMaps": self.config_maps, "nodes with settings": self.nodes, "quotas": self.quotas,
            "priority classes": self.priority_classes, "Secrets": self.secrets,
        }  # fmt: skip
        text = ", ".join(f"{len(some)} {word}" for word, some in words.items() if some or word != "Secrets")
        return text + (", Helm values" if self.helm_values is not None else "")


class Backup(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A backup with its origin."""

    kind: str
    version: int
    at: str
    """When it was made, in UTC."""
    program: str
    """The version of hamictl."""
    cluster_uid: str
    """UID of the namespace kube-system, which no two clusters share."""
    namespace: str
    """Of the installation."""
    content: Content
    left_out: list[str] = []
    """What is not in it, and why."""


def encode(backup: Backup) -> bytes:
    """Return the file's bytes."""
    fields: dict[str, Any] = msgspec.to_builtins(backup)
    return json.dumps({**fields, "checksum": _checksum(fields)}, indent=1, ensure_ascii=False).encode() + b"\n"


def _checksum(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def decode(data: bytes) -> Backup:
    """Return the backup of a file.

    Raises:
        CommandFailed: The file is damaged, of a newer version, or no backup.
    """
    if len(data) > MOST_BYTES:
        raise _damaged(f"it is larger than {MOST_BYTES >> 20} MiB")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise _damaged(f"it is not JSON: {failures.first_line(cause)}") from cause
    if not isinstance(fields, dict) or fields.get("kind") != KIND:
        raise _damaged(f"it has no kind {KIND}")
    version = fields.get("version")
    if isinstance(version, int) and version > VERSION:
        detail = f"it has version {version}, and this hamictl reads up to {VERSION}"
        raise writing.refusal(error_codes.OPS_BACKUP_TOO_NEW, detail)
    checksum = fields.pop("checksum", None)
    try:
        matches = checksum == _checksum(fields)
        backup = msgspec.convert(fields, Backup) if matches else None
    except (ValueError, RecursionError) as cause:  # Half of a pair of characters has no bytes, and so no checksum.
        raise _damaged(failures.first_line(cause)) from cause
    if backup is None:
        raise _damaged("its checksum does not match its content")
    for problem in _problems(backup.content):
        raise _damaged(problem)
    return backup


def _damaged(detail: str) -> failures.CommandFailed:
    return writing.refusal(error_codes.OPS_BACKUP_DAMAGED, detail)


def _problems(content: Content) -> Iterator[str]:
    """Yield what no backup contains: names that would leave their path, and annotations that are not ours."""
    kinds = (content.config_maps, content.nodes, content.quotas, content.priority_classes, content.secrets)
    names = [str(getattr(one, "name", "")) for some in kinds for one in some]
    names += [quota.namespace for quota in content.quotas]
    for name in names:
        if not _NAME.fullmatch(name):
            yield f"{name[:80]!r} is not the name of an object"
    for node in content.nodes:
        for key in node.annotations:
            if key not in (*SET_BY_ADMINISTRATORS, *LEARNED):
                yield f"node/{node.name}: the annotation {key[:80]!r} is not one that a backup has"
