"""The variables by which a program reads its slice."""

import pytest

from device_plugin.allocation import container_edits, slice_variables
from device_plugin.delivery import edits
from device_plugin.isolation.assignment import Assignment
from device_plugin.kubelet.refusals import StartRefused
from gpu_sharing.core import allocations, identifiers, records, variables


def assignment(*, by_cdi: bool = True, environment: dict[str, str] | None = None) -> Assignment:
    shares = tuple(
        allocations.Share(identifiers.GpuUuid(uuid), memory_mib, cores)
        for uuid, memory_mib, cores in (("GPU-b", 4000, 30), ("GPU-a", 2000, 0))
    )
    return Assignment(
        pod_uid=identifiers.PodUid("u"),
        pod_key="team/train",
        container="main",
        shares=shares,
        by_cdi=by_cdi,
        environment=environment or {},
    )


def described(one: Assignment, decision: str = "4e89f4b82e97303b") -> dict[str, str]:
    found = slice_variables.edits_for(
        one, isolation="hami-core", node="node-01", annotations={records.DECISION: decision}
    )
    return dict(found.environment)


def test_a_container_reads_what_it_was_given_and_who_it_is() -> None:
    """Its owner has no API server to ask from inside."""
    assert described(assignment()) == {
        "HAMI_SLICE_MEMORY_MIB": "4000,2000",
        "HAMI_SLICE_CORES_PERCENT": "30,0",
        "HAMI_SLICE_ISOLATION": "hami-core",
        "HAMI_SLICE_NODE": "node-01",
        "HAMI_SLICE_NAMESPACE": "team",
        "HAMI_SLICE_POD": "train",
        "HAMI_SLICE_CONTAINER": "main",
        "HAMI_SLICE_DECISION_ID": "4e89f4b82e97303b",
    }


def test_without_cdi_no_name_is_written_that_could_be_another_pods() -> None:
    """The kubelet may give the answer for one pod to another one with an equal record."""
    assert not variables.IDENTIFYING & described(assignment(by_cdi=False)).keys()


@pytest.mark.parametrize("text", ["", "a\nEVIL=1", "x" * 65, "a=b c"])
def test_text_that_is_no_decision_id_is_not_copied_into_a_container(text: str) -> None:
    """An annotation is text of anybody until the admission policy runs."""
    assert "HAMI_SLICE_DECISION_ID" not in described(assignment(), text)


def test_an_answer_of_an_older_plugin_starts_without_the_description() -> None:
    """A container that restarts after an upgrade keeps the answer of before it, which is right in all that limits."""
    container = assignment(by_cdi=False)
    limits = {"HAMI_ALLOCATION": "x-1", "CUDA_DEVICE_MEMORY_LIMIT_0": "4000m"}
    wanted = edits.Edits({**limits, **described(container)})

    container_edits.verify_answer(container, limits, wanted)

    with pytest.raises(StartRefused, match="HAMI_SLICE_NODE"):
        container_edits.verify_answer(container, {**limits, "HAMI_SLICE_NODE": "other"}, wanted)
    with pytest.raises(StartRefused, match="CUDA_DEVICE_MEMORY_LIMIT_0"):
        container_edits.verify_answer(container, {"HAMI_ALLOCATION": "x-1"}, wanted)


def test_a_pod_cannot_describe_its_slice_itself() -> None:
    """Else a program would trust a limit that was never allocated."""
    own = {"HAMI_SLICE_MEMORY_MIB": "80000"}
    container = assignment(by_cdi=False, environment=own)

    with pytest.raises(StartRefused, match="HAMI_SLICE_MEMORY_MIB"):
        container_edits.verify_answer(container, {"HAMI_ALLOCATION": "x"}, edits.Edits({"HAMI_ALLOCATION": "x"}))
    assert variables.given(variables.OF_SLICE) == list(variables.OF_SLICE)
