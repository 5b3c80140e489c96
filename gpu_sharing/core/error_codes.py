"""The one registry of error codes: name, meaning, what to do.

Logs, events, metrics, `hamictl explain-code` and the reference page all read this table, so a code cannot mean two
things. Codes are part of what users see: they are added, never renamed.
"""

from dataclasses import dataclass
from typing import NewType

Code = NewType("Code", str)


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One code with its meaning and remedy."""

    code: Code
    meaning: str
    """What happened, in one sentence."""
    remedy: str
    """What to do about it, in one sentence."""
    operator: bool = False
    """Whether only an operator of the cluster can do that: a pod's owner cannot change nodes, plugins or quotas."""

    @property
    def advice(self) -> str:
        """What a pod's owner does: the remedy, or to ask the operator for it."""
        return f"Ask an operator of the cluster: {self.remedy}" if self.operator else self.remedy


REGISTRY: dict[Code, ErrorCode] = {}


def _register(name: str, meaning: str, remedy: str, *, operator: bool = False) -> Code:
    code = Code(name)
    REGISTRY[code] = ErrorCode(code, meaning, remedy, operator)
    return code


# The request itself cannot be served.
INVALID_QUANTITY = _register(
    "SCHED_INVALID_QUANTITY",
    "A GPU resource of the pod is not a whole, non-negative number within the limits.",
    "Write a whole number, for example nvidia.com/gpumem: 4000 (MiB) or 4Gi.",
)
AMBIGUOUS_MEMORY = _register(
    "SCHED_AMBIGUOUS_MEMORY",
    "nvidia.com/gpumem has a byte suffix and is under 64 MiB: the API server may have rewritten a plain number of MiB.",
    "Write MiB such as 4000, or bytes such as 4Gi.",
)
PERCENT_OUT_OF_RANGE = _register(
    "SCHED_PERCENT_OUT_OF_RANGE",
    "A percentage of a GPU is outside 1 to 100.",
    "Write a whole number from 1 to 100; for more than one GPU raise nvidia.com/gpu.",
)
NODE_NOT_READY = _register(
    "SCHED_NODE_NOT_READY",
    "The kubelet of the node does not report that it is ready, so no pod is placed there.",
    "See kubectl describe node; the GPUs are used again once the node is Ready.",
    operator=True,
)
NODE_CORDONED = _register(
    "SCHED_NODE_CORDONED",
    "The node is cordoned (spec.unschedulable), so no pod is placed there.",
    "Run kubectl uncordon NODE when the reason for the cordon has ended.",
    operator=True,
)
POD_IN_DOUBT = _register(
    "SCHED_POD_IN_DOUBT",
    "A list of pods lacks a pod that was read or bound while the list was read, and it is unknown whether the pod "
    "is deleted; its GPUs stay allocated until then.",
    "Nothing, if it ends by itself; else find out why the API server does not answer.",
)
SET_ASIDE = _register(
    "SCHED_OBJECT_SET_ASIDE",
    "An object of the cluster could not be handled, because of a defect of this program; the GPUs that it may hold "
    "are excluded from new allocations, and everything else continues.",
    "Report the log line with the object's YAML; the object is read when it changes.",
)
REQUEST_TOO_LARGE = _register(
    "SCHED_REQUEST_TOO_LARGE",
    "A pod requests more than any node can have: over 64 GPUs or 2147483647 MiB for one container, or GPUs for over 16 "
    "containers.",
    "Request what one node can have, and use several pods for more.",
)
CONTRADICTORY_REQUEST = _register(
    "SCHED_CONTRADICTORY_REQUEST",
    "A pod requests two things that exclude each other, such as memory of zero GPUs, or a GPU that it also excludes.",
    "Remove one of the two: nvidia.com/gpu: 0 or the memory and cores beside it, use-… or nouse-….",
)
NO_GPU_COUNT = _register(
    "SCHED_NO_GPU_COUNT",
    "A container requests memory or cores of a GPU and no GPU, and the webhook, which adds one, was not called.",
    "Write nvidia.com/gpu: 1 beside it; without it the kubelet allocates no GPU to the container.",
)
UNKNOWN_POLICY = _register(
    "SCHED_UNKNOWN_POLICY",
    "A scheduling annotation of the pod has a value that this version does not support.",
    "Use one of the policies or modes that the event names, or remove the annotation.",
)
BAD_SCORING_WEIGHTS = _register(
    "SCHED_BAD_SCORING_WEIGHTS",
    "hami.io/device-scoring-weights does not have valid weights for slots, cores and memory.",
    "Write all three as whole numbers, not all of them 0: slot=1,core=1,memory=3.",
)
NODE_NAME_SET = _register(
    "SCHED_NODE_NAME_SET",
    "A pod that requests GPUs names its node itself, so that no scheduler chooses GPUs for it.",
    "Remove spec.nodeName and write a required nodeAffinity whose matchFields name metadata.name; the label "
    "kubernetes.io/hostname differs from the name on some clusters.",
)
OWN_VARIABLES = _register(
    "SCHED_OWN_VARIABLES",
    "A container that requests a GPU sets a variable that the device plugin sets.",
    "Remove it from the container's env: without CDI it would override what is allocated to the pod.",
)
TOO_MANY_CONTAINERS = _register(
    "SCHED_TOO_MANY_CONTAINERS",
    "A pod that requests GPUs is larger than the webhook reads: over 256 containers, or over 50,000 fields and items.",
    "Use several pods: at most 256 containers, init containers included, in a pod with GPUs.",
)
PRIVILEGED = _register(
    "SCHED_PRIVILEGED",
    "A privileged container requests a GPU, and could use all GPUs of its node.",
    "Remove securityContext.privileged or the GPU request; --allow-privileged permits it.",
)
OTHER_NODE = _register(
    "PLUGIN_OTHER_NODE",
    "A device plugin tried to write about another node, another node's pod, or more than its annotations, its label "
    "and the capacity of our resources; the admission policy hami-own-node refused it.",
    "If the node is not compromised, check that Kubernetes is at least 1.30, whose tokens name the node.",
)
OTHER_WRITE = _register(
    "SCHED_OTHER_WRITE",
    "The scheduler's account tried to change more of a pod than our annotations and scheduling gates, or more of a "
    "node than remediation writes; the admission policy hami-own-writes or hami-own-nodes refused it.",
    "A pod with more than 1,000 annotations or labels cannot get ours; else find out who uses the account.",
)
RECORD_GUARDED = _register(
    "SCHED_RECORD_GUARDED",
    "An account other than the extender's and the plugin's tried to write, change or remove a record of GPUs.",
    "Remove hami.io/vgpu-*, hami.io/bind-* and hami.io/decision-id, for example from a copy of a pod's YAML.",
)

BAD_GANG = _register(
    "SCHED_BAD_GANG",
    "The pod's gang is invalid: no name, no size, two names, a size that other members contradict, or too many.",
    "Write hami.io/gang and hami.io/gang-size on every member, the same on all, and the number of members as the size; "
    "or name a PodGroup, which has the minimum number of members.",
)

