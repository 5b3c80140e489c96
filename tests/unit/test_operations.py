"""The pure parts of `hamictl ops`: states of rollouts, images, the file of a backup, the plan of a restore."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.adapters import objects
from gpu_sharing.core import records
from hamictl import cluster_checks, failures
from hamictl.operations import backup_file, health_rows, image_check, images, installed, restore_plan, rollouts
from hamictl.operations.rollouts import DAEMON_SETS, DEPLOYMENTS, State


def workload(spec: dict[str, Any], status: dict[str, Any], generation: int = 3) -> rollouts.Workload:
    metadata = {"name": "x", "namespace": "hami-system", "uid": "u", "generation": generation}
    body = {"metadata": metadata, "spec": spec, "status": {"observedGeneration": 3, **status}}
    return msgspec.convert(body, rollouts.Workload)


DEADLINE = {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
TWO = {"replicas": 2}


@pytest.mark.parametrize(("spec", "status", "state", "text"), [
    (TWO, {"updatedReplicas": 1, "replicas": 2}, State.UNDER_WAY, "1 of 2 replicas updated"),
    (TWO, {"updatedReplicas": 2, "replicas": 3, "availableReplicas": 2}, State.UNDER_WAY, "1 old replicas terminate"),
    (TWO, {"updatedReplicas": 2, "replicas": 2, "availableReplicas": 1}, State.UNDER_WAY, "1 of 2 pods available"),
    (TWO, {"updatedReplicas": 2, "replicas": 2, "availableReplicas": 2}, State.DONE, "2 of 2 pods available"),
    ({}, {"updatedReplicas": 1, "replicas": 1, "availableReplicas": 1}, State.DONE, "1 of 1 pods available"),
    ({"replicas": 0}, {}, State.DONE, "0 of 0 pods available"),
    (TWO, {**DEADLINE, "availableReplicas": 1}, State.FAILED, "no progress until its deadline: 1 of 2 pods available"),
    ({**TWO, "paused": True}, {}, State.FAILED, "its rollout is paused; kubectl rollout resume continues it"),
])  # fmt: skip
def test_the_state_of_a_deployment_is_that_of_kubectl(
    spec: dict[str, Any], status: dict[str, Any], state: State, text: str
) -> None:
    """An update that ends too early leaves pods of the old version behind."""
    assert rollouts.rollout(DEPLOYMENTS, workload(spec, status)) == rollouts.Rollout(state, text)


def test_a_change_that_its_controller_has_not_read_is_under_way() -> None:
    """The status is that of before, also a deadline that passed then."""
    seen = rollouts.rollout(DEPLOYMENTS, workload(TWO, DEADLINE, generation=4))

    assert seen.state is State.UNDER_WAY


@pytest.mark.parametrize(("strategy", "updated", "available", "state"), [
    ("RollingUpdate", 1, 2, State.UNDER_WAY), ("RollingUpdate", 2, 1, State.UNDER_WAY),
    ("RollingUpdate", 2, 2, State.DONE),
    ("OnDelete", 0, 2, State.DONE),
])  # fmt: skip
def test_the_state_of_a_daemon_set_counts_its_nodes(strategy: str, updated: int, available: int, state: State) -> None:
    """Pods that change only when they are deleted are no rollout."""
    status = {"desiredNumberScheduled": 2, "updatedNumberScheduled": updated, "numberAvailable": available}

    assert rollouts.rollout(DAEMON_SETS, workload({"updateStrategy": {"type": strategy}}, status)).state is state


@pytest.mark.parametrize(("text", "repository", "tag", "digest"), [
    ("ghcr.io/hami-py/hami:0.2.0", "ghcr.io/hami-py/hami", "0.2.0", ""),
    ("localhost:5000/hami:1", "localhost:5000/hami", "1", ""),
    (f"a/hami@sha256:{'0' * 64}", "a/hami", "", f"sha256:{'0' * 64}"),
    (f"a/hami:1@sha256:{'0' * 64}", "a/hami", "1", f"sha256:{'0' * 64}"),
])  # fmt: skip
def test_a_reference_is_read_into_its_parts(text: str, repository: str, tag: str, digest: str) -> None:
    """A port is not a tag."""
    assert images.parse(text) == images.Reference(repository, tag, digest)


@pytest.mark.parametrize(
    "text", ["", "hami", "localhost:5000/hami", "a//b:1", "A B:1", "hami:1 ", "hami@sha256:0", "x:" * 99]
)
def test_a_reference_without_a_version_or_malformed_is_refused(text: str) -> None:
    """The kubelet would find out only after the old pods were stopped."""
    with pytest.raises(failures.CommandFailed, match="OPS_IMAGE_INVALID"):
        images.parse(text)


def part(*containers: dict[str, Any]) -> installed.Part:
    return installed.Part(DEPLOYMENTS, workload({"template": {"spec": {"containers": list(containers)}}}, {}))


def test_a_patch_names_its_containers_and_the_uid() -> None:
    """A Deployment that was made anew meanwhile is not the one that was read."""
    ours = part(
        {"name": "a", "image": "r/hami:1", "args": ["webui"]}, {"name": "b", "image": "r/hami:1", "args": ["x"]}
    )
    (change,) = images.changes([ours], images.parse("r/hami:2"))

    assert images.patch(change, {"a": "r/hami:2"}) == {
        "metadata": {"uid": "u"},
        "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "r/hami:2"}]}}},
    }
    assert images.differs(ours, change, {"a": "r/hami:2"})
    assert not images.differs(ours, change, change.before)
    assert not images.differs(part({"name": "a", "image": "r/hami:2", "args": ["webui"]}), change, {"a": "r/hami:2"})


@pytest.mark.parametrize(("status", "is_usable"), [
    ({"containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]}, True),
    ({"containerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}, False),
    ({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}, None),
    ({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, False),
    ({"containerStatuses": [{"state": {"running": {}}}]}, None),
    ({"phase": "Failed", "reason": "DeadlineExceeded"}, False),
    ({"phase": "Pending"}, None),
])  # fmt: skip
def test_the_verdict_about_an_image_comes_from_its_pod(status: dict[str, Any], is_usable: bool | None) -> None:
    """One failed pull is tried again by the kubelet; repeated ones are the answer."""
    found = image_check.verdict(msgspec.convert({"status": status}, image_check.CheckPod))

    assert (None if found is None else found.is_usable) is is_usable


# Backup


def backup(content: backup_file.Content) -> backup_file.Backup:
    return backup_file.Backup(
        kind=backup_file.KIND, version=1, at="2026-01-01T00:00:00+00:00", program="1", cluster_uid="u", namespace="n",
        content=content,
    )  # fmt: skip


TEXTS = st.text(max_size=20)


@given(data=st.dictionaries(TEXTS, TEXTS, max_size=4), values=st.none() | st.dictionaries(TEXTS, st.integers() | TEXTS))
def test_a_backup_is_read_as_it_was_written(data: dict[str, str], values: dict[str, Any] | None) -> None:
    """Whatever a ConfigMap and values contain."""
    data = {key.encode(errors="replace").decode(): text.encode(errors="replace").decode() for key, text in data.items()}
    values = json.loads(json.dumps(values).encode().decode()) if values is None or values else {}
    saved = backup(backup_file.Content(config_maps=[backup_file.ConfigMap("a", data)], helm_values=values))

    assert backup_file.decode(backup_file.encode(saved)) == saved


@given(position=st.integers(0, 10_000), change=st.integers(1, 255))
def test_one_changed_byte_is_found_or_changes_nothing(position: int, change: int) -> None:
    """Disks and editors change single bytes."""
    saved = backup(backup_file.Content(nodes=[backup_file.NodeState("a", {records.CORDON: "GPU-1"})]))
    data = bytearray(backup_file.encode(saved))
    data[position % len(data)] ^= change
    try:
        found = backup_file.decode(bytes(data))
    except failures.CommandFailed as refused:
        assert re.match(r"OPS_BACKUP_(DAMAGED|TOO_NEW): ", str(refused))
    else:
        assert found == saved


@pytest.mark.parametrize("content", [
    backup_file.Content(nodes=[backup_file.NodeState("../secrets/x")]),
    backup_file.Content(nodes=[backup_file.NodeState("a", {"other.io/x": "1"})]),
    backup_file.Content(quotas=[backup_file.Quota("a/b", "c")]),
    backup_file.Content(config_maps=[backup_file.ConfigMap("")]),
])  # fmt: skip
def test_content_that_no_backup_has_is_refused_although_its_checksum_is_right(content: backup_file.Content) -> None:
    """A checksum is no signature: a file from elsewhere must not write what it likes."""
    with pytest.raises(failures.CommandFailed, match="OPS_BACKUP_DAMAGED"):
        backup_file.decode(backup_file.encode(backup(content)))


def test_an_unknown_field_is_refused_by_name() -> None:
    """It may be one that this version would leave out silently."""
    fields = json.loads(backup_file.encode(backup(backup_file.Content())))
    fields.pop("checksum")
    fields["content"]["surprise"] = 1
    fields["checksum"] = backup_file._checksum(fields)

    with pytest.raises(failures.CommandFailed, match="surprise"):
        backup_file.decode(json.dumps(fields).encode())


# Restore


def plan(saved: backup_file.Content, now: backup_file.Content) -> list[tuple[str, str, list[str]]]:
    steps = restore_plan.steps(saved, now, {"node/a": "7"}, "n")
    return [(step.kind, step.about, list(step.lines)) for step in steps]


def test_equal_contents_need_no_step() -> None:
    """A restore that is repeated writes nothing."""
    content = backup_file.Content(
        config_maps=[backup_file.ConfigMap("c", {"k": "1"})], nodes=[backup_file.NodeState("a", {records.CORDON: "x"})],
        quotas=[backup_file.Quota("n", "q", {"cpu": "1"})], priority_classes=[backup_file.PriorityClass("p", 1)],
        secrets=[backup_file.Secret("s", "Opaque", {"k": "MQ=="})],
    )  # fmt: skip

    assert plan(content, content) == []


def test_what_cannot_or_must_not_be_written_is_skipped_with_the_reason() -> None:
    """A node that is gone, the ConfigMap of another chart version, a class whose value differs."""
    saved = backup_file.Content(
        config_maps=[
            backup_file.ConfigMap("c", {"k": "1"}, "hami-0.1.0"), backup_file.ConfigMap("d", {}, "hami-0.1.0"),
        ],
        nodes=[backup_file.NodeState("gone", {records.CORDON: "x"})],
        priority_classes=[backup_file.PriorityClass("p", 1)],
    )  # fmt: skip
    now = backup_file.Content(
        config_maps=[backup_file.ConfigMap("c", {"k": "2"}, "hami-0.2.0")],
        priority_classes=[backup_file.PriorityClass("p", 2)],
    )

    assert plan(saved, now) == [
        ("skip", "priorityclass/p", ["value 2 cannot be changed to 1"]),
        ("skip", "configmap/c", ["it is now of hami-0.2.0, and was of hami-0.1.0: restore the Helm values"]),
        ("skip", "configmap/d", ["it was made by hami-0.1.0: restore the Helm values"]),
        ("skip", "node/gone", ["the node does not exist"]),
    ]


def test_cordons_are_added_to_those_of_now_and_secrets_are_not_shown() -> None:
    """A GPU that is cordoned now stays so."""
    saved = backup_file.Content(
        nodes=[backup_file.NodeState("a", {records.CORDON: "GPU-1"}, {"gpu": "on"})],
        secrets=[backup_file.Secret("s", "Opaque", {"tls.key": "c2VjcmV0"})],
    )
    now = backup_file.Content(nodes=[backup_file.NodeState("a", {records.CORDON: "GPU-2"}, {"gpu": "off"})])

    assert plan(saved, now) == [
        ("create", "secret/s", ["~ tls.key: not shown"]),
        ("change", "node/a", ["~ hami.io/device-cordon: GPU-2 -> GPU-1,GPU-2", "~ gpu: off -> on"]),
    ]
    (_, step) = restore_plan.steps(saved, now, {"node/a": "7"}, "n")
    assert step.body["metadata"]["resourceVersion"] == "7"


def test_a_long_value_is_shown_by_its_size() -> None:
    """A difference of a dashboard would fill the screen."""
    saved = backup_file.Content(config_maps=[backup_file.ConfigMap("c", {"k": "x\n" * 50, "e": "", "l": "y" * 99})])

    assert plan(saved, backup_file.Content()) == [
        ("create", "configmap/c", ['+ e: ""', "+ k: 100 characters, 51 lines", "+ l: 99 characters"])
    ]


# Health


def test_an_alert_that_only_informs_is_not_bad() -> None:
    """Severity `none` is for panels."""
    assert health_rows.alerts([{"alertname": "GPUFullyAllocated", "severity": "none"}]).state == "ok"
    assert health_rows.alerts([{"alertname": "A", "severity": "warning"}] * 2).detail == "2 fire: A (2)"


def test_a_certificate_warns_a_week_before_its_end() -> None:
    """After it pods with GPUs are not admitted, or not checked."""
    day = 86_400.0
    hook = cluster_checks.Webhook

    assert health_rows.certificate([hook("w", "s", 30 * day)], 0).state == "ok"
    assert health_rows.certificate([hook("w", "s", 6 * day)], 0).state == "warning"
    assert health_rows.certificate([hook("w", "s", -day)], 0).state == "error"
    assert health_rows.certificate(None, 0).state == "unknown"
    assert health_rows.certificate([], 0).state == "unknown"


def test_a_leader_is_judged_by_its_lease() -> None:
    """A Lease without a holder, and none at all, place no pods."""
    assert health_rows.leader(None, "n", 0).state == "unknown"
    assert health_rows.leader([], "n", 0).state == "error"
    lease = msgspec.convert({"metadata": {"name": "hami-scheduler", "namespace": "n"}}, objects.Lease)
    assert health_rows.leader([lease], "n", 0).detail == "the Lease has no holder"
