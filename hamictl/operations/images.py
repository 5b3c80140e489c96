"""References of images, and which containers an update changes. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_sharing.core import error_codes
from hamictl.operations import installed, writing

_LONGEST = 512
_OUR_MODULES = frozenset({"scheduler_extender", "device_plugin", "webui", "fault_injector"})
"""The first argument of our containers is a module of these packages: their image's entry point runs it."""
_REFERENCE = re.compile(
    r"(?P<repository>[a-zA-Z0-9][a-zA-Z0-9.-]*(:\d{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)"
    r"(:(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""Source: the grammar of references of distribution/reference."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference of an image."""

    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """The last part of the repository, which stays the same in a mirror."""
        return self.repository.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Change:
    """The containers of one part that get another image."""

    part: installed.Part
    before: Mapping[str, str]
    """The image of each of them now, by the container's name."""


def parse(text: str) -> Reference:
    """Return a reference with a tag or a digest.

    Raises:
        CommandFailed: It is malformed, or has neither.
    """
    match = _REFERENCE.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise writing.refusal(error_codes.OPS_IMAGE_INVALID, f"{text[:80]!r} is not a reference of an image")
    reference = _split(text)
    if not reference.tag and not reference.digest:
        raise writing.refusal(error_codes.OPS_IMAGE_INVALID, f"{text} has neither a tag nor a digest")
    return reference


def _split(text: str) -> Reference:
    named, _, digest = text.partition("@")
    head, colon, tag = named.rpartition(":")
    if not colon or "/" in tag:
        return Reference(named, "", digest)
    return Reference(head, tag, digest)


def changes(parts: Sequence[installed.Part], wanted: Reference) -> list[Change]:
    """Return the changes of the parts that run an image of that name, without containers that have it already.

    Containers of other projects, such as kube-scheduler and HAMi-core, are left as they are, even if their image has
    that name.

    Raises:
        CommandFailed: No container of ours runs an image of that name.
    """
    known: set[str] = set()
    found: list[Change] = []
    is_run = False
    for part in parts:
        before: dict[str, str] = {}
        for _, container in installed.containers(part):
            if not _is_ours(container):
                continue
            image = str(container.get("image", ""))
            now = _split(image)
            known.add(now.name)
            is_run = is_run or now.name == wanted.name
            if now.name == wanted.name and now != wanted:
                before[str(container.get("name", ""))] = image
        if before:
            found.append(Change(part, before))
    if not is_run:
        detail = f"no container of ours runs an image named {wanted.name}; there are {', '.join(sorted(known))}"
        raise writing.refusal(error_codes.OPS_IMAGE_UNKNOWN, detail)
    return found


def _is_ours(container: Mapping[str, Any]) -> bool:
    module = str((container.get("args") or [""])[0])
    return not container.get("command") and module.partition(".")[0] in _OUR_MODULES


def patch(change: Change, images: Mapping[str, str]) -> dict[str, Any]:
    """Return the strategic merge patch that gives containers of a part their images, with its UID as precondition."""
    spec: dict[str, list[dict[str, str]]] = {}
    for field, container in installed.containers(change.part):
        name = str(container.get("name", ""))
        if name in images:
            spec.setdefault(field, []).append({"name": name, "image": images[name]})
    return {"metadata": {"uid": change.part.workload.metadata.uid}, "spec": {"template": {"spec": spec}}}


def differs(now: installed.Part, change: Change, images: Mapping[str, str]) -> bool:
    """Return whether a container of the change has another image now than that of `images`."""
    by_name = {str(one.get("name", "")): one.get("image") for _, one in installed.containers(now)}
    return any(by_name.get(name) != images[name] for name in change.before)
