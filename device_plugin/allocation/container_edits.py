"""What a container gets by its assignment: the edits that bring its GPUs, keep it apart and mark it."""

import re
from collections.abc import Mapping, Sequence

from device_plugin.allocation import checks, marks, slice_variables
from device_plugin.allocation.assignments import Assignments
from device_plugin.delivery import edits, methods
from device_plugin.driver import gpu_source
from device_plugin.isolation.assignment import Assignment
from device_plugin.isolation.backend import CannotIsolate
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.node.api_objects import Pod
from device_plugin.node.local_node import LocalNode
from device_plugin.node.pods import Pods
from gpu_sharing.core import error_codes, health, nvidia, requests, variables

_LIMIT = re.compile(rf"{methods.GPUS}|CUDA_DEVICE_MEMORY_LIMIT_\d+|CUDA_DEVICE_SM_LIMIT")
"""Variables that an answer of HAMi's plugin has too, and that have to be right in it."""


class ContainerEdits:
    """Computes edits from assignments."""

    def __init__(self, node: LocalNode, pods: Pods, assignments: Assignments) -> None:
        self._node = node
        self._pods = pods
        self._assignments = assignments

    def edits_for(self, pod: Pod, assignment: Assignment) -> edits.Edits:
        """Return the edits of a container, for a CDI specification or for the answer to Allocate.

        Raises:
            StartRefused: It must not start: a GPU is unhealthy, allocated to others by older records, cannot be
                delivered, or is shared in another mode than the pod requests.
        """
        node = self._node
        for share in assignment.shares:
            state = node.states.get(share.uuid, health.Health())
            if state.state in (health.State.UNHEALTHY, health.State.RECOVERING):
                raise StartRefused(error_codes.ALLOC_GPU_UNHEALTHY, f"{share.uuid}: {state.cause}")
        checks.refuse_oversubscription(pod, assignment.shares, self._pods.holders, node.inventory)
        mode, requested = assignment.mode, assignment.requested_mode
        if requested and not requests.Selectors(mode=requested).accept_mode(mode):
            raise StartRefused(
                error_codes.ALLOC_ISOLATION, f"{pod.key} requests {requested}, its GPU is shared by {mode}"
            )
        backend = node.backends[mode]
        try:
            isolated = backend.edits(assignment, self._assignments.neighbours(assignment))
        except CannotIsolate as cause:
            raise StartRefused(error_codes.ALLOC_ISOLATION, f"{pod.key}: {cause}") from cause
        delivered = self._delivered(assignment, backend.visible_devices(assignment))
        mark = marks.mark_for(assignment.allocation, by_cdi=assignment.by_cdi)
        described = slice_variables.edits_for(
            assignment, isolation=backend.isolation_in_effect(assignment), node=node.name, annotations=pod.annotations
        )
        return edits.merged([described, delivered, isolated, mark])

    def _delivered(self, assignment: Assignment, visible: Sequence[str]) -> edits.Edits:
        """Return what brings the GPUs into a container.

        Raises:
            StartRefused: One of them cannot be delivered.
        """
        node, has_class = self._node, assignment.has_runtime_class
        by_name = _devices_by_name(assignment.devices)
        devices = [by_name[name] for name in visible]
        chosen = [node.delivery_method(device, by_cdi=assignment.by_cdi, has_class=has_class) for device in devices]
        for device, method in zip(devices, chosen, strict=True):
            if not method.name:
                raise StartRefused(error_codes.ALLOC_DELIVERY, f"{device.uuid}: {method.code}: {method.refusal}")
            if method.name in methods.BY_RUNTIME and not has_class and node.refuses_without_class:
                raise StartRefused(error_codes.ALLOC_RUNTIME_CLASS, f"{assignment.pod_key} has no runtimeClassName")
        try:
            return methods.edits_for(list(zip(devices, visible, chosen, strict=True)), node.host)
        except methods.Undeliverable as cause:
            raise StartRefused(error_codes.ALLOC_DELIVERY, f"{assignment.pod_key}: {cause}") from cause


def _devices_by_name(devices: Sequence[gpu_source.Device]) -> Mapping[str, gpu_source.Device]:
    """Return GPUs by the names that the driver shows: their UUIDs, and those of their MIG instances."""
    by_instance = {instance.uuid: device for device in devices for instance in device.migs}
    return {**{str(device.uuid): device for device in devices}, **by_instance}


def verify_answer(assignment: Assignment, answered: Mapping[str, str], wanted: edits.Edits) -> None:
    """Check that the answer to Allocate, which cannot be changed any more, is what the container has to get.

    An answer without our mark is one of HAMi's plugin, which served the node before: its limits have to be right. An
    answer of an older plugin of ours lacks the variables that only describe the slice.

    Args:
        assignment: The container.
        answered: Variables of the answer.
        wanted: What the container has to get.

    Raises:
        StartRefused: It differs, or variables of the container's specification replace it.
    """
    overridden = _overridden(assignment.environment, wanted)
    if overridden:
        raise StartRefused(
            error_codes.ALLOC_OWN_VARIABLES,
            f"{assignment.pod_key}: container {assignment.container} sets {', '.join(overridden)} in its env",
        )
    is_ours = marks.NAME_VARIABLE in answered
    if not is_ours:
        answered = {**answered, methods.GPUS: answered.get(nvidia.VISIBLE_DEVICES, "")}
    for name, value in wanted.environment.items():
        if name in variables.DESCRIBING and name not in answered:
            continue
        if (is_ours or _LIMIT.fullmatch(name)) and answered.get(name) != value:
            raise StartRefused(
                error_codes.ALLOC_WRONG_MATCH,
                f"{assignment.pod_key}: container {assignment.container} was answered {name}={answered.get(name)}, "
                f"its record gives {value}",
            )


def _overridden(own: Mapping[str, str], wanted: edits.Edits) -> list[str]:
    """Return the variables that the container's own env sets to something else than it has to get; its env wins."""
    different = [name for name, value in own.items() if wanted.environment.get(name, value) != value]
    return sorted({*different, *variables.given(own.keys() - wanted.environment.keys())})
