"""The answers of the extender's read API: what it encodes, and what `hamictl` and the WebUI decode.

Its OpenAPI document is generated from these types too. Fields may be added: a reader ignores unknown fields, and fields
that an older extender does not send have defaults.
"""

from typing import Annotated, Any, Literal

import msgspec

from gpu_sharing.core import requests

Count = Annotated[int, msgspec.Meta(ge=0)]


class Amount(msgspec.Struct, frozen=True, gc=False):
    """A total amount, and the allocated part of it."""

    total: Count
    allocated: Count


class Gpu(msgspec.Struct, frozen=True, gc=False):
    """One GPU of a node and its allocation."""

    uuid: str
    index: Count
    type: str
    mode: Annotated[
        str,
        msgspec.Meta(
            description="How containers that share it are isolated: hami-core, mps, mig, or none, which limits "
            "nothing; empty where its device plugin does not report it."
        ),
    ]
    healthy: bool
    cordoned: bool
    allocation_unknown: Annotated[
        bool, msgspec.Meta(description="A pod that may hold it has a record that cannot be read.")
    ]
    memory_mib: Amount
    cores_percent: Amount
    slots: Amount
    exclusive: bool = False
    unhealthy_reason: Annotated[
        str,
        msgspec.Meta(
            description="Why it is unhealthy, by the node's device plugin; empty where it is healthy or "
            "no reason is known."
        ),
    ] = ""


class Node(msgspec.Struct, frozen=True, gc=False):
    """A node and its GPUs."""

    name: str
    standing: Annotated[str, msgspec.Meta(description="Why no pod is placed there; `none` where pods are placed.")]
    foreign_slots: Annotated[int, msgspec.Meta(ge=0, description="Device ids held by pods without a record of ours.")]
    gpus: list[Gpu]
    labels: dict[str, str] = {}  # msgspec copies it
    problems: Annotated[
        dict[str, str],
        msgspec.Meta(description="Problems of the node's setup, by error code, from its device plugin."),
    ] = {}


class Nodes(msgspec.Struct, frozen=True):
    """Answer of the path `nodes`."""

    nodes: list[Node]


class Cluster(msgspec.Struct, frozen=True):
    """Answer of `cluster`: totals."""

    nodes: Count
    gpus: Count
    memory_mib: Amount
    cores_percent: Amount
    pods_bound: Count
    pods_pending: Count
    resource_names: Annotated[
        requests.ResourceNames | None,
        msgspec.Meta(
            description="The names of the GPU resources, which are settings of the extender, with their defaults."
        ),
    ] = None


RemediationMode = Literal["off", "dry-run", "on"]


class RemediationAct(msgspec.Struct, frozen=True, gc=False):
    """What a rule of remediation asks for, and why it is not done yet."""

    node: str
    gpu: Annotated[str, msgspec.Meta(description="Empty where the act concerns the node.")]
    action: str
    rule: str
    cause: Annotated[str, msgspec.Meta(description="The fault, or the condition of the node.")]
    reason: Annotated[str, msgspec.Meta(description="Why it is not done; empty where it is done now.")]
    wait_seconds: Count = 0


class RemediationEntry(msgspec.Struct, frozen=True, gc=False):
    """What remediation has done on a node in the last day, by action and GPU."""

    node: str
    gpu: Annotated[str, msgspec.Meta(description="Empty where the act concerned the node.")]
    action: str
    rule: str
    times: Annotated[list[int], msgspec.Meta(description="Unix seconds of each act, oldest first.")]
    holds: Annotated[bool, msgspec.Meta(description="Its effect stands until remediation releases it.")]


class Migration(msgspec.Struct, frozen=True, gc=False):
    """An evicted pod whose owner has no pod on another GPU yet."""

    namespace: str
    name: str
    reason: str


class Remediation(msgspec.Struct, frozen=True):
    """Answer of `remediation`: what is done about faulty GPUs. Only the leader plans."""

    mode: RemediationMode = "off"
    leading: bool = False
    breaker: Literal["closed", "open", "half-open"] = "closed"
    budget_left: Annotated[int, msgspec.Meta(ge=0, description="Acts that are left in this hour.")] = 0
    affected_nodes: Count = 0
    acts: list[RemediationAct] = []  # msgspec copies it
    history: list[RemediationEntry] = []
    migrations: list[Migration] = []