# A pod does not fit on a node.
NODE_UNKNOWN = _register(
    "SCHED_NODE_UNKNOWN",
    "kube-scheduler offers a node that the extender does not know.",
    "Wait; if it stays, check the extender's watch of nodes on /healthz.",
)
NODE_NOT_REGISTERED = _register(
    "SCHED_NODE_NOT_REGISTERED",
    "The node has no record of its GPUs.",
    "Check that the device plugin runs there (label gpu=on) and that it finds the GPUs.",
    operator=True,
)
CORRUPT_NODE_RECORD = _register(
    "SCHED_CORRUPT_NODE_RECORD",
    "The node's record of its GPUs cannot be read.",
    "Restart the device plugin of that node, which writes its record again.",
    operator=True,
)
REQUEST_MIX = _register(
    "SCHED_REQUEST_MIX",
    "The mix of requests, by which fragmentation-aware decides, cannot be read or written; it is learned anew.",
    "See the cause in the log; a ConfigMap that cannot be read may be deleted.",
    operator=True,
)
BAD_LINKS = _register(
    "SCHED_BAD_LINKS",
    "The node's record of links between its GPUs cannot be read or contradicts itself; those links count as none.",
    "Restart the device plugin of that node; if two GPUs still disagree about their link, see nvidia-smi topo -m.",
)
FOREIGN_AGENT = _register(
    "SCHED_FOREIGN_AGENT",
    "The node's GPUs are served by a device plugin of another project.",
    "Install this project's device plugin there, or allow such nodes with --allow-hami-nodes for a transition.",
    operator=True,
)
DEVICE_CLASS = _register(
    "SCHED_DEVICE_CLASS",
    "A DeviceClass offers the resource that counts GPUs, and the node's allocatable lacks another one of the pod: "
    "kube-scheduler's DynamicResources plugin rejects the pod there.",
    "Let the device plugin write its capacity (patch on nodes/status, as the chart grants), remove "
    "extendedResourceName from the class, or start kube-scheduler with --feature-gates=DRAExtendedResource=false.",
    operator=True,
)
DRA_NODE = _register(
    "SCHED_DRA_NODE",
    "A DRA driver allocates the node's GPUs (ResourceSlices of gpu.nvidia.com exist); only one system may.",
    "Use another node, or remove NVIDIA's DRA driver from this one before installing the device plugin there.",
    operator=True,
)
HAMI_NODE_BUSY = _register(
    "SCHED_HAMI_NODE_BUSY",
    "A node of another device plugin is still starting a pod, and can start only one at a time.",
    "Wait until that pod has started.",
)
TOO_FEW_GPUS = _register(
    "SCHED_TOO_FEW_GPUS",
    "The node has fewer GPUs than one container of the pod requests.",
    "Request fewer GPUs per container, or add a larger node.",
)
MODE_MISMATCH = _register(
    "SCHED_MODE_MISMATCH",
    "The node's GPUs run in another mode (such as MIG) than the pod can use.",
    "Change the annotation nvidia.com/vgpu-mode, or the mode of the GPUs.",
)
UUID_MISMATCH = _register(
    "SCHED_UUID_MISMATCH",
    "The pod requires or excludes particular GPUs by UUID.",
    "Check the annotations nvidia.com/use-gpuuuid and nvidia.com/nouse-gpuuuid.",
)
TYPE_MISMATCH = _register(
    "SCHED_TYPE_MISMATCH",
    "The node's GPUs are not of a type that the pod accepts.",
    "Check the annotations nvidia.com/use-gputype and nvidia.com/nouse-gputype.",
)
GPU_UNHEALTHY = _register(
    "SCHED_GPU_UNHEALTHY",
    "The GPUs that would fit are unhealthy.",
    "See the DeviceUnhealthy events of the node for the cause.",
    operator=True,
)
GPU_CORDONED = _register(
    "SCHED_GPU_CORDONED",
    "The GPUs that would fit are cordoned by an administrator.",
    "Remove them from the node's annotation hami.io/device-cordon when they may be used again, or, where they were "
    "released for a reset: hamictl gpu release NODE GPU --cancel.",
    operator=True,
)
UNKNOWN_USAGE = _register(
    "SCHED_UNKNOWN_USAGE",
    "A pod on the node holds GPUs by a record that cannot be read, so the free memory and cores there are unknown.",
    "Find the pod by its SCHED_CORRUPT_POD_RECORD event and delete it.",
    operator=True,
)
SLOTS_EXHAUSTED = _register(
    "SCHED_SLOTS_EXHAUSTED",
    "The maximum number of containers already share the node's GPUs.",
    "Wait for a pod to end, or ask an operator to raise the device plugin's --device-split-count.",
)
GPU_HELD_EXCLUSIVELY = _register(
    "SCHED_GPU_HELD_EXCLUSIVELY",
    "The pod requests a share of a GPU, and the remaining ones are in exclusive use (nvidia.com/gpucores: 100).",
    "Wait until an exclusive pod ends, or set its nvidia.com/gpucores below 100 if it may share its GPU.",
)
GPU_NOT_EXCLUSIVE = _register(
    "SCHED_GPU_NOT_EXCLUSIVE",
    "The pod requests exclusive GPUs, and too few GPUs are empty.",
    "Request a share (nvidia.com/gpumem, nvidia.com/gpucores under 100), or wait for an empty GPU.",
)
INSUFFICIENT_GPU_MEMORY = _register(
    "SCHED_INSUFFICIENT_GPU_MEMORY",
    "No GPU of the node has that much free memory.",
    "Request less nvidia.com/gpumem, or wait for a pod to end.",
)
INSUFFICIENT_GPU_CORES = _register(
    "SCHED_INSUFFICIENT_GPU_CORES",
    "No GPU of the node has that many free cores.",
    "Request less nvidia.com/gpucores, or wait for a pod to end.",
)
NUMA_MISMATCH = _register(
    "SCHED_NUMA_MISMATCH",
    "The node has enough fitting GPUs, but not on one NUMA node, as nvidia.com/numa-bind requires.",
    "Request fewer GPUs, wait, or remove nvidia.com/numa-bind.",
)
GANG_WAITS = _register(
    "SCHED_GANG_WAITS",
    "The pod's GPUs would fit, but its gang is not complete, or not enough is free for all of its members at once.",
    "Wait, create the missing members, or see in the event what is missing; all members start together.",
)
GANG_TORN = _register(
    "SCHED_GANG_TORN",
    "Some members of a gang were not bound in time, so the gang's reservations were released.",
    "Check the members' events for the reason; the gang is planned again by itself, on other nodes first.",
)
NO_MIG_INSTANCE = _register(
    "SCHED_NO_MIG_INSTANCE",
    "No GPU in MIG mode has a free instance of that size, or free MIG slices for a new one.",
    "Request less nvidia.com/gpumem or gpucores, or wait for a pod to end.",
)
QUOTA_EXCEEDED = _register(
    "SCHED_QUOTA_EXCEEDED",
    "With this pod its namespace would hold more GPUs, GPU memory or GPU cores than its ResourceQuota allows.",
    "Wait for a pod of the namespace to end, request less, or ask for larger limits.nvidia.com/… in the ResourceQuota.",
)
QUOTA_UNREADABLE = _register(
    "SCHED_QUOTA_UNREADABLE",
    "A ResourceQuota of the pod's namespace limits GPUs by a quantity that cannot be read, so no pod is placed there.",
    "Write whole numbers, for example limits.nvidia.com/gpumem: 40000 (MiB) or 40Gi.",
    operator=True,
)
NOT_OFFERED = _register(
    "SCHED_NOT_OFFERED",
    "The node's GPUs fit, but kube-scheduler rejected the node for its own reasons.",
    "Change what kube-scheduler names in its FailedScheduling event, such as pod affinity, topology spread or ports.",
)
NOT_TRIED = _register(
    "SCHED_NOT_TRIED",
    "kube-scheduler has not tried the pod yet, or waits for the pods that are evicted for it.",
    "Wait some seconds; if it stays, check that the kube-scheduler of the pod's schedulerName runs.",
)

OTHER_SCHEDULER = _register(
    "SCHED_OTHER_SCHEDULER",
    "The pod requests GPUs, and its schedulerName is not that of the scheduler that allocates them.",
    "Write schedulerName: hami-scheduler and create the pod again, or have the webhook installed, which writes it.",
)
GATED = _register(
    "SCHED_GATED",
    "The pod has scheduling gates, and kube-scheduler tries no pod that has one.",
    "See the controller that set the gate; it removes the gate when the pod may start.",
)
NODE_SELECTOR = _register(
    "SCHED_NODE_SELECTOR",
    "The pod's nodeSelector or required node affinity does not match the labels of the node.",
    "Correct the nodeSelector or the affinity of the pod; kubectl get nodes --show-labels shows the labels.",
)
NODE_TAINT = _register(
    "SCHED_NODE_TAINT",
    "The node has a taint that the pod does not tolerate.",
    "Add a toleration to the pod if it may run there.",
)
NODE_RESOURCES = _register(
    "SCHED_NODE_RESOURCES",
    "The node has less CPU, memory, storage or another resource of Kubernetes than the pod requests.",
    "Request less of it, or wait for pods on that node to end.",
)
VOLUME = _register(
    "SCHED_VOLUME",
    "A volume of the pod is in the way: its claim does not exist, is not bound, or is bound to other nodes.",
    "See kubectl get persistentvolumeclaims in the pod's namespace, and create or correct the claim.",
)
NEVER_FITS = _register(
    "SCHED_NEVER_FITS",
    "No node can serve the GPU request, even when all its GPUs are empty.",
    "Request what the message says, or add a node with such GPUs.",
)
NO_SUCH_POD = _register(
    "SCHED_NO_SUCH_POD",
    "The extender knows no pod of that name: it knows pods that request GPUs and have not ended.",
    "Check the name and the namespace, and that a container of the pod has GPU resources under limits.",
)
UNKNOWN_CORDON = _register(
    "SCHED_UNKNOWN_CORDON",
    "The node's annotation hami.io/device-cordon names a UUID that no GPU of the node has, so it cordons nothing.",
    "Correct the UUID; hamictl nodes -o json lists the UUIDs.",
    operator=True,
)
PREEMPTION_FAILED = _register(
    "SCHED_PREEMPTION_FAILED",
    "Pods of lower priority were evicted for a pod, but the pod still does not fit, or they did not end in time.",
    "Nothing: it is tried again; see the pod's events for the evicted pods, and check for pods that do not terminate.",
)

