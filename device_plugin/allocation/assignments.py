"""Resolves what a container gets: its record, its GPUs and its specification become one `Assignment`."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from device_plugin.allocation import checks
from device_plugin.isolation.assignment import Assignment
from device_plugin.node.api_objects import Container, Pod
from device_plugin.node.local_node import LocalNode
from device_plugin.node.pods import Pods
from gpu_sharing.core import allocations, errors, identifiers, records, requests


class Assignments:
    """Resolves assignments by the records of this node's pods.

    Args:
        node: This node.
        pods: Its pods.
        names: The resource names under which containers request GPUs.
    """

    def __init__(self, node: LocalNode, pods: Pods, names: requests.ResourceNames) -> None:
        self._node = node
        self._pods = pods
        self.names = names

    def shares(self, pod: Pod, container: str, device_id_count: int) -> tuple[allocations.Share, ...]:
        """Return the shares of a container with so many device ids, by its record.

        Raises:
            StartRefused: See `checks.recorded_shares`.
        """
        return checks.recorded_shares(pod, container, device_id_count, self._node.name, names=self.names)

    def resolve(
        self, pod: Pod, container: str, *, device_id_count: int, allocation: str = "", by_cdi: bool = True
    ) -> Assignment:
        """Return what a container gets.

        Args:
            pod: The container's pod.
            container: The container's name.
            device_id_count: How many device ids the kubelet gave it: one a GPU.
            allocation: The name of the allocation.
            by_cdi: Whether the container names its allocation by CDI.

        Raises:
            StartRefused: The record gives it nothing, or not this number of GPUs, or GPUs that the node does not have.
        """
        shares = self.shares(pod, container, device_id_count)
        devices = checks.recorded_devices(pod, shares, self._node.devices)
        placed = pod.container(container)
        assert placed is not None
        position, specification = placed
        assignment = self._assignment(pod, position, specification, shares)
        return replace(assignment, devices=devices, allocation=allocation, by_cdi=by_cdi)

    def with_current_devices(self, pod: Pod, assignment: Assignment) -> Assignment:
        """Return the assignment with its GPUs as they are now, such as with MIG instances that were just made.

        Raises:
            StartRefused: The node does not have one of them any more.
        """
        return replace(assignment, devices=checks.recorded_devices(pod, assignment.shares, self._node.devices))

    def neighbours(self, assignment: Assignment) -> Iterator[Assignment]:
        """Yield the other containers on the same GPUs, by their records."""
        gpus = {share.uuid for share in assignment.shares}
        pods = {pod.uid: pod for uuid in gpus for pod, _ in self._pods.holders(uuid)}
        for pod in pods.values():
            for other in self._of_pod(pod):
                is_other = (other.pod_uid, other.container) != (assignment.pod_uid, assignment.container)
                if is_other and gpus & {share.uuid for share in other.shares}:
                    yield other

    def on_gpu(self, uuid: identifiers.GpuUuid) -> Iterator[Assignment]:
        """Yield the containers that hold a GPU by their records."""
        for pod, _ in self._pods.holders(uuid):
            for assignment in self._of_pod(pod):
                if any(share.uuid == uuid for share in assignment.shares):
                    yield assignment

    def _of_pod(self, pod: Pod) -> Iterator[Assignment]:
        with contextlib.suppress(errors.CorruptRecord):
            shares = pod.shares(self.names) or ()
            for position, (container, held) in enumerate(zip(pod.all_containers, shares, strict=False)):
                yield self._assignment(pod, position, container, held)

    def _assignment(
        self, pod: Pod, position: int, container: Container, shares: tuple[allocations.Share, ...]
    ) -> Assignment:
        node = self._node
        return Assignment(
            pod_uid=pod.uid,
            pod_key=pod.key,
            container=container.name,
            shares=shares,
            devices=tuple(node.devices[share.uuid] for share in shares if share.uuid in node.devices),
            mode=next((node.inventory[share.uuid].mode for share in shares if share.uuid in node.inventory), ""),
            requested_mode=requests.mode(pod.annotations),
            environment={variable.name: variable.value for variable in container.env or ()},
            user=pod.user_of(container),
            has_runtime_class=bool(pod.spec.runtime_class_name),
            migs=records.mig_shares(pod.annotations.get(records.MIG_ALLOCATIONS, ""), position),
        )
