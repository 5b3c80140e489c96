"""What `hamictl doctor` finds of pods that wait in vain, of misspelled names and of cordons."""

import msgspec
import pytest

from gpu_sharing.adapters import objects
from gpu_sharing.core import error_codes, records, requests
from hamictl import pending_checks, record_checks, snapshot
from hamictl.findings import Finding
from lab import gpus
from tests.support import extender_world, pending_table

NAMES = requests.ResourceNames()
CREATED, NOW = "2026-01-01T00:00:00Z", 1_767_229_200.0
"""An hour after it."""


def pod(case: pending_table.Case, created: str = CREATED) -> objects.Pod:
    name = case.body["metadata"]["name"]
    metadata = {**case.body["metadata"], "namespace": case.namespace, "uid": name, "creationTimestamp": created}
    condition = {"type": "PodScheduled", "status": "False", "reason": case.reason, "message": case.condition}
    status = {"phase": "Pending", "conditions": [condition] if case.condition else []}
    return msgspec.convert({**case.body, "metadata": metadata, "status": status}, objects.Pod)


def state(*pods: objects.Pod) -> snapshot.State:
    """The cluster of the table, with its pods that hold GPUs and these."""
    holders = [
        extender_world.held(f"{name}-{index}", node, index, mib, cores)
        for name, node, mib, cores in (("holds-large", "large", 60_000, 0), ("holds-small", "small", 4_000, 80))
        for index in range(2)
    ]
    quota = msgspec.convert(pending_table.QUOTA, objects.ResourceQuota)
    quota.metadata.namespace = "limited"
    return snapshot.State(
        snapshot.VERSION,
        "",
        [msgspec.convert(node, objects.Node) for node in pending_table.nodes()],
        [*(msgspec.convert(one, objects.Pod) for one in holders), *pods],
        [quota],
    )


def findings(cluster: snapshot.State) -> list[Finding]:
    observed = record_checks.Observation(cluster, [], "", NOW)
    return [one for _, some in pending_checks.checks(observed, NAMES) for one in some]


PASSING = {
    "capacity: memory", "capacity: cores", "capacity: exclusive", "CPU: more than is free", "anti-affinity of pods",
    "affinity to pods", "storage of the node", "resource of another vendor", "port of the node",
    "quota", "gang for which too little is free",
}  # fmt: skip
"""What the end of another pod cures."""


@pytest.mark.parametrize("case", pending_table.TABLE, ids=lambda case: case.cause)
def test_a_pod_that_waits_in_vain_is_found_with_its_true_cause(case: pending_table.Case) -> None:
    """Who looks after the cluster reads what `hamictl explain` says of each, without asking pod by pod."""
    found = [one for one in findings(state(pod(case))) if one.code != error_codes.DOCTOR_MISSPELLED]

    about = f"pod/{case.namespace}/{case.body['metadata']['name']}"
    expected = [] if case.cause in PASSING else [(about, case.first)]
    assert [(one.about, one.detail) for one in found] == expected


def test_a_pod_that_was_just_created_is_not_found() -> None:
    """kube-scheduler may not have tried it, and a controller may be about to remove its gate."""
    gated = next(case for case in pending_table.TABLE if case.cause == "gate")

    assert findings(state(pod(gated, created="2026-01-01T00:59:30Z"))) == []


def test_replicas_are_examined_once_and_found_each() -> None:
    """Two thousand replicas take one look at the nodes."""
    case = next(case for case in pending_table.TABLE if case.cause == "schedulerName")
    replicas = [pod(case) for _ in range(3)]
    for number, replica in enumerate(replicas):
        replica.metadata.name = replica.metadata.uid = f"replica-{number}"

    assert [one.about for one in findings(state(*replicas))] == [f"pod/default/replica-{number}" for number in range(3)]


def test_names_that_have_no_effect_are_found_on_pods_with_and_without_gpus() -> None:
    """Such a pod runs without a limit, or not at all, and no other check knows it."""
    cluster = state()
    body = pending_table.pod("p", {"nvidia.com/gpumemm": "4000"}, {"nvidia.com/use-gputypee": "A100"})
    body["metadata"]["namespace"] = "ai"
    cluster.misspelled = [msgspec.convert(body, objects.Pod)]

    assert [(one.code, one.about, one.detail) for one in findings(cluster)] == [
        (
            error_codes.DOCTOR_MISSPELLED,
            "pod/ai/p",
            "annotation nvidia.com/use-gputypee has no effect: the known one is nvidia.com/use-gputype",
        ),
        (
            error_codes.DOCTOR_MISSPELLED,
            "pod/ai/p",
            "container main: resource nvidia.com/gpumemm has no effect: the known one is nvidia.com/gpumem",
        ),
    ]


def test_a_cordon_of_a_gpu_that_is_nowhere_is_found_with_the_one_that_was_meant() -> None:
    """The person who wrote it believes that the GPU gets no pods."""
    cluster = state()
    wrong = gpus.gpu_uuid("large", 0)[:-1] + "?"
    annotations = cluster.nodes[0].metadata.annotations
    assert annotations is not None
    annotations[records.CORDON] = f"{wrong},{gpus.gpu_uuid('large', 1)}"

    assert [(one.code, one.about, one.detail) for one in findings(cluster)] == [
        (
            error_codes.UNKNOWN_CORDON,
            "node/large",
            (
                f"hami.io/device-cordon names {wrong} (did you mean {gpus.gpu_uuid('large', 0)}?), "
                "which no GPU of the node has"
            ),
        )
    ]


def test_a_misspelled_cordon_is_found() -> None:
    """The GPU gets pods although a person believes that it does not."""
    cluster = state()
    annotations = cluster.nodes[0].metadata.annotations
    assert annotations is not None
    annotations["hami.io/device-cordoned"] = gpus.gpu_uuid("large", 1)

    assert [(one.about, one.detail) for one in findings(cluster)] == [
        ("node/large", "annotation hami.io/device-cordoned has no effect: the known one is hami.io/device-cordon")
    ]