REMEDIATION_RULES = _register(
    "SCHED_REMEDIATION_RULES",
    "A rule of remediation has an unknown word or a value out of its range; no rule is used.",
    "Correct every named rule; docs/howto/remediation.md lists the fields and words.",
    operator=True,
)
REMEDIATION_CONTRADICTION = _register(
    "SCHED_REMEDIATION_CONTRADICTION",
    "Rules of remediation contradict each other, or one releases what it should cordon; no rule is used.",
    "Give one of the named rules another condition or priority.",
    operator=True,
)
REMEDIATION_UNBOUNDED = _register(
    "SCHED_REMEDIATION_UNBOUNDED",
    "A rule of remediation would act on healthy GPUs, or its breaker bounds nothing; no rule is used.",
    "Name the fault in the rule's condition, and let the breaker allow at most 50 percent of the nodes.",
    operator=True,
)
REMEDIATED = _register(
    "SCHED_REMEDIATED",
    "Remediation has acted on a faulty GPU or node, as one of its rules says.",
    "Nothing; the node's annotation hami.io/remediation and hamictl doctor show the act, and a release ends it.",
    operator=True,
)
REMEDIATION_REFUSED = _register(
    "SCHED_REMEDIATION_REFUSED",
    "A rule of remediation asks for an act that is not done now: a limit is reached, or it is a dry run.",
    "Read the reason in the message; act by hand if it cannot wait, or change the rule's limits.",
    operator=True,
)
REMEDIATION_FAILED = _register(
    "SCHED_REMEDIATION_FAILED",
    "The API server refused an act of remediation or did not answer; it is tried again after its cool-down.",
    "Check the extender's permissions (remediation.mode of the chart adds them) and the pod's disruption budget.",
    operator=True,
)
REMEDIATION_STOPPED = _register(
    "SCHED_REMEDIATION_STOPPED",
    "Too many nodes have faulty GPUs at once, so remediation is stopped; it lets single acts through after a time.",
    "Find the common cause, such as a driver update or cooling; it closes when fewer nodes are affected.",
    operator=True,
)

BOOKS_DRIFT = _register(
    "SCHED_BOOKS_DRIFT",
    "A sum of the extender's ledger differed from the pods that it counts, because of a defect; it is corrected.",
    "Report the log line; nothing else is to be done.",
)

# Binding.
POD_GONE = _register(
    "SCHED_POD_GONE",
    "The pod was deleted, or replaced by another of its name, before it could be bound.",
    "Nothing: kube-scheduler drops it.",
)
ALREADY_BOUND_ELSEWHERE = _register(
    "SCHED_ALREADY_BOUND",
    "The pod is bound already, to another node or by another program.",
    "Nothing; if it has no GPU record, recreate it with schedulerName hami-scheduler.",
)
NO_LONGER_FITS = _register(
    "SCHED_NO_LONGER_FITS",
    "Between filter and bind the GPUs were allocated to another pod.",
    "Nothing: kube-scheduler tries again.",
)
BIND_FAILED = _register(
    "SCHED_BIND_FAILED",
    "The API server refused the Binding.",
    "See the message; kube-scheduler tries again.",
)
BIND_UNKNOWN = _register(
    "SCHED_BIND_UNKNOWN",
    "The API server did not answer a Binding, so its result is unknown; the GPUs stay allocated until it is known.",
    "Nothing: the extender reads the pod and kube-scheduler tries again.",
)
UNSAFE_METADATA = _register(
    "SCHED_UNSAFE_METADATA",
    "The record to write would make the pod invalid, which the API server does not check in a Binding.",
    "Check the names of node and GPUs; report a defect if they are valid.",
)
NOT_LEADER = _register(
    "SCHED_NOT_LEADER",
    "This replica does not run beside the leading kube-scheduler, so it must not bind.",
    "Nothing, if another replica leads; else check the Lease named by --leader-lease.",
)

# Records and pods that are not ours.
CORRUPT_POD_RECORD = _register(
    "SCHED_CORRUPT_POD_RECORD",
    "The pod's record of its GPUs cannot be read, so the GPUs that it may hold are excluded from new allocations.",
    "Delete the pod, or restore its annotation hami.io/vgpu-devices-allocated.",
)
FOREIGN_POD = _register(
    "SCHED_FOREIGN_POD",
    "A pod that requests GPUs was bound by another scheduler, so no GPU is allocated to it.",
    "Set schedulerName: hami-scheduler and no nodeName, and recreate it.",
)

# The wire.
BAD_REQUEST = _register(
    "SCHED_BAD_REQUEST",
    "The body of a call is not the JSON that kube-scheduler's extender protocol defines.",
    "Check that nothing but kube-scheduler calls the extender, and that their versions match.",
)
BODY_TOO_LARGE = _register(
    "SCHED_BODY_TOO_LARGE",
    "The body of a call is larger than the extender reads.",
    "Set nodeCacheCapable: true for the extender, so that kube-scheduler sends names instead of whole nodes.",
)
UNKNOWN_ROUTE = _register(
    "SCHED_UNKNOWN_ROUTE",
    "The path does not exist, or does not support that method.",
    "Check urlPrefix and the verbs in the KubeSchedulerConfiguration.",
)
BUSY = _register(
    "SCHED_BUSY",
    "More calls are queued than can be answered before kube-scheduler's timeout.",
    "Nothing: kube-scheduler tries again; if it stays, check the extender's CPU limit.",
)
NOT_READY = _register(
    "SCHED_NOT_READY",
    "The extender has not read the cluster yet.",
    "Wait; /healthz on port 8080 shows what is missing.",
)
INTERNAL = _register(
    "SCHED_INTERNAL",
    "A defect in the extender; the call changed nothing.",
    "Report it with the log line that has this code.",
)
FATAL = _register(
    "SCHED_FATAL",
    "A task of the extender has ended that never should, so the process ends; Kubernetes starts it again.",
    "Report it with the log line that has this code. All facts are in the API server, so nothing is lost.",
)
EVENTS_UNREAD = _register(
    "SCHED_EVENTS_UNREAD",
    "The extender cannot read a pod's events from the API server.",
    "Check that the extender's account may list events of events.k8s.io; kubectl describe pod shows the same events.",
)
UNAUTHORIZED = _register(
    "SCHED_UNAUTHORIZED",
    "The read API was called without a token that the cluster knows.",
    "Send a bearer token of this cluster, for example by kubectl create token.",
)
READ_FORBIDDEN = _register(
    "SCHED_READ_FORBIDDEN",
    "The account that called the read API lacks a permission: get on gpus.hami.io, or list on pods in that namespace.",
    "Bind the ClusterRole hami-reader to the account, or a role with list on pods; the message names the rule.",
)
REVIEW_FAILED = _register(
    "SCHED_REVIEW_FAILED",
    "The API server did not answer the review of a caller of the read API or of its rights, so the call was refused.",
    "Try again; if it stays, check that the extender may create tokenreviews and subjectaccessreviews.",
)
EVENTS_DROPPED = _register(
    "SCHED_EVENTS_DROPPED",
    "More pod events were queued than the limit; the oldest normal ones were dropped.",
    "Nothing: the decisions are in the log.",
)
USAGE_UNKNOWN = _register(
    "SCHED_USAGE_UNKNOWN",
    "Prometheus does not report the utilization of GPUs, so only allocations count when nodes are compared.",
    "Check --prometheus-url and that the monitors are scraped; the extender retries every 15 s.",
)
LISTENER_LIMIT = _register(
    "LISTENER_LIMIT",
    "A connection was closed: too many are open, its request is too large or not finished in time, or its answer is "
    "not read.",
    "Nothing if it is rare; else block the address that the log line names with a network policy.",
)
WATCH_FAILED = _register(
    "SCHED_WATCH_FAILED",
    "A watch of the API server broke and will be resumed.",
    "Nothing if it is rare; else check the API server and the extender's RBAC rules.",
)
CERTIFICATE = _register(
    "SCHED_CERTIFICATE",
    "The certificate of the read API and webhook changed and cannot be read; the previous one stays in use.",
    "Check that --tls-cert and --tls-key are a PEM certificate and its own key; they are read again every 2 s.",
)
CERTIFICATE_NOT_KEPT = _register(
    "SCHED_CERTIFICATE_NOT_KEPT",
    "The certificate of --tls-secret cannot be read, renewed or published; the previous one stays in use.",
    "Check that the Secret of --tls-secret exists, that the extender may get and patch it, and the same for the "
    "MutatingWebhookConfiguration of --webhook-configuration.",
)
INVALID_SETTING = _register(
    "SCHED_INVALID_SETTING",
    "A command-line flag or environment variable has a value that the process cannot start with.",
    "The message names the setting and the accepted values; --help lists all.",
)