class Share(msgspec.Struct, frozen=True, gc=False):
    """The share of a container, or of a whole pod, of one GPU."""

    uuid: str
    memory_mib: Count
    cores_percent: Count


class ContainerRequest(msgspec.Struct, frozen=True, gc=False):
    """What one container of a pending pod requests."""

    gpus: Count
    memory_mib: Annotated[int, msgspec.Meta(ge=0, description="Of each GPU; 0 where a percentage is requested.")]
    memory_percent: Count
    cores_percent: Count


class Pod(msgspec.Struct, frozen=True, gc=False):
    """A pod that holds GPUs or is pending."""

    namespace: str
    name: str
    uid: str
    node: Annotated[str | None, msgspec.Meta(description="null while it is pending.")]
    phase: Literal["bound", "pending"]
    starting: Annotated[bool, msgspec.Meta(description="The device plugin has not started all of its containers.")]
    corrupt: Annotated[bool, msgspec.Meta(description="Its record cannot be read.")]
    foreign_slots: Annotated[int, msgspec.Meta(ge=0, description="Device ids that it holds without a record of ours.")]
    gpus: Annotated[
        list[Share],
        msgspec.Meta(
            description="Its allocation on each GPU for its life: the maximum of its init containers and its apps."
        ),
    ]
    containers: Annotated[
        list[list[Share]], msgspec.Meta(description="The shares of each container, init containers first.")
    ] = []
    error_code: Annotated[str, msgspec.Meta(description="Why it was rejected last; empty where it was not.")] = ""
    not_running: Annotated[
        str,
        msgspec.Meta(
            description="Why the containers of a bound pod do not run: `Refused` by the device plugin, or the "
            "kubelet's reason, such as CrashLoopBackOff."
        ),
    ] = ""
    created_at: Annotated[int, msgspec.Meta(ge=0, description="Unix seconds; 0 where it is not known.")] = 0
    bound_at: Annotated[int, msgspec.Meta(ge=0, description="Unix seconds; 0 while it is pending.")] = 0
    requests: Annotated[
        list[ContainerRequest],
        msgspec.Meta(description="What each container of a pending pod requests; empty where that cannot be read."),
    ] = []
    reason: Annotated[
        str,
        msgspec.Meta(
            description="Why it is pending, in one line; empty where it is bound or not known. `explain` has the "
            "whole answer."
        ),
    ] = ""
    reason_code: Annotated[str, msgspec.Meta(description="The code of `reason`.")] = ""


class Pods(msgspec.Struct, frozen=True):
    """Answer of the path `pods`."""

    pods: list[Pod]


class NodeExplanation(msgspec.Struct, frozen=True):
    """Why a pod does not fit on one node."""

    node: str
    fits: bool
    code: str
    message: str
    curable: Annotated[bool, msgspec.Meta(description="Whether the end of other pods could make it fit.")]
    advice: Annotated[str, msgspec.Meta(description="What to change in the request, or on the node.")]
    waits_for: Annotated[
        list[str], msgspec.Meta(description="The fewest pods whose end makes it fit, as namespace/name.")
    ]
    evictable: Annotated[list[str], msgspec.Meta(description="The pods that preemption would evict for it.")]
    examined: Annotated[
        bool,
        msgspec.Meta(
            description="Whether `waits_for` and `evictable` were computed; false where the limit of one explanation "
            "was reached before this node."
        ),
    ] = True


class NodeGroup(msgspec.Struct, frozen=True):
    """Nodes that one rule keeps a pod off."""

    code: Annotated[str, msgspec.Meta(description="Empty where the GPUs fit.")]
    message: str
    nodes: Count
    nearest: str


class Cause(msgspec.Struct, frozen=True):
    """One thing that keeps a pod pending."""

    code: str
    message: Annotated[str, msgspec.Meta(description="What is in the way, with names and numbers.")]
    advice: Annotated[str, msgspec.Meta(description="What the pod's owner can do.")]
    nodes: Annotated[int, msgspec.Meta(ge=0, description="0 where it concerns the pod as a whole.")] = 0
    lasts: Annotated[
        bool, msgspec.Meta(description="Whether it stays until a person changes something: no end of a pod cures it.")
    ] = False


