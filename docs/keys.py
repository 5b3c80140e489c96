"""The table of annotations and labels: the writer and the meaning of each. The reference page is generated from it.

A test checks that every key in the code is listed here.
"""

from dataclasses import dataclass

from gpu_sharing.core import allocations, faults, gangs, gpus, identifiers, records, remediation_history, requests
from scheduler_extender.act import leadership, waking
from scheduler_extender.decide import admission

OWNER, EXTENDER, PLUGIN, ADMINISTRATOR = "its owner", "extender", "device plugin", "administrator"


@dataclass(frozen=True, slots=True)
class Key:
    """One annotation or label."""

    name: str
    kind: str
    """`annotation`, `label`, `taint` or `scheduling gate`."""
    writer: str
    meaning: str
    """One sentence, with the values."""


REQUESTED = (
    Key(requests.USE_TYPE, "annotation", OWNER, "Only GPUs whose type contains one of these words; commas between."),
    Key(requests.NOUSE_TYPE, "annotation", OWNER, "No GPU whose type contains one of these words."),
    Key(requests.USE_UUID, "annotation", OWNER, "Only these GPUs, by UUID; commas between."),
    Key(requests.NOUSE_UUID, "annotation", OWNER, "None of these GPUs."),
    Key(requests.MODE, "annotation", OWNER, "Only GPUs with this isolation: `hami-core`, `mps` or `mig`."),
    Key(requests.NUMA_BIND, "annotation", OWNER, "`true`: all GPUs of a container on one NUMA node."),
    Key(requests.NUMA_ALIGNMENT, "annotation", OWNER, "`best-effort` has no effect, `strict` is refused."),
    Key(requests.NODE_POLICY, "annotation", OWNER, "Node policy: `binpack` or `spread`."),
    Key(requests.GPU_POLICY, "annotation", OWNER, "GPU policy: one or several, such as `numa,binpack`."),
    Key(requests.SCORING_WEIGHTS, "annotation", OWNER, "Weights of GPU fullness, such as `slot=1,core=1,memory=3`."),
    Key(gangs.NAME, "annotation", OWNER, "The gang that the pod belongs to."),
    Key(gangs.SIZE, "annotation", OWNER, "The number of members of that gang, the same on each."),
    Key(gangs.LABEL, "label", OWNER, "The gang, instead of the annotation; coscheduling's label."),
    Key(admission.IGNORE_LABEL, "label", OWNER, f"`{admission.IGNORE}`: the webhook ignores the pod."),
)
"""What a pod's owner writes."""

WRITTEN = (
    Key(records.NODE, "annotation and label", EXTENDER, "The node whose GPUs the pod holds."),
    Key(records.TIME, "annotation", EXTENDER, "Time of the decision, in Unix seconds."),
    Key(records.ALLOCATED, "annotation", EXTENDER, "The record: the shares of each container by GPU."),
    Key(records.TO_ALLOCATE, "annotation", EXTENDER, "The same, for readers of HAMi's contract."),
    Key(records.MIG_ALLOCATIONS, "annotation", EXTENDER, "The MIG instances of the record, by profile and placement."),
    Key(records.BIND_PHASE, "annotation", f"{EXTENDER}, then {PLUGIN}",
        f"`{records.PHASE_ALLOCATING}`, then `{records.PHASE_SUCCESS}` or `{records.PHASE_FAILED}`."),
    Key(records.BIND_TIME, "annotation", EXTENDER, "When the pod was bound, in Unix seconds."),
    Key(records.DECISION, "annotation", EXTENDER, "Connects the logs, events and exemplars of the pod."),
    Key(records.HOLD, "annotation", EXTENDER, "GPUs reserved for a pending pod, by preemption or for its gang."),
    Key(waking.RETRY, "annotation", EXTENDER, "Wakes a pending pod that now fits; Unix milliseconds."),
    Key(gangs.GATE, "scheduling gate", EXTENDER, "Stops kube-scheduler from trying a gang's member until all fit."),
)  # fmt: skip
"""Written to a pod by our processes."""

OF_NODES = (
    Key(records.INVENTORY, "annotation", PLUGIN, "The node's GPUs."),
    Key(records.AGENT, "annotation", PLUGIN, "Which plugin serves the node, and its version."),
    Key(records.HEALTH, "annotation", PLUGIN, "Why GPUs are not healthy, by UUID; outlives a restart of the plugin."),
    Key(records.PROBLEMS, "annotation", PLUGIN, "Problems of the node's setup: sentences by error code."),
    Key(records.SCORE, "annotation", PLUGIN, "Link scores between its GPUs, with `--topology-score`."),
    Key(
        records.MIG_MADE, "annotation", PLUGIN, "The MIG instances that the plugin made, so that it destroys no others."
    ),
    Key(
        records.CORDON,
        "annotation",
        f"{ADMINISTRATOR}, or {EXTENDER} by remediation",
        "GPUs that get no new pods: UUIDs, separated by commas.",
    ),
    Key(
        remediation_history.ANNOTATION,
        "annotation",
        EXTENDER,
        "What remediation did on the node in the last day, and what it will release.",
    ),
    Key(
        remediation_history.REQUEST,
        "annotation",
        EXTENDER,
        "What remediation requests from the maintenance of the node: `reset GPU-…` or `reboot`, separated by commas.",
    ),
    Key(remediation_history.TAINT, "taint", EXTENDER, "Keeps pods off a node with a faulty GPU, where a rule says so."),
    Key(
        records.RELEASE,
        "annotation",
        ADMINISTRATOR,
        "Likewise, and plugin and monitor close them for a reset; `hamictl gpu release` writes it.",
    ),
    Key(faults.CONSENT_LABEL, "label", ADMINISTRATOR, "`allowed`: faults may be injected into the node on purpose."),
)
"""On a node, by the plugin or an administrator."""
OF_LEASES = (
    Key(
        leadership.HANDED_OVER,
        "annotation",
        EXTENDER,
        "The term (`leaseTransitions`) whose extender has ended with no Binding under way: a successor need not wait.",
    ),
)
"""On the Lease that elects a replica."""


def examples() -> dict[str, str]:
    """Return the annotations of a pod with a slice of one GPU, and of its node, as the code writes them."""
    gpu = gpus.Gpu(
        uuid=identifiers.GpuUuid("GPU-6c4f1aee-3ad5-542c-9d6f-5e4ddee6115b"),
        index=0,
        memory_mib=23_028,
        cores_percent=100,
        slots=10,
        type="NVIDIA A10",
        mode="hami-core",
    )
    shares = ((allocations.Share(gpu.uuid, 8000, 40),),)
    node, decision = identifiers.NodeName("node-01"), identifiers.DecisionId("4e89f4b82e97303b")
    return {
        **records.pod_annotations(shares, node, 1_795_897_182, decision),
        records.INVENTORY: records.encode_inventory([gpu]),
    }