# Starting a container with its slice.
ALLOC_BAD_IDS = _register(
    "ALLOC_BAD_IDS",
    "The kubelet requests no device ids, or ids that the plugin never listed.",
    "If it stays, restart the kubelet of the node; its device checkpoint may be from another plugin.",
)
ALLOC_OWNER_UNKNOWN = _register(
    "ALLOC_OWNER_UNKNOWN",
    "The container of the device ids is not known yet, so it is not started.",
    "Nothing: the kubelet tries again in some seconds; if it stays, check that the plugin can read --kubelet-dir.",
)
ALLOC_OWNER_CONFLICT = _register(
    "ALLOC_OWNER_CONFLICT",
    "The kubelet's checkpoint and its podresources API name different owners of the same device ids.",
    "Delete the pod, so that it gets new ids; restart the kubelet if it happens again.",
)
ALLOC_NO_RECORD = _register(
    "ALLOC_NO_RECORD",
    "The pod was not placed by this project's scheduler, so no GPU is allocated to it and it is not started.",
    "Set schedulerName: hami-scheduler and no nodeName, and recreate the pod.",
)
ALLOC_CORRUPT_RECORD = _register(
    "ALLOC_CORRUPT_RECORD",
    "The pod's record of its GPUs cannot be read, or does not match its containers.",
    "Recreate the pod; only the scheduler may write hami.io/vgpu-devices-allocated.",
)
ALLOC_WRONG_NODE = _register(
    "ALLOC_WRONG_NODE",
    "The pod's record is for another node, or names a GPU that this node does not have.",
    "Recreate the pod.",
)
ALLOC_GPU_UNHEALTHY = _register(
    "ALLOC_GPU_UNHEALTHY",
    "The GPU allocated to the pod is unhealthy, so the container is not started.",
    "Delete the pod, so that it is placed on another GPU, or repair the GPU: see the node's DeviceUnhealthy event.",
)
ALLOC_OVERSUBSCRIBED = _register(
    "ALLOC_OVERSUBSCRIBED",
    "The pod's record does not fit on its GPU beside the older records of other pods.",
    "Delete the pod, so that it is placed again.",
)
ALLOC_OWN_VARIABLES = _register(
    "ALLOC_OWN_VARIABLES",
    "Without CDI the container's own env would replace its GPUs or limits, so it is not started.",
    "Remove the variable from the container's env, or use a container runtime with CDI and --identity cdi.",
)
ALLOC_SPEC_NOT_WRITTEN = _register(
    "ALLOC_SPEC_NOT_WRITTEN",
    "The container's device specification could not be written.",
    "Free space in the directory of --cdi-dir, or let the plugin write there; the kubelet tries again in some seconds.",
)
ALLOC_WRONG_MATCH = _register(
    "ALLOC_WRONG_MATCH",
    "Without CDI the container was matched with another container's record, so it is not started.",
    "Delete the pod, so that it is matched again, or use a container runtime with CDI and --identity cdi.",
)
ALLOC_ISOLATION = _register(
    "ALLOC_ISOLATION",
    "The node cannot isolate the container in the way that is set or requested.",
    "See the message: a library or daemon is missing, or the pod's users cannot share the GPU.",
)
ALLOC_CDI_IGNORED = _register(
    "ALLOC_CDI_IGNORED",
    "A container was started without its device specification: the container runtime ignores CDI names.",
    "Enable CDI in the container runtime (containerd 2.0 or newer, or CRI-O), or set --identity match.",
)
ALLOC_DELIVERY = _register(
    "ALLOC_DELIVERY",
    "The GPU's device nodes and libraries cannot be added to the container, so it is not started.",
    "See the message and the node's annotation hami.io/node-problems; the kubelet tries again in some seconds.",
)
ALLOC_RUNTIME_CLASS = _register(
    "ALLOC_RUNTIME_CLASS",
    "The GPU is delivered by NVIDIA's runtime, and the pod has no runtimeClassName, so another runtime starts it.",
    "Set runtimeClassName: nvidia, or let the webhook set it (scheduler.admissionWebhook.runtimeClassName); where "
    "NVIDIA's runtime is the default one, set --runtime-class-check off.",
)
ALLOC_INTERNAL = _register(
    "ALLOC_INTERNAL",
    "A defect in the device plugin; the container is not started.",
    "Report it with the log line that has this code; the kubelet tries again in some seconds.",
)

# Health of GPUs.
HEALTH_GPU_UNHEALTHY = _register(
    "HEALTH_GPU_UNHEALTHY",
    "A GPU must not be used: the driver reported a fault, or it does not answer.",
    "The message names the required action: wait, reset the GPU, reboot the node, or replace hardware.",
)
HEALTH_XID = _register(
    "HEALTH_XID",
    "The driver reported an XID that requires a restart of the application only.",
    "Check the program that ran on the GPU; if it repeats with other programs, run diagnostics.",
)

