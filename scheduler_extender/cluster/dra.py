"""What Dynamic Resource Allocation has of the GPUs: nodes whose GPUs its driver allocates, classes that offer them."""

from collections.abc import Callable, Iterator

from gpu_sharing.adapters import objects
from gpu_sharing.core import identifiers

DRIVER = "gpu.nvidia.com"
"""The name of NVIDIA's DRA driver."""


class GpuNodes:
    """The nodes whose GPUs NVIDIA's DRA driver allocates, by their ResourceSlices."""

    def __init__(self, changed: Callable[[frozenset[identifiers.NodeName]], None]) -> None:
        self._changed = changed
        self._nodes: dict[str, identifiers.NodeName] = {}

    def replace(self, slices: list[objects.ResourceSlice], listed_at: float) -> Iterator[None]:
        """Learn all slices; those not listed are gone."""
        del listed_at
        self._nodes.clear()
        for item in slices:
            self._add(item)
        self._changed(frozenset(self._nodes.values()))
        yield

    def see(self, item: objects.ResourceSlice) -> None:
        """Learn a slice, or that it changed."""
        self._add(item)
        self._changed(frozenset(self._nodes.values()))

    def remove(self, item: objects.ResourceSlice) -> None:
        """Learn that a slice is gone."""
        self._nodes.pop(item.metadata.name, None)
        self._changed(frozenset(self._nodes.values()))

    def _add(self, item: objects.ResourceSlice) -> None:
        if item.spec.driver == DRIVER and item.spec.node_name:
            self._nodes[item.metadata.name] = identifiers.NodeName(item.spec.node_name)


class OfferingClasses:
    """The DeviceClasses that offer the resource by which pods count GPUs; the first by name is reported."""

    def __init__(self, resource: str, changed: Callable[[str], None]) -> None:
        self._resource = resource
        self._changed = changed
        self._offering: set[str] = set()

    def replace(self, classes: list[objects.DeviceClass], listed_at: float) -> Iterator[None]:
        """Learn all classes; those not listed are gone."""
        del listed_at
        self._offering.clear()
        for item in classes:
            self._add(item)
        self._changed(min(self._offering, default=""))
        yield

    def see(self, item: objects.DeviceClass) -> None:
        """Learn a class, or that it changed."""
        self._add(item)
        self._changed(min(self._offering, default=""))

    def remove(self, item: objects.DeviceClass) -> None:
        """Learn that a class is gone."""
        self._offering.discard(item.metadata.name)
        self._changed(min(self._offering, default=""))

    def _add(self, item: objects.DeviceClass) -> None:
        offers = item.spec.extended_resource_name == self._resource
        (self._offering.add if offers else self._offering.discard)(item.metadata.name)
