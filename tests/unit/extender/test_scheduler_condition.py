"""What kube-scheduler says of a pod, read from its condition."""

import pytest

from gpu_sharing.core import error_codes
from scheduler_extender.cluster import scheduler_condition as condition

MIXED = (
    "0/4 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector, "
    "3 GPU memory insufficient. no new claims to deallocate, preemption: 0/4 nodes are available: "
    "4 Preemption is not helpful for scheduling."
)


def test_each_rule_is_read_with_its_number_of_nodes() -> None:
    """An explanation says which rule is in the way on how many nodes; the part on preemption is none."""
    assert [str(one) for one in condition.rules(MIXED)] == [
        "1 Insufficient cpu",
        "2 node(s) didn't match Pod's node affinity/selector",
        "3 GPU memory insufficient",
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1 node(s) didn't match Pod's node affinity/selector", error_codes.NODE_SELECTOR),
        ("1 node(s) had untolerated taint(s)", error_codes.NODE_TAINT),
        ("1 node(s) had untolerated taint {team: a, b}", error_codes.NODE_TAINT),
        ("1 node(s) were unschedulable", error_codes.NODE_CORDONED),
        ("1 Insufficient cpu", error_codes.NODE_RESOURCES),
        ("1 Too many pods", error_codes.NODE_RESOURCES),
        ('persistentvolumeclaim "data" not found', error_codes.VOLUME),
        ("pod has unbound immediate PersistentVolumeClaims", error_codes.VOLUME),
        ("1 node(s) had no available volume zone", error_codes.VOLUME),
        ("1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)", error_codes.VOLUME),
        ("1 node(s) didn't match pod anti-affinity rules", error_codes.NOT_OFFERED),
    ],
)
def test_a_rule_of_kube_scheduler_has_a_code(text: str, code: error_codes.Code) -> None:
    """Pages and doctor group by codes, and `hamictl explain-code` says what to do."""
    (rule,) = condition.rules(f"0/1 nodes are available: {text}. preemption: 0/1 nodes are available.")

    assert rule.code == code


def test_the_end_that_kube_scheduler_adds_after_an_absent_claim_is_left_out() -> None:
    """It writes "not found" once more there, by preemption."""
    message = '0/7 nodes are available: persistentvolumeclaim "a.b" not found. not found'

    assert condition.rules(message) == (condition.Rule('persistentvolumeclaim "a.b" not found'),)


def test_a_message_of_another_form_is_kept_as_one_rule() -> None:
    """An error of the scheduler itself, such as an extender that does not answer, is quoted."""
    refused = 'Post "http://127.0.0.1:9444/filter": dial tcp 127.0.0.1:9444: connect: connection refused'

    assert condition.rules(refused) == (condition.Rule(refused),)
    assert condition.rules("") == ()