# The device plugin and its node.
PLUGIN_NO_DRIVER = _register(
    "PLUGIN_NO_DRIVER",
    "The device plugin finds no NVIDIA driver in its own container, or the driver has no GPUs; nothing is registered.",
    "If nvidia-smi works on the node, add the driver to the plugin's pod: devicePlugin.driver=runtimeClass (the "
    "RuntimeClass nvidia) or hostPath (with devicePlugin.driverRoot). Else install the driver, or remove the label "
    "gpu=on from the node.",
)
PLUGIN_MEMORY_NOT_LIMITED = _register(
    "PLUGIN_MEMORY_NOT_LIMITED",
    "Memory on this node's GPUs is not limited: the isolation is auto, and HAMi-core cannot be preloaded.",
    "Check the pod hami-core of the node, which installs the library (devicePlugin.hamiCore), or choose another "
    "isolation; none, if programs limit their memory by themselves.",
)
PLUGIN_ISOLATION_LOST = _register(
    "PLUGIN_ISOLATION_LOST",
    "GPUs of this node were limited by HAMi-core before and are not now; containers that start now have no limits.",
    "Restore the library (see PLUGIN_MEMORY_NOT_LIMITED); set the isolation to none if that is intended.",
)
PLUGIN_HAMI_CORE = _register(
    "PLUGIN_HAMI_CORE",
    "The isolation is set to hami-core, and the library cannot be preloaded here; no container is started on the GPUs.",
    "Check the pod hami-core of the node, which installs the library (devicePlugin.hamiCore).",
)
PLUGIN_MPS = _register(
    "PLUGIN_MPS",
    "The MPS control daemon does not run, or does not have the required settings; no container is started on its GPUs.",
    "Check the pod hami-mps of the node and its log; nvidia-cuda-mps-control comes with NVIDIA's runtime.",
)
PLUGIN_MPS_USERS = _register(
    "PLUGIN_MPS_USERS",
    "Containers of several users share a GPU by MPS, which serves one user at a time; the others wait.",
    "Set the same runAsUser in all of them, or --mps-multi-user where the driver serves several users.",
)
PLUGIN_FOLDER_CLEARED = _register(
    "PLUGIN_FOLDER_CLEARED",
    "A container wrote more into the folder that it shares with HAMi-core than the library does; it was removed.",
    "Check what the container writes there; the log line names its pod's UID and its name.",
)
PLUGIN_FOLDER_STAYS = _register(
    "PLUGIN_FOLDER_STAYS",
    "The folder of a container that has ended cannot be deleted.",
    "Give the plugin the capability DAC_OVERRIDE, as the chart does, or delete the folder yourself.",
)
PLUGIN_DRIVER_CHANGED = _register(
    "PLUGIN_DRIVER_CHANGED",
    "The NVIDIA driver was replaced while the plugin ran, so the plugin ends itself.",
    "Nothing: its container is restarted with the new driver's library.",
)
PLUGIN_NOT_REGISTERED = _register(
    "PLUGIN_NOT_REGISTERED",
    "The kubelet does not accept the plugin's registration.",
    "Check that the kubelet runs and that --kubelet-dir is its directory; the plugin retries by itself.",
)
PLUGIN_CHECKPOINT_UNREADABLE = _register(
    "PLUGIN_CHECKPOINT_UNREADABLE",
    "The kubelet's device checkpoint cannot be read, so the containers of device ids are unknown.",
    "Check the version of the kubelet against the table of supported ones, and the mount of --kubelet-dir.",
)
PLUGIN_INVENTORY_NOT_WRITTEN = _register(
    "PLUGIN_INVENTORY_NOT_WRITTEN",
    "The node's record of its GPUs could not be written.",
    "Check the API server and the plugin's RBAC rules; the plugin retries by itself.",
)
PLUGIN_CAPACITY_NOT_WRITTEN = _register(
    "PLUGIN_CAPACITY_NOT_WRITTEN",
    "The node's capacity of GPU memory and cores could not be written; where a DeviceClass names the GPU "
    "resource, kube-scheduler rejects pods that request them on this node.",
    "Grant the plugin's account patch on nodes/status, as the chart does; the plugin retries by itself.",
)
PLUGIN_DELIVERY = _register(
    "PLUGIN_DELIVERY",
    "The node has no way to add a GPU's device nodes and libraries to a container.",
    "Create a CDI specification (nvidia-ctk cdi generate), or use the RuntimeClass nvidia and --delivery envvar.",
)
PLUGIN_DELIVERY_WITHOUT_HOOKS = _register(
    "PLUGIN_DELIVERY_WITHOUT_HOOKS",
    "The container runtime does not read CDI, so containers get the device nodes and libraries of the host's CDI "
    "specification without its hooks: images whose loader does not search that folder do not find the driver.",
    "Enable CDI in the container runtime, or use the RuntimeClass nvidia.",
)
PLUGIN_CDI_TWICE = _register(
    "PLUGIN_CDI_TWICE",
    "Two CDI specifications of the host define the same GPU; the one in the later folder is used, as by the runtime.",
    "Delete the one that is not updated with the driver, usually /etc/cdi/nvidia.yaml beside nvidia-cdi-refresh's.",
)
PLUGIN_CDI_CONFLICT = _register(
    "PLUGIN_CDI_CONFLICT",
    "Two CDI specifications in one folder define the same GPU, so neither is used; the GPU is not offered.",
    "Delete one of the two.",
)
PLUGIN_CDI_STALE = _register(
    "PLUGIN_CDI_STALE",
    "The host's CDI specification does not match the node's GPU and driver; the GPU is not offered.",
    "Write it again: nvidia-ctk cdi generate --output=PATH, with the path that the message names.",
)
PLUGIN_CDI_IGNORED = _register(
    "PLUGIN_CDI_IGNORED",
    "The container runtime ignored the CDI name of a container, so containers are matched with records instead.",
    "Enable CDI in the container runtime and restart the device plugin with --identity cdi, or keep it as it is.",
)
PLUGIN_STARTS_UNSEEN = _register(
    "PLUGIN_STARTS_UNSEEN",
    "Running containers cannot be inspected, so a container runtime that ignores CDI names cannot be detected.",
    "Mount the host's /proc as --proc-dir, without hidepid.",
)
PLUGIN_GPU_NOT_RELEASED = _register(
    "PLUGIN_GPU_NOT_RELEASED",
    "A GPU is to be released (hami.io/gpu-release), and the plugin cannot close it: a call to the driver hangs.",
    "Delete the device plugin's pod on the node: its next process does not open the GPU.",
)
PLUGIN_MIG_INSTANCE_BARE = _register(
    "PLUGIN_MIG_INSTANCE_BARE",
    "A GPU instance without its compute instance occupies MIG slices of a GPU, and the plugin did not create it.",
    "Destroy it (nvidia-smi mig -dgi -i GPU -gi ID), or let the plugin destroy all unused ones: --mig-destroy all.",
)
PLUGIN_NODE_UNREAD = _register(
    "PLUGIN_NODE_UNREAD",
    "The plugin has not read its node since it started, so the features of the container runtime are unknown.",
    "Check the API server and the plugin's RBAC rules; or set --identity, which does not need the node.",
)
PLUGIN_RUNTIME_CLASS = _register(
    "PLUGIN_RUNTIME_CLASS",
    "Pods on the node have no runtimeClassName, and GPUs are delivered by NVIDIA's runtime: unless it is the node's "
    "default one, their containers start without a GPU.",
    "Let the webhook set it (scheduler.admissionWebhook.runtimeClassName), or set --runtime-class-check to off where "
    "NVIDIA's runtime is the default, or to refuse where it is not.",
)
PLUGIN_GPU_NOT_IDENTIFIED = _register(
    "PLUGIN_GPU_NOT_IDENTIFIED",
    "The driver counts a GPU but has not reported its UUID since the plugin started; it is not offered.",
    "See the call and the error: for missing permission add the device nodes to the plugin's container; for a required "
    "reset run nvidia-smi --gpu-reset. The plugin retries by itself.",
)
PLUGIN_GPU_MEMORY_UNKNOWN = _register(
    "PLUGIN_GPU_MEMORY_UNKNOWN",
    "The driver does not report a GPU's memory, for example where CPU and GPU share it; the GPU is not offered.",
    "Set the MiB to offer: --preconfigured-device-memory (value devicePlugin.preConfiguredDeviceMemory), or "
    "preconfigureddevicememory of the node's entry in the node file.",
)
PLUGIN_XIDS_NOT_HEARD = _register(
    "PLUGIN_XIDS_NOT_HEARD",
    "The driver does not report XIDs of a GPU to the plugin, so faults are detected by readings only.",
    "Nothing in a vGPU guest, where the host receives them. Elsewhere check the call and the error; the plugin "
    "registers again by itself.",
)
PLUGIN_MIG_NOT_READ = _register(
    "PLUGIN_MIG_NOT_READ",
    "A GPU is in MIG mode, and the driver refuses to report its instances; the last known ones stay in use.",
    "Grant the plugin the rights that MIG needs: CAP_SYS_ADMIN, and with NVIDIA's runtime NVIDIA_MIG_MONITOR_DEVICES "
    "and NVIDIA_MIG_CONFIG_DEVICES.",
)
PLUGIN_NODE_SETTINGS = _register(
    "PLUGIN_NODE_SETTINGS",
    "The file of per-node settings cannot be read; the previous settings stay in use.",
    "Write JSON with a list nodeconfig, as HAMi's device plugin does.",
)

# The monitor.
MONITOR_NOT_MEASURED = _register(
    "MONITOR_NOT_MEASURED",
    "The driver does not answer for a GPU, so its series get old and are then omitted.",
    "Check the GPU's health (hami_device_plugin_healthy_status) and nvidia-smi; the monitor retries by itself.",
)
MONITOR_PID_NAMESPACE = _register(
    "MONITOR_PID_NAMESPACE",
    "The node's pod is not in the host's PID namespace, where the driver lists no processes, so used memory is known "
    "only from the HAMi-core library of a container.",
    "Set hostPID: true for the device plugin's DaemonSet, as the chart does, and mount the host's /proc as --proc-dir.",
)
MONITOR_SHARED_REGION = _register(
    "MONITOR_SHARED_REGION",
    "The usage file of a container's HAMi-core library has another version, or impossible values.",
    "Use a library whose shared region has version 1.2; if the file is corrupt, restart the container.",
)

# The WebUI.
WEBUI_SOURCE = _register(
    "WEBUI_SOURCE",
    "The scheduler extender does not answer the WebUI, which shows its last answer.",
    "Check that the extender runs, and --extender, --extender-ca and --extender-token-file of the WebUI.",
)

WEBUI_METER = _register(
    "WEBUI_METER",
    "Prometheus or monitors do not answer the WebUI, which then shows allocations without used memory and utilization.",
    "Check --prometheus or --monitor-service of the WebUI, and the network to them.",
)

