"""What is remembered of a shape is what asking anew would say."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.core import gpus, identifiers, policies, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import facts, fit, fit_cache
from scheduler_extender.fleet.ledger import Ledger
from tests.support import searching
from tests.unit import builders

NAMES = [identifiers.NodeName(name) for name in "abcd"]


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, object]:
    kind = draw(st.sampled_from(["node", "gone", "pod", "away", "nominate", "drop"]))
    uid, node = draw(st.sampled_from("12345")), draw(st.sampled_from(NAMES))
    uuid = identifiers.GpuUuid(f"GPU-{node}-{draw(st.integers(0, 2))}")
    allocation = draw(builders.allocated)
    if kind == "node":
        inventory = tuple(draw(builders.gpu_states(node, index)).gpu for index in range(draw(st.integers(0, 3))))
        return kind, facts.Node(node, inventory=inventory)
    if kind == "pod":
        held = {uuid: allocation}
        return kind, facts.BoundPod(identifiers.PodUid(uid), identifiers.PodKey(f"d/{uid}"), node, allocated=held)
    if kind == "nominate":
        return kind, facts.Reservation(identifiers.PodUid(uid), node, {uuid: allocation})
    return kind, node if kind == "gone" else uid


def apply(ledger: Ledger, kind: str, value: object) -> None:
    {
        "node": ledger.set_node,
        "gone": ledger.remove_node,
        "pod": ledger.set_bound,
        "away": ledger.remove_pod,
        "nominate": ledger.nominate,
        "drop": ledger.drop_nomination,
    }[kind](value)  # type: ignore[operator]


@settings(max_examples=searching.examples(100))
@given(st.lists(changes(), max_size=12), builders.pod_requests(), builders.gpu_policies)
def test_a_remembered_shape_answers_as_a_fresh_look_does(
    history: list[tuple[str, object]], request: requests.PodRequest, policy: policies.GpuPolicy
) -> None:
    """Looking only at what changed never misses a change."""
    ledger = Ledger()
    for name in NAMES[:2]:
        ledger.set_node(facts.Node(name, inventory=(builders.gpu(name, 0), builders.gpu(name, 1))))
    remembered = fit_cache.FitCache(ledger, fit_cache.PlacementCache())
    for kind, value in history:
        apply(ledger, kind, value)

        answer = remembered.fit(request, policy)

        arrays = ledger.settle()
        fresh = fit.fit_all(arrays, request, policy)
        live = {name: column for column, name in enumerate(arrays.names) if name}
        assert {n: Reason(answer.fitting.reasons[c]) for n, c in live.items()} == {
            n: Reason(fresh.reasons[c]) for n, c in live.items()
        }
        assert {n for n, c in live.items() if answer.fitting.fits[c]} == live.keys() - answer.refused.keys()
        for column in live.values():
            if fresh.fits[column]:
                assert memory(answer.fitting, column) == memory(fresh, column)


def memory(fitting: fit.Fitting, column: int) -> int:
    return fitting.memory_mib if isinstance(fitting.memory_mib, int) else int(fitting.memory_mib[column])


def test_a_released_column_is_refused_until_its_new_node_is_known() -> None:
    """A node that takes the place of a deleted one is judged by its own GPUs."""
    ledger = Ledger()
    ledger.set_node(facts.Node(NAMES[0], inventory=(builders.gpu("a", 0),)))
    remembered = fit_cache.FitCache(ledger, fit_cache.PlacementCache())
    request = builders.pod_request(builders.share_of(20_000))
    assert remembered.fit(request, policies.BINPACK).refused == {"a": Reason.MEMORY}

    ledger.remove_node(NAMES[0])
    ledger.settle()
    big = gpus.Gpu(
        uuid=identifiers.GpuUuid("GPU-b-0"), index=0, memory_mib=80_000, cores_percent=100, slots=10, type="A100"
    )
    ledger.set_node(facts.Node(NAMES[1], inventory=(big,)))
    answer = remembered.fit(request, policies.BINPACK)

    assert [name for name in ledger.arrays.names if name not in answer.refused] == ["b"]
