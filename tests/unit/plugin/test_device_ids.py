import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.kubelet import device_ids
from gpu_sharing.core import errors, gpus, identifiers


def gpu(name: str, slots: int) -> gpus.Gpu:
    return gpus.Gpu(uuid=identifiers.GpuUuid(name), index=0, memory_mib=1000, cores_percent=100, slots=slots, type="T")


def healthy(listed: tuple[device_ids.DeviceId, ...]) -> set[str]:
    return {one.device_id for one in listed if one.healthy}


def test_a_healthy_node_lists_one_id_a_slot_the_same_at_every_start() -> None:
    listed = device_ids.listing([gpu("a", 2), gpu("b", 1)], {}, [])

    assert listed == tuple(device_ids.DeviceId(f"slot-000{number}", healthy=True) for number in range(3))
    assert all(len(one.device_id) <= 63 for one in listed)


def test_the_tokens_of_a_sick_gpu_are_unhealthy_and_as_many_free_ones() -> None:
    a, b = identifiers.GpuUuid("a"), identifiers.GpuUuid("b")
    listed = device_ids.listing([gpu("a", 10), gpu("b", 10)], {"slot-0003": a, "slot-0004": b}, [a])

    assert "slot-0003" not in healthy(listed)
    assert "slot-0004" in healthy(listed)
    assert len(healthy(listed)) == 20 - 1 - (10 - 2)


def test_where_most_slots_of_a_sick_gpu_are_held_spare_ids_make_up() -> None:
    a = identifiers.GpuUuid("a")
    held = {f"slot-000{number}": a for number in range(3)}
    listed = device_ids.listing([gpu("a", 4), gpu("b", 4)], held, [a])

    assert {one.device_id for one in listed if one.device_id.startswith("spare-")} == {"spare-0000", "spare-0001"}
    assert len(healthy(listed)) - len(held) == 4


@pytest.mark.parametrize("slots", [60_001, 10_000_000])
def test_more_ids_than_a_kubelet_takes_are_refused_with_the_setting_to_change(slots: int) -> None:
    with pytest.raises(errors.SettingsError, match="--device-split-count"):
        device_ids.ids_for(slots)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.data())
def test_allocatable_minus_requests_is_what_is_free_on_healthy_gpus(slots: list[int], data: st.DataObject) -> None:
    """Whichever GPUs are sick or no longer offered, and whoever holds what: kube-scheduler counts right."""
    gpus_before = [gpu(f"g{index}", count) for index, count in enumerate(slots)]
    state = {one.uuid: data.draw(st.sampled_from(["fine", "sick", "hidden"])) for one in gpus_before}
    spares = [f"spare-000{number}" for number in range(3)]
    names = data.draw(st.permutations([*device_ids.ids_for(sum(slots)), *spares]))
    held: dict[str, identifiers.GpuUuid | None] = {}
    free = 0
    for one in gpus_before:
        used = data.draw(st.integers(0, one.slots))
        free += one.slots - used if state[one.uuid] == "fine" else 0
        for _ in range(used):
            held[names[len(held)]] = one.uuid
    sick = [uuid for uuid, word in state.items() if word == "sick"]

    listed = device_ids.listing([one for one in gpus_before if state[one.uuid] != "hidden"], held, sick)

    assert len(healthy(listed)) - len(held) == free
    assert len({one.device_id for one in listed}) == len(listed)
    assert {token for token, uuid in held.items() if uuid in sick}.isdisjoint(healthy(listed))
    assert {token for token, uuid in held.items() if uuid not in sick} <= healthy(listed)