# What `hamictl doctor` finds.
DOCTOR_EXTENDER_AWAY = _register(
    "DOCTOR_EXTENDER_AWAY",
    "The extender's read API does not answer, so its state is not compared with the cluster.",
    "Check the Deployment hami-scheduler; set --extender URL if kubectl port-forward cannot reach it.",
)
DOCTOR_DRIFT = _register(
    "DOCTOR_DRIFT",
    "The extender's state of a pod differs from the API server's.",
    "If it lasts longer than a few seconds, restart the extender and report it with a snapshot.",
)
DOCTOR_NODE_WITHOUT_PLUGIN = _register(
    "DOCTOR_NODE_WITHOUT_PLUGIN",
    "A node is labelled for our device plugin (gpu=on), and has published no GPUs.",
    "Check the DaemonSet's pod on that node; run hamictl doctor node there.",
)
DOCTOR_FOREIGN_PLUGIN = _register(
    "DOCTOR_FOREIGN_PLUGIN",
    "A node offers nvidia.com/gpu by another device plugin.",
    "Remove the other plugin from the node, or keep it: our scheduler places no pods there.",
)
DOCTOR_NODE_RECORD = _register(
    "DOCTOR_NODE_RECORD",
    "A node's record of its GPUs cannot be read, so no pod is placed there.",
    "Restart its device plugin, which writes the record again.",
)
DOCTOR_SLOTS_DIFFER = _register(
    "DOCTOR_SLOTS_DIFFER",
    "The kubelet's number of slots differs from that of the node's GPUs.",
    "Restart the node's device plugin; if it stays, compare --device-split-count with the node's record.",
)
DOCTOR_GPU_SICK = _register(
    "DOCTOR_GPU_SICK",
    "A GPU must not be used.",
    "Run kubectl describe node for the cause and the required action.",
)
DOCTOR_NODE_PROBLEM = _register(
    "DOCTOR_NODE_PROBLEM",
    "A node's device plugin reports a problem whose code this hamictl does not know.",
    "Use the hamictl of the plugin's version, or look the code up in that version's reference.",
)
DOCTOR_MEMORY_NOT_LIMITED = _register(
    "DOCTOR_MEMORY_NOT_LIMITED",
    "The isolation of GPUs is none: a container that gets a slice can use all memory of the GPU.",
    "Choose another isolation (devicePlugin.isolation), if programs there do not limit their memory by themselves.",
)
DOCTOR_POD_RECORD = _register(
    "DOCTOR_POD_RECORD",
    "A pod's record of its GPUs cannot be read, so GPUs of its node get no new allocations.",
    "Delete the pod; its controller creates another one.",
)
DOCTOR_POD_WITHOUT_RECORD = _register(
    "DOCTOR_POD_WITHOUT_RECORD",
    "A pod with GPUs was bound by another scheduler; it holds slots and no GPU.",
    "Set schedulerName: hami-scheduler, or enable the webhook, and create the pod again.",
)
DOCTOR_OVERSUBSCRIBED = _register(
    "DOCTOR_OVERSUBSCRIBED",
    "The records allocate more of a GPU than it has.",
    "Delete the newest pod on it; if no record was edited manually, report it with a snapshot.",
)
DOCTOR_STUCK = _register(
    "DOCTOR_STUCK",
    "A pod was bound minutes ago, and the device plugin has not started it with its GPUs.",
    "See the kubelet's or the plugin's message in kubectl describe pod; pulling an image can take minutes.",
)
DOCTOR_RECORD_OTHER_NODE = _register(
    "DOCTOR_RECORD_OTHER_NODE",
    "A pod's record names another node than the pod is bound to, so the device plugin does not start it.",
    "Delete the pod, so that its owner makes a new one; remove hami.io/vgpu-* from copies of a pod's YAML.",
)
DOCTOR_RECORD_UNKNOWN_GPU = _register(
    "DOCTOR_RECORD_UNKNOWN_GPU",
    "A pod's record names a GPU that its node does not have, for example after hardware was replaced.",
    "Delete the pod once its containers have ended, so that its owner makes a new one.",
)
DOCTOR_RECORD_NODE_GONE = _register(
    "DOCTOR_RECORD_NODE_GONE",
    "A pod holds GPUs of a node that does not exist; Kubernetes deletes such pods by itself within minutes.",
    "If it stays, delete the pod with --force.",
)
DOCTOR_NODE_LEFTOVERS = _register(
    "DOCTOR_NODE_LEFTOVERS",
    "Files of containers that the kubelet no longer knows are still there after an hour.",
    "Check that the device plugin runs, which deletes them; without it, delete the files.",
)
DOCTOR_NODE_MPS_MODES = _register(
    "DOCTOR_NODE_MPS_MODES",
    "An MPS daemon has ended without restoring the compute modes of its GPUs, so they may serve one process only.",
    "Start the daemon again, or run nvidia-smi -c DEFAULT and delete the file.",
)
DOCTOR_GPU_TWICE = _register(
    "DOCTOR_GPU_TWICE",
    "Two nodes have a record of the same GPU, for example after a machine was renamed.",
    "Delete the node object that no longer exists; if both machines run, find out why their drivers report one UUID.",
)
DOCTOR_DEVICE_CLASS = _register(
    "DOCTOR_DEVICE_CLASS",
    "A DeviceClass offers the resource that counts GPUs, and the node's allocatable lacks others that pods request: "
    "kube-scheduler rejects these pods there.",
    "Let the device plugin write its capacity (patch on nodes/status, as the chart grants), remove "
    "extendedResourceName from the class, or start kube-scheduler with --feature-gates=DRAExtendedResource=false.",
)
DOCTOR_QUOTA = _register(
    "DOCTOR_QUOTA",
    "A ResourceQuota for GPUs cannot be read, so its namespace gets no GPUs.",
    "Write whole numbers as in the documentation of requests.",
)
DOCTOR_QUOTA_KEY = _register(
    "DOCTOR_QUOTA_KEY",
    "A ResourceQuota has a limit for a GPU resource that is not counted, so it has no effect.",
    "Write limits.nvidia.com/gpu, limits.nvidia.com/gpumem or limits.nvidia.com/gpucores.",
)
DOCTOR_NO_WEBHOOK = _register(
    "DOCTOR_NO_WEBHOOK",
    "The admission webhook is not registered: invalid requests are found late, and pods must name the scheduler.",
    "Install it, see docs/howto/run-the-webhook.md.",
)
DOCTOR_WEBHOOK_CERTIFICATE = _register(
    "DOCTOR_WEBHOOK_CERTIFICATE",
    "The certificate that the API server trusts for the webhook ends within a week, or has ended.",
    "Renew it, and the caBundle of the MutatingWebhookConfiguration with it.",
)
DOCTOR_NO_GUARD = _register(
    "DOCTOR_NO_GUARD",
    "No admission policy prevents users from writing records of GPUs.",
    "Apply charts/hami/files/record-guard.yaml.",
)
DOCTOR_RIGHTS = _register(
    "DOCTOR_RIGHTS",
    "Your account lacks a right that hamictl needs, so a part of the cluster is not checked.",
    "Request the named right, or use --kubeconfig or --context with an account that has it.",
)
DOCTOR_API_SLOW = _register(
    "DOCTOR_API_SLOW",
    "The API server takes more than a second to answer a small request; binding waits for it.",
    "Check the load of the API server and of etcd, and the network in between.",
)
DOCTOR_CLOCK = _register(
    "DOCTOR_CLOCK",
    "Two clocks differ by more than five seconds: this machine's, the API server's, a node's or the extender's.",
    "Run chrony or another NTP client on that machine.",
)
DOCTOR_SECOND_SCHEDULER = _register(
    "DOCTOR_SECOND_SCHEDULER",
    "More than one GPU-sharing scheduler is active: each allocates the same GPUs without knowing of the other.",
    "Remove one of the installations; kubectl get leases -A | grep hami-scheduler shows both.",
)
DOCTOR_SECOND_WEBHOOK = _register(
    "DOCTOR_SECOND_WEBHOOK",
    "More than one GPU-sharing webhook changes pods, and each sets its own scheduler.",
    "Delete the MutatingWebhookConfiguration of the installation that is not used.",
)
DOCTOR_NVIDIA_PLUGIN = _register(
    "DOCTOR_NVIDIA_PLUGIN",
    "NVIDIA's own device plugin runs on nodes that ours serves: both offer nvidia.com/gpu, and the last one is used.",
    "Exclude its DaemonSet from these nodes, by a node selector or affinity.",
)
DOCTOR_MISSPELLED = _register(
    "DOCTOR_MISSPELLED",
    "A pod or node names a resource or annotation that resembles one of GPU sharing and has no effect.",
    "Correct the name: of a pod in its template, of a node's annotation with kubectl annotate.",
)
DOCTOR_OTHER_PLUGIN = _register(
    "DOCTOR_OTHER_PLUGIN",
    "Another device plugin (GKE's, HAMi's, Volcano's or a further one) offers GPUs of nodes that ours serves: both "
    "allocate the same GPUs.",
    "Exclude it from these nodes, by a node selector or affinity; on GKE by the node's label "
    "gke-no-default-nvidia-gpu-device-plugin=true.",
)
DOCTOR_NODE_CONDITION = _register(
    "DOCTOR_NODE_CONDITION",
    "A node with GPUs is not ready, or is short of memory, disk or process ids.",
    "See kubectl describe node for the cause; a node that is not ready gets no new pods.",
)
DOCTOR_NODE_OTHER_PLUGIN = _register(
    "DOCTOR_NODE_OTHER_PLUGIN",
    "Another device plugin has registered GPUs with the kubelet of this node: both allocate the same GPUs.",
    "Exclude the other plugin from this node, and restart the kubelet if its resource stays.",
)
DOCTOR_EXTENDER_COMPONENT = _register(
    "DOCTOR_EXTENDER_COMPONENT",
    "A component of the extender is not healthy.",
    "See the reason in the finding, and the extender's log.",
)
DOCTOR_NODE_DRIVER = _register(
    "DOCTOR_NODE_DRIVER",
    "The NVIDIA driver's library cannot be loaded on this machine.",
    "Install the driver, or run this where the device plugin runs.",
)
DOCTOR_NODE_DEVICES = _register(
    "DOCTOR_NODE_DEVICES",
    "NVIDIA's device nodes are missing in /dev.",
    "Load the driver's kernel module (nvidia-smi does this).",
)
DOCTOR_NODE_CDI = _register(
    "DOCTOR_NODE_CDI",
    "No CDI specification of NVIDIA's GPUs is in /etc/cdi or /var/run/cdi.",
    "Run nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, or use the RuntimeClass nvidia.",
)
DOCTOR_NODE_KUBELET = _register(
    "DOCTOR_NODE_KUBELET",
    "The kubelet's socket for device plugins does not exist.",
    "Check that the kubelet runs, and --kubelet-dir.",
)
DOCTOR_NODE_PLUGIN = _register(
    "DOCTOR_NODE_PLUGIN",
    "Our device plugin's socket does not exist: the plugin does not run, or has not registered.",
    "Check the log of the DaemonSet's pod on this node.",
)
DOCTOR_NODE_SHARED_MEMORY = _register(
    "DOCTOR_NODE_SHARED_MEMORY",
    "The folder /dev/shm is missing or cannot be written; MPS and many frameworks need it.",
    "Mount a tmpfs there.",
)
DOCTOR_NODE_NVML = _register(
    "DOCTOR_NODE_NVML",
    "The NVIDIA driver's library does not start: its kernel module is missing, of another version, or hangs.",
    "Load the module; after an update of the driver, or if it hangs, reboot the node.",
)
DOCTOR_NODE_DRIVER_OLD = _register(
    "DOCTOR_NODE_DRIVER_OLD",
    "The NVIDIA driver is too old: it lacks functions for monitoring and sharing GPUs.",
    "Install a newer driver, 535 or later.",
)
DOCTOR_NODE_RUNTIME = _register(
    "DOCTOR_NODE_RUNTIME",
    "No socket of a container runtime is where containerd, CRI-O, cri-dockerd, k3s, RKE2, MicroK8s or k0s have it.",
    "Check that the container runtime runs; ignore this if its socket has another path.",
)
DOCTOR_NODE_CDI_OFF = _register(
    "DOCTOR_NODE_CDI_OFF",
    "CDI is disabled in containerd's configuration, so it ignores the GPUs that a container gets by CDI.",
    "Set enable_cdi = true and restart containerd, or run the plugin with --identity match and --delivery envvar.",
)
DOCTOR_NODE_CGROUP = _register(
    "DOCTOR_NODE_CGROUP",
    "The node has cgroup v1, which is deprecated: from Kubernetes 1.35 on the kubelet does not start on it.",
    "Boot the node with cgroup v2 (systemd.unified_cgroup_hierarchy=1).",
)
DOCTOR_NODE_MPS = _register(
    "DOCTOR_NODE_MPS",
    "The folder of the MPS control daemon exists, and no daemon listens in it.",
    "If the node's isolation is mps, check the device plugin's log; else delete the folder.",
)
DOCTOR_NODE_FOLDER = _register(
    "DOCTOR_NODE_FOLDER",
    "The device plugin cannot write into a folder that it needs.",
    "Put it on a file system that is mounted for writing.",
)
DOCTOR_NODE_SPACE = _register(
    "DOCTOR_NODE_SPACE",
    "Little space is left where the device plugin writes, or in the shared memory of MPS and frameworks.",
    "Free space, or mount a larger file system; --least-free sets the limit.",
)