class Explanation(msgspec.Struct, frozen=True):
    """Answer of `explain`: why a pod is pending, node by node."""

    pod: Annotated[str, msgspec.Meta(description="As namespace/name.")]
    phase: Literal["bound", "pending"]
    node: str | None
    summary: Annotated[str, msgspec.Meta(description="The note of its event.")] = ""
    remedy: Annotated[str, msgspec.Meta(description="What to do about the first cause.")] = ""
    nearest: Annotated[str | None, msgspec.Meta(description="The node where the fewest other pods must end.")] = None
    gates: Annotated[
        list[str], msgspec.Meta(description="Scheduling gates, for which kube-scheduler does not try the pod.")
    ] = []
    nodes: Annotated[
        list[NodeExplanation],
        msgspec.Meta(
            description="The nearest first, at most as many as the parameter `nodes`; none for a request that "
            "cannot be read."
        ),
    ] = []
    causes: Annotated[list[Cause], msgspec.Meta(description="The true cause first.")] = []
    groups: Annotated[
        list[NodeGroup], msgspec.Meta(description="All nodes by what is in the way, the nearest first.")
    ] = []

    @property
    def node_count(self) -> int:
        """The number of nodes that were examined, listed or not."""
        return max(sum(group.nodes for group in self.groups), len(self.nodes))


class Event(msgspec.Struct, frozen=True):
    """One event of a pod, with the number of its repetitions."""

    first_at: Annotated[float, msgspec.Meta(description="Unix seconds.")]
    last_at: Annotated[float, msgspec.Meta(description="Unix seconds.")]
    count: Count
    reporter: str
    type: str
    reason: str
    note: str


class Events(msgspec.Struct, frozen=True):
    """Answer of the path `events`."""

    pod: Annotated[str, msgspec.Meta(description="As namespace/name.")]
    events: Annotated[list[Event], msgspec.Meta(description="Oldest first.")]


class Problem(msgspec.Struct, frozen=True):
    """Every answer that is not 200."""

    error_code: str
    message: str


class Stack(msgspec.Struct, frozen=True):
    """One place at which threads were seen."""

    samples: int
    """How often it was seen."""
    thread: str
    """The thread's name."""
    frames: str
    """The calls, outermost first, `file:function:line` separated by semicolons, as tools for flame graphs read them."""


class Profile(msgspec.Struct, frozen=True):
    """What a process did for some seconds."""

    seconds: float
    samples: int
    """How many times all threads were looked at."""
    stacks: list[Stack]
    """The most frequent first."""
    tasks: list[str]
    """The tasks of the event loop at the end: name, coroutine, and where each waits."""


LONGEST_PROFILE_SECONDS = 60
"""The longest profile that can be asked for."""

PATHS: dict[str, tuple[str, type[msgspec.Struct]]] = {
    "/api/v1/cluster": ("Totals of the cluster.", Cluster),
    "/api/v1/nodes": ("Every node and its GPUs.", Nodes),
    "/api/v1/pods": ("Every pod that holds GPUs or is pending.", Pods),
    "/api/v1/remediation": ("What is done about faulty GPUs.", Remediation),
    "/api/v1/explain/{namespace}/{pod}": ("Why a pod is pending, node by node.", Explanation),
    "/api/v1/events/{namespace}/{pod}": ("The events of a pod, oldest first.", Events),
    "/api/v1/profile/{seconds}": ("What the process does for so many seconds, at most 60.", Profile),
}
"""The answer of each path."""


def openapi() -> dict[str, Any]:
    """Return the description of the read API as OpenAPI 3.1."""
    kinds = [*(kind for _, kind in PATHS.values()), Problem]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths = {
        path: {"get": _operation(path, summary, schema, schemas[-1])}
        for (path, (summary, _)), schema in zip(PATHS.items(), schemas, strict=False)
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPU sharing read API",
            "version": "1",
            "description": "Allocations of pods, and pending pods with reasons. Memory is MiB, cores are percent of "
            "one GPU.",
        },
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, summary: str, answer: Any, problem: Any) -> dict[str, Any]:
    def response(schema: Any) -> dict[str, Any]:
        return {"description": "As JSON.", "content": {"application/json": {"schema": schema}}}

    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    queries = (
        [{"name": "nodes", "in": "query", "schema": {"type": "integer", "minimum": 0}}] if "explain" in path else []
    )
    statuses = ("401", "403", "404", "503", *(("502",) if "events" in path else ()))
    return {
        "operationId": path.split("/")[3],
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
        + queries,
        "responses": {"200": response(answer), **{status: response(problem) for status in statuses}},
    }
