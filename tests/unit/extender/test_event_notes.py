"""The sentences of events, in the documented form."""

import msgspec

from gpu_sharing.adapters import events, objects
from gpu_sharing.core import allocations, error_codes, identifiers, placement, policies, rejections, requests
from gpu_sharing.core.rejections import Reason
from lab import gpus
from scheduler_extender.cluster import pending
from scheduler_extender.report import event_notes
from tests.support.extender_world import A100, World
from tests.unit import builders

NODE = identifiers.NodeName("node-01")


def share(uuid: str, memory_mib: int, cores: int = 0) -> allocations.Share:
    return allocations.Share(identifiers.GpuUuid(uuid), memory_mib, cores)


def test_scheduled_says_where_how_much_and_how_good() -> None:
    """The three lines that `kubectl describe pod` has always shown, then both policies and the GPUs."""
    placed = placement.Placement(((share("GPU-a", 4000, 30),),))

    request = builders.pod_request(builders.share_of(4000, 30))
    note = event_notes.scheduled(
        NODE, 3, request, placed, score=0.85, node_policy=policies.FULLEST_NODE, gpu_policy=policies.SPREAD
    )

    assert note == (
        "Successfully assigned pod to node-01\n"
        "    GPU: 1/3, Memory: 4000MB\n"
        "    Score: 85, Policy: binpack\n"
        "    node policy binpack, GPU policy spread\n"
        "    GPU-a: 4000MB, cores 30%"
    )


def test_scheduled_says_what_the_placement_leaves_where_the_policy_looks_at_that() -> None:
    """One word of why this GPU: what it takes still, or that it is full for pods like this one."""
    placed = placement.Placement(((share("GPU-a", 4000, 30),),))
    request, policy = builders.pod_request(builders.share_of(4000, 30)), policies.LEAST_FRAGMENTING_NODE
    notes = [
        event_notes.scheduled(
            NODE, 3, request, placed, score=0.5, node_policy=policy, gpu_policy=policies.BINPACK, room=room
        )
        for room in (2, 0)
    ]
    assert notes[0].endswith("\n    leaves room there for 2 more of 4000MB")
    assert notes[1].endswith("\n    fills the GPU for pods of its size")


def test_scheduled_tells_containers_apart_and_passes_warnings_on() -> None:
    """Two containers on one GPU, and a percentage that was ignored."""
    placed = placement.Placement(((share("GPU-a", 1000),), (share("GPU-a", 3000),)))
    request = builders.pod_request(builders.share_of(1000), builders.share_of(3000), warnings=("x is ignored",))

    note = event_notes.scheduled(
        NODE, 2, request, placed, score=0.5, node_policy=policies.EMPTIEST_NODE, gpu_policy=policies.BINPACK
    )

    assert "Memory: 1000-3000MB" in note
    assert "GPU-a: 1000MB, cores not limited + 3000MB, cores not limited" in note
    assert note.endswith("note: x is ignored")


def test_a_rejection_counts_by_reason_and_lists_every_node() -> None:
    """First the summary on one line, because `kubectl get events` cuts there."""
    memory, other_type = (
        rejections.Rejection(Reason.MEMORY, "8000MB", "4000MB"),
        rejections.Rejection(Reason.TYPE, "A100", "T4"),
    )
    rejection = pending.PodRejection(
        2,
        Reason.MEMORY,
        ((Reason.TYPE, 1), (Reason.MEMORY, 1)),
        (
            pending.RejectedNodes(1, NODE, memory),
            pending.RejectedNodes(1, identifiers.NodeName("node-02"), other_type),
        ),
    )

    assert event_notes.rejected(rejection) == (
        "0/2 nodes available: 1 device type mismatch, 1 GPU memory insufficient\n"
        "    node-01: GPU memory insufficient (requested 8000MB, available 4000MB)\n"
        "    node-02: device type mismatch (requested A100, has T4)"
    )
    assert event_notes.rejected(pending.PodRejection(0, Reason.NODE_NOT_REGISTERED)) == (
        "0/0 nodes available: there are no nodes"
    )


def test_many_nodes_are_one_line_a_reason_with_the_nearest_of_them() -> None:
    """A thousand lines are not read."""
    nearest = rejections.Rejection(Reason.MEMORY, "8000MB", "7900MB")
    rejection = pending.PodRejection(
        900, Reason.MEMORY, ((Reason.MEMORY, 900),), (pending.RejectedNodes(900, NODE, nearest),)
    )

    assert event_notes.rejected(rejection).splitlines()[1] == f"    900 nodes, nearest node-01: {nearest}"


def test_an_invalid_request_says_what_to_write() -> None:
    """With its code, to look up."""
    invalid = requests.InvalidRequest(error_codes.AMBIGUOUS_MEMORY, "write 4Gi")

    assert event_notes.rejected(pending.PodRejection(3, invalid=invalid)) == (
        "0/3 nodes available: 3 invalid GPU request\n    write 4Gi (SCHED_AMBIGUOUS_MEMORY)"
    )


def test_a_note_is_cut_at_the_end_of_a_line() -> None:
    """The API takes 1024 bytes, and half a number misleads."""
    note = "summary\n" + "\n".join(f"    node-{index}: too small" for index in range(100))

    cut = events.cut(note)

    assert len(cut.encode()) <= 1024
    assert cut.splitlines()[-1] == "    …"
    assert all(line in note for line in cut.splitlines()[:-1])
    assert events.cut("short") == "short"
    assert len(events.cut("ä" * 2000).encode()) <= 1024


def test_a_cordon_of_a_gpu_that_is_nowhere_is_an_event_on_its_node_once() -> None:
    """Who wrote it believes that the GPU gets no pods; the node is where that person looks."""
    node = gpus.gpu_node("a", A100, 1, annotations={"hami.io/device-cordon": "GPU-nowhere"})
    world = World(node)
    world.mirror.see_node(msgspec.convert(node, objects.Node))

    (event,) = world.recorder.told
    assert (event.regarding.kind, event.regarding.name, event.reason) == ("Node", "a", "UnknownGPUCordon")
    assert event.note.splitlines()[0] == (
        "SCHED_UNKNOWN_CORDON: hami.io/device-cordon names GPU-nowhere, which no GPU of the node has"
    )

    node["metadata"]["annotations"]["hami.io/device-cordon"] = gpus.gpu_uuid("a", 0)
    world.mirror.see_node(msgspec.convert(node, objects.Node))
    assert len(world.recorder.told) == 1


def test_of_many_unknown_uuids_a_few_are_named() -> None:
    """An event is short, and a tenant of the annotation may write much."""
    note = event_notes.unknown_cordon([f"GPU-{number}" for number in range(9)], [])

    assert note == "hami.io/device-cordon names GPU-0, GPU-1, GPU-2 and 6 more, which no GPU of the node has"