# The fault injection service.
FAULT_INVALID = _register(
    "FAULT_INVALID",
    "A request to inject a fault has unknown or missing fields, or values outside their bounds; nothing was injected.",
    "Correct the fields that the message names; hamictl fault kinds lists every kind with its fields and bounds.",
)
FAULT_UNKNOWN_KIND = _register(
    "FAULT_UNKNOWN_KIND",
    "There is no kind of fault of that name; nothing was injected.",
    "Use one of the kinds that hamictl fault kinds lists.",
)
FAULT_UNKNOWN = _register(
    "FAULT_UNKNOWN",
    "No fault has that id: it was never injected, or it was recovered so long ago that its entry is deleted.",
    "List the faults with hamictl fault list.",
)
FAULT_COLLIDES = _register(
    "FAULT_COLLIDES",
    "Another fault with the same effect is injected into the same target, so that recovering one would undo the other; "
    "nothing was injected.",
    "Recover the other fault first; the message names its id.",
)
FAULT_NO_CONSENT = _register(
    "FAULT_NO_CONSENT",
    "The node does not have the label hami.io/fault-injection: allowed, so no fault may be injected into it.",
    "If pods of this node may break, run kubectl label node NODE hami.io/fault-injection=allowed.",
    operator=True,
)
FAULT_NO_TARGET = _register(
    "FAULT_NO_TARGET",
    "The node, GPU or process of a fault does not exist; nothing was injected.",
    "Use one of the targets that the message names.",
)
FAULT_NOT_SUPPORTED = _register(
    "FAULT_NOT_SUPPORTED",
    "No backend of this fault injection service can inject that kind of fault here; nothing was injected.",
    "Use one of the kinds that the message names, or run the service where a backend can inject this one.",
    operator=True,
)
FAULT_BACKEND = _register(
    "FAULT_BACKEND",
    "Injecting or recovering a fault failed; hamictl fault show has the state and the cause.",
    "Remove the cause, then inject again if the state is failed, or recover again if it is injected.",
    operator=True,
)
FAULT_TOO_MANY = _register(
    "FAULT_TOO_MANY",
    "As many faults are in effect as the service permits at one time; nothing was injected.",
    "Recover some: hamictl fault cleanup recovers all.",
)
FAULT_TRACKER = _register(
    "FAULT_TRACKER",
    "The record of faults cannot be read or written, so nothing is injected: a fault without a record could not be "
    "recovered after a restart.",
    "See the cause in the message. If the record is damaged, check by hand what is in effect, then delete the record.",
    operator=True,
)
FAULT_UNAUTHORIZED = _register(
    "FAULT_UNAUTHORIZED",
    "The fault injection API was called without a token that the cluster knows.",
    "Send a bearer token of this cluster, for example by kubectl create token.",
)
FAULT_FORBIDDEN = _register(
    "FAULT_FORBIDDEN",
    "The caller of the fault injection API lacks a permission: get or create on faults.hami.io, or it is a web page.",
    "Bind the ClusterRole hami-fault-injection to the account; from a browser the API cannot be used.",
    operator=True,
)
FAULT_REVIEW_FAILED = _register(
    "FAULT_REVIEW_FAILED",
    "The API server did not answer the review of a caller of the fault injection API, so the call was refused.",
    "Try again; if it stays, check that the service may create tokenreviews and subjectaccessreviews.",
    operator=True,
)
FAULT_ROUTE = _register(
    "FAULT_ROUTE",
    "The path of the fault injection API does not exist, or does not support that method.",
    "See /openapi.json of the service for its paths.",
)
FAULT_NOT_READY = _register(
    "FAULT_NOT_READY",
    "The fault injection service has not read its record of faults yet.",
    "Wait some seconds; /healthz shows what is missing.",
)
FAULT_NO_MEASUREMENT = _register(
    "FAULT_NO_MEASUREMENT",
    "The numbers for a scenario's checks cannot be read from the API server.",
    "Try again; while a fault on the API server is injected, there may be no answer.",
)
OPS_NOT_INSTALLED = _register(
    "OPS_NOT_INSTALLED",
    "The namespace has no Deployment hami-scheduler, so there is no installation to operate.",
    "Set --system-namespace to the namespace of the chart, and check --context.",
)
OPS_FOREIGN_INSTALLATION = _register(
    "OPS_FOREIGN_INSTALLATION",
    "The Deployment hami-scheduler of the namespace is of another project, such as HAMi.",
    "Operate it by its own tools; docs/howto/come-from-hami.md says how to replace it.",
)
OPS_NOT_CONFIRMED = _register(
    "OPS_NOT_CONFIRMED",
    "A change was not confirmed.",
    "Run it again and answer y, or with --yes where there is no terminal; --dry-run shows what it would do.",
)
OPS_UNKNOWN_PART = _register(
    "OPS_UNKNOWN_PART",
    "No part with that name is installed.",
    "Use one of the names that the message lists.",
)
OPS_NO_LEASE = _register(
    "OPS_NO_LEASE",
    "More than one replica was requested of an extender that runs without a leader Lease: both would place pods.",
    "Install the chart, which sets --leader-lease, then scale.",
)
OPS_ROLLOUT_FAILED = _register(
    "OPS_ROLLOUT_FAILED",
    "A rollout failed or was not done in time, so not every pod has the change.",
    "Look at the pods that are not available: kubectl describe, and their logs.",
)
OPS_ENDS_CLIENTS = _register(
    "OPS_ENDS_CLIENTS",
    "A restart of this part would end the GPU work of every pod that uses it, such as clients of MPS.",
    "Drain a node of these pods, then delete the part's pod on that node.",
)
OPS_IMAGE_INVALID = _register(
    "OPS_IMAGE_INVALID",
    "The reference of an image is malformed, or has neither a tag nor a digest.",
    "Write REPOSITORY:TAG or REPOSITORY@sha256:DIGEST.",
)
OPS_IMAGE_UNKNOWN = _register(
    "OPS_IMAGE_UNKNOWN",
    "No part runs an image with that name.",
    "Use the name of an image that the message lists; kube-scheduler and HAMi-core are set by the chart's values.",
)
OPS_IMAGE_UNUSABLE = _register(
    "OPS_IMAGE_UNUSABLE",
    "The image of an update cannot be pulled or does not start, so nothing was changed.",
    "Check the reference, the registry, imagePullSecrets and the platform of the image.",
)
OPS_ROLLED_BACK = _register(
    "OPS_ROLLED_BACK",
    "The rollout of an update failed, and every part has its image of before again.",
    "Look at the logs of the new image, and at the events of its pods.",
)
OPS_ROLLBACK_FAILED = _register(
    "OPS_ROLLBACK_FAILED",
    "The rollout of an update failed, and not every part has its image of before again.",
    "Run kubectl rollout undo for the parts that the message names, or helm upgrade with the values of before.",
)
OPS_FILE_EXISTS = _register(
    "OPS_FILE_EXISTS",
    "A file that would be written exists.",
    "Choose another name, or --overwrite for a backup.",
)
OPS_BACKUP_DAMAGED = _register(
    "OPS_BACKUP_DAMAGED",
    "The file is no backup, is damaged, or has content that no backup has; nothing was written.",
    "Use another copy of the file; do not edit it.",
)
OPS_BACKUP_TOO_NEW = _register(
    "OPS_BACKUP_TOO_NEW",
    "The backup was made by a newer version of hamictl.",
    "Install that version of hamictl, or a later one.",
)
OPS_OTHER_CLUSTER = _register(
    "OPS_OTHER_CLUSTER",
    "The backup is of another cluster: the UIDs of their namespaces kube-system differ.",
    "Check --context; --other-cluster writes it here all the same.",
)
OPS_CHANGED_MEANWHILE = _register(
    "OPS_CHANGED_MEANWHILE",
    "An object was changed by another client between the comparison and the write, so it was not written.",
    "Run the command again: it compares anew.",
)
OPS_NOT_DELETED = _register(
    "OPS_NOT_DELETED",
    "A pod was not deleted, because the API server refused it.",
    "Check the right to delete pods in its namespace, and admission webhooks.",
)
OPS_NO_STATS = _register(
    "OPS_NO_STATS",
    "The kubelet of a node does not answer with its disk space.",
    "Check that the node is ready; kubectl get --raw /api/v1/nodes/NODE/proxy/stats/summary shows the answer.",
)
OPS_NO_PROMETHEUS = _register(
    "OPS_NO_PROMETHEUS",
    "The Prometheus of --prometheus does not answer a query.",
    "Check the address; kubectl port-forward reaches one in the cluster.",
)
OPS_NOTIFY_URL = _register(
    "OPS_NOTIFY_URL",
    "There is no valid address for notifications.",
    "Write it alone into a file for --url-file that only you may read, or set HAMI_NOTIFY_URL.",
)
OPS_NOTIFY_REFUSED = _register(
    "OPS_NOTIFY_REFUSED",
    "The receiver of a notification refused it.",
    "Check that its address is still valid, and that it accepts JSON with the field text.",
)

