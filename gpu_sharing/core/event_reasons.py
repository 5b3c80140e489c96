"""The one table of the events that we write, as `kubectl describe` shows them under Events.

The reference page is generated from it, and the recorder refuses a reason that is not in it.
"""

from dataclasses import dataclass

SCHEDULER, PLUGIN = "hami-scheduler", "hami-device-plugin"


@dataclass(frozen=True, slots=True)
class EventReason:
    """One kind of event, by its reason."""

    name: str
    warning: bool
    component: str
    regarding: str
    """The objects on which it is written."""
    meaning: str
    """When it is written, in one sentence."""
    example: str
    """An example of its note."""


REGISTRY: dict[str, EventReason] = {}


def _register(name: str, component: str, regarding: str, meaning: str, example: str, *, warning: bool) -> str:
    REGISTRY[name] = EventReason(name, warning, component, regarding, meaning, example)
    return name


SCHEDULED = _register(
    "Scheduled",
    SCHEDULER,
    "Pod",
    "The pod was bound to a node and its GPUs were chosen.",
    "Successfully assigned pod to node-01\nGPU: 1/3, Memory: 4000MB\nScore: 85, Policy: binpack\n"
    "node policy binpack, GPU policy spread",
    warning=False,
)
FAILED_SCHEDULING = _register(
    "FailedScheduling",
    SCHEDULER,
    "Pod",
    "The pod fits on no node: the counts by reason, then one line a node; more than ten nodes are grouped by reason.",
    "0/3 nodes available: 2 GPU memory insufficient, 1 quota exceeded\n"
    "    node-01: GPU memory insufficient (requested 8000MB, available 4000MB)",
    warning=True,
)
PREEMPTING = _register(
    "Preempting",
    SCHEDULER,
    "Pod",
    "Pods of lower priority are evicted so that this one gets their GPUs.",
    "Evicting 1 of lower priority on node-01 for its GPUs\nai-team/batch-7 (priority 0)",
    warning=False,
)
PREEMPTED = _register(
    "Preempted",
    SCHEDULER,
    "Pod",
    "The pod is evicted for one of higher priority.",
    "Preempted by ai-team/urgent (priority 1000), which needs its GPU memory or cores on node-01",
    warning=True,
)
GANG_TORN = _register(
    "GangTorn",
    SCHEDULER,
    "Pod",
    "Not all members of the pod's gang were bound in time.",
    "SCHED_GANG_TORN: of gang train 1 were not bound in time, 7 were",
    warning=True,
)
FOREIGN_POD = _register(
    "ForeignGPUPod",
    SCHEDULER,
    "Pod",
    "The pod requests GPUs and was bound by another scheduler.",
    "SCHED_FOREIGN_POD: …",
    warning=True,
)
CORRUPT_RECORD = _register(
    "CorruptGPURecord",
    SCHEDULER,
    "Pod",
    "The pod's record of its GPUs cannot be read.",
    "SCHED_CORRUPT_POD_RECORD: …",
    warning=True,
)
BAD_LINKS = _register(
    "BadGPULinks",
    SCHEDULER,
    "Node",
    "The node's record of the links between its GPUs cannot be read.",
    "SCHED_BAD_LINKS: …",
    warning=True,
)
UNKNOWN_CORDON = _register(
    "UnknownGPUCordon",
    SCHEDULER,
    "Node",
    "The node's annotation hami.io/device-cordon names a UUID that no GPU of the node has.",
    "SCHED_UNKNOWN_CORDON: hami.io/device-cordon names GPU-6c4f1aef-…, which no GPU of the node has\n    …",
    warning=True,
)
REMEDIATED = _register(
    "GPURemediated",
    SCHEDULER,
    "Node, and each Pod on the GPU",
    "Remediation has acted on a faulty GPU or node: what, why, and by which rule.",
    "SCHED_REMEDIATED: cordon-gpu of GPU-103c5a7a-… by rule cordon-broken-gpu: XID 79: GPU has fallen off the bus",
    warning=True,
)
REMEDIATION_REFUSED = _register(
    "GPURemediationRefused",
    SCHEDULER,
    "Node",
    "A rule of remediation asks for an act that is not done: the reason, such as a cool-down or a dry run.",
    "SCHED_REMEDIATION_REFUSED: would do evict-pods of GPU-103c5a7a-…: dry run\n    …",
    warning=True,
)
REMEDIATION_RELEASED = _register(
    "GPURemediationReleased",
    SCHEDULER,
    "Node",
    "A GPU or node is healthy again, and remediation has undone its own cordon, taint or request.",
    "Released cordon-gpu of GPU-103c5a7a-…: healthy",
    warning=False,
)
DEVICE_ALLOCATED = _register(
    "DeviceAllocated",
    PLUGIN,
    "Pod",
    "A container starts with its slice.",
    "Allocated GPU-0 on node-01\n    GPU-6c4f1aee-…: 4000MB, cores 30%\n    container main, isolation hami-core",
    warning=False,
)
ALLOCATION_FAILED = _register(
    "AllocationFailed",
    PLUGIN,
    "Pod",
    "A container is not started: the code, the cause and what to do.",
    "ALLOC_NO_RECORD: ai-team/train has no record of GPUs\n    …",
    warning=True,
)
DELIVERY_UNCERTAIN = _register(
    "DeliveryUncertain",
    PLUGIN,
    "Pod",
    "A container is started, and depends on its runtime for its GPU.",
    "PLUGIN_RUNTIME_CLASS: ai-team/train has no runtimeClassName\n    …",
    warning=True,
)
DEVICE_UNHEALTHY = _register(
    "DeviceUnhealthy",
    PLUGIN,
    "Node, and each Pod on the GPU",
    "A GPU must not be used: the cause, and the required action.",
    "GPU-1 GPU-103c5a7a-… is unhealthy: XID 79: GPU has fallen off the bus\n    …",
    warning=True,
)
DEVICE_RECOVERED = _register(
    "DeviceRecovered",
    PLUGIN,
    "Node, and each Pod on the GPU",
    "A GPU may be used again.",
    "GPU-1 GPU-103c5a7a-… is healthy again, after: XID 95: uncontained ECC error",
    warning=False,
)
