"""What `hamictl explain` prints of an explanation: the cause first, then the nearest nodes, then the others counted."""

from gpu_sharing.adapters import read_api_types as api
from hamictl import views

CODE, TAINT, NO_GPUS = "SCHED_INSUFFICIENT_GPU_MEMORY", "SCHED_NODE_TAINT", "SCHED_NODE_NOT_REGISTERED"


def node(name: str, code: str, **more: object) -> api.NodeExplanation:
    facts: dict[str, object] = {
        "node": name, "fits": not code, "code": code, "message": "full", "curable": False, "advice": "",
        "waits_for": [], "evictable": [],
    }  # fmt: skip
    return api.NodeExplanation(**{**facts, **more})  # type: ignore[arg-type]


def explanation(*nodes: api.NodeExplanation, groups: list[api.NodeGroup] | None = None) -> api.Explanation:
    causes = [
        api.Cause(CODE, "GPU memory insufficient on n-0", "Request less."),
        api.Cause(TAINT, "the pod does not tolerate the taint team=ml", "Add a toleration."),
    ]
    return api.Explanation("ai/p", "pending", None, nodes=list(nodes), causes=causes, groups=groups or [])


def test_four_hundred_nodes_are_five_lines_and_a_count_of_the_others() -> None:
    """In the order of names the one node that matters would stand somewhere among them."""
    near = [node(f"n-{number}", CODE, advice="request less", waits_for=["ai/a"]) for number in range(7)]
    far = [node(f"t-{number}", TAINT) for number in range(395)]
    groups = [
        api.NodeGroup(CODE, "GPU memory insufficient", 7, "n-0"),
        api.NodeGroup(TAINT, "taint not tolerated", 395, "t-0"),
        api.NodeGroup(NO_GPUS, "no GPUs registered", 1, "cpu-0"),
    ]
    explained = explanation(*near, *far, node("cpu-0", NO_GPUS), groups=groups)

    lines = views.explanation(explained).splitlines()

    assert lines[:4] == [
        f"ai/p is pending: GPU memory insufficient on n-0 [{CODE}]",
        "  what to do: Request less.",
        f"  also: the pod does not tolerate the taint team=ml [{TAINT}]",
        "the nearest of 403 nodes:",
    ]
    assert lines[4:7] == [
        f"  n-0: full [{CODE}]", "      request less", "      it fits once these have ended: ai/a",
    ]  # fmt: skip
    assert lines[-4:] == [
        "all nodes by reason (hamictl explain --all lists each):",
        f"  7 nodes, the nearest n-0: GPU memory insufficient [{CODE}]",
        f"  395 nodes, the nearest t-0: taint not tolerated [{TAINT}]",
        f"  cpu-0: no GPUs registered [{NO_GPUS}]",
    ]
    assert len(lines) == 4 + 5 * 3 + 4
    assert len(views.explanation(explained, every_node=True).splitlines()) == 4 + 7 * 3 + 396


def test_nodes_without_gpus_are_counted_and_not_listed_among_many() -> None:
    """They are many in most clusters, and no pod with a GPU request goes there."""
    nodes = [node("g", CODE), *(node(f"cpu-{number}", NO_GPUS) for number in range(9))]
    explained = explanation(*nodes, groups=[api.NodeGroup(NO_GPUS, "no GPUs registered", 9, "cpu-0")])

    text = views.explanation(explained)

    assert "  g: full" in text
    assert "cpu-1" not in text
    assert "9 nodes, the nearest cpu-0: no GPUs registered" in text


def test_a_request_that_cannot_be_read_is_said_once() -> None:
    """No node changes it."""
    cause = api.Cause("SCHED_INVALID_QUANTITY", "container main: nvidia.com/gpu: 'x' is no number", "Write a number.")
    explained = api.Explanation("ai/p", "pending", None, causes=[cause])

    assert views.explanation(explained).splitlines() == [
        "ai/p is pending: container main: nvidia.com/gpu: 'x' is no number [SCHED_INVALID_QUANTITY]",
        "  what to do: Write a number.",
    ]


def test_an_older_extender_that_sends_no_causes_is_understood() -> None:
    """Hamictl may be newer than the cluster."""
    explained = api.Explanation(
        "ai/p", "pending", None, summary="0/1 nodes available: 1 full\n  a: full", remedy="Wait."
    )

    assert views.explanation(explained) == "ai/p is pending: 0/1 nodes available: 1 full\n  what to do: Wait."