# A canary of a model server, from inside a container.
CANARY_BAD_URL = _register(
    "CANARY_BAD_URL",
    "The address of a model server is not one that a canary can ask.",
    "Write http://HOST:PORT, without user, query and fragment.",
)
CANARY_BAD_SETTING = _register(
    "CANARY_BAD_SETTING",
    "An argument of the probe, or an environment variable HAMI_CANARY_…, cannot be used.",
    "See the sentence beside the code; python -m gpu_sharing.workload probe --help has the arguments.",
)
CANARY_NO_CONNECTION = _register(
    "CANARY_NO_CONNECTION",
    "A model server does not accept connections, or closed one before it answered.",
    "Check that the server runs, and that host and port are its own.",
)
CANARY_TIMEOUT = _register(
    "CANARY_TIMEOUT",
    "A model server did not complete its answer to a request of one token in time.",
    "Check its log and its queue; raise --timeout-seconds for a model that is slow.",
)
CANARY_REDIRECT = _register(
    "CANARY_REDIRECT",
    "A model server answers with a redirect, which a canary does not follow.",
    "Name the final address.",
)
CANARY_STATUS = _register(
    "CANARY_STATUS",
    "A model server refuses a request of one token.",
    "See its answer beside the code; HAMI_CANARY_MODEL, …_API_KEY and …_PAYLOAD change the request.",
)
CANARY_INVALID_ANSWER = _register(
    "CANARY_INVALID_ANSWER",
    "A model server answers a request of one token with something else than its engine does.",
    "Check --engine and the port.",
)
CANARY_ANSWER_TOO_LARGE = _register(
    "CANARY_ANSWER_TOO_LARGE",
    "A model server answers a request of one token with more than 1 MiB.",
    "Check the port; it may be that of another server.",
)

# A program in a container, about its own slice.
WORKLOAD_NO_SLICE = _register(
    "WORKLOAD_NO_SLICE",
    "The container's environment names no GPU that the device plugin gave it, so its slice is not known.",
    "Run it in a pod that requests nvidia.com/gpu; outside Kubernetes there is no slice.",
)
WORKLOAD_UNDESCRIBED = _register(
    "WORKLOAD_UNDESCRIBED",
    "The container's environment lacks a part of the description of its slice, such as the node or the pod.",
    "Set POD_NAME and POD_NAMESPACE by the downward API; other parts come with the next start under this version.",
)
WORKLOAD_BAD_LIMIT = _register(
    "WORKLOAD_BAD_LIMIT",
    "A variable with the limits of the slice is malformed, or has not one value for each GPU, and counts as unknown.",
    "Remove the variable from the image or from the container's env; the device plugin sets it.",
)
WORKLOAD_LIMIT_MISMATCH = _register(
    "WORKLOAD_LIMIT_MISMATCH",
    "The limits of the slice contradict each other, or what the driver reports of the GPU; the smaller one counts.",
    "Compare the pod's record (hami.io/vgpu-devices-allocated) with the container's env; memory may be oversubscribed.",
)
WORKLOAD_NO_NVML = _register(
    "WORKLOAD_NO_NVML",
    "The driver cannot be read from this container, so values of the GPU are not known.",
    "Install hami-py[workload], and check with nvidia-smi that the container has the driver's libraries.",
)
WORKLOAD_USAGE_UNKNOWN = _register(
    "WORKLOAD_USAGE_UNKNOWN",
    "What the container uses of its GPU cannot be read, so neither usage nor headroom is known.",
    "See the reason in the message; the monitor of the node measures it from outside.",
)
WORKLOAD_NO_PROMETHEUS = _register(
    "WORKLOAD_NO_PROMETHEUS",
    "The package prometheus-client is not installed, so no metrics can be made.",
    "Install hami-py[workload].",
)
WORKLOAD_METRICS_TWICE = _register(
    "WORKLOAD_METRICS_TWICE",
    "A registry of Prometheus has these metrics already.",
    "Make one collector of a kind in a process, or pass a registry of its own: registry=CollectorRegistry().",
)
WORKLOAD_BAD_SETTING = _register(
    "WORKLOAD_BAD_SETTING",
    "An argument of gpu_sharing.workload is out of range.",
    "Use a value in the range that the message names.",
)
WORKLOAD_LABELS_FULL = _register(
    "WORKLOAD_LABELS_FULL",
    "A label has its maximum number of distinct values, so that further ones are counted as other.",
    "Use names of models, not text of requests, as label values; or raise most_models.",
)
WORKLOAD_SAMPLE_FAILED = _register(
    "WORKLOAD_SAMPLE_FAILED",
    "A sample or a callback of a sampling thread failed; the thread goes on.",
    "See the exception in the log line; an exception of a callback is of the program that passed it.",
)
