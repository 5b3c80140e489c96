"""A mirror whose watch is an API server in a dictionary, for controllers that read the one and write the other."""

from typing import Any

import msgspec

from gpu_sharing.adapters import objects
from gpu_sharing.core import records
from tests.support import fakes
from tests.support.extender_world import World


class Scene:
    """A cluster that tests change and controllers act on."""

    def __init__(self, *nodes: dict[str, Any], **changes: Any) -> None:
        self.world = World(*nodes, **changes)
        self.api = fakes.FakeApi()

    def put(self, *bodies: dict[str, Any]) -> None:
        for body in bodies:
            self.api.put(body)
        self.watch()

    def delete(self, *names: str) -> None:
        for name in names:
            self.api.delete(name)
        self.watch()

    def watch(self) -> None:
        """The mirror sees what was written."""
        for kind, body in self.api.stream:
            seen = msgspec.convert(body, objects.Pod)
            sink = self.world.mirror.pods
            sink.deleted(seen) if kind == "DELETED" else sink.changed(seen)
        self.api.stream.clear()

    def hold(self, name: str) -> records.Hold | None:
        return records.decode_hold(self.api.pods[name]["metadata"]["annotations"].get(records.HOLD, ""))
