"""The annotations, byte for byte as HAMi writes and reads them, and everything that is none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import allocations, errors, gpus, identifiers, mig, records
from gpu_sharing.core.allocations import Share

A = identifiers.GpuUuid("GPU-a")
uuids = st.from_regex(r"GPU-[0-9a-f-]{1,20}", fullmatch=True).map(identifiers.GpuUuid)
numbers = st.integers(0, 2**31 - 1)
profile_names = st.sampled_from(["1g.10gb", "2g.20gb", "7g.80gb"])
shares = st.builds(Share, uuids, numbers, st.integers(0, 400), st.none())
divided_shares = st.builds(
    Share,
    uuids,
    numbers,
    st.integers(0, 400),
    st.one_of(st.none(), st.builds(mig.Instance, profile_names, st.integers(0, 15), st.integers(1, 16))),
)
profiles = st.builds(
    mig.Profile,
    profile_names,
    numbers,
    st.integers(0, 100),
    st.lists(st.builds(mig.Slices, st.integers(0, 15), st.integers(1, 16)), max_size=8).map(tuple),
)
gpu_lists = st.lists(
    st.builds(
        gpus.Gpu,
        uuid=uuids,
        index=st.integers(0, 4096),
        memory_mib=numbers,
        cores_percent=st.integers(0, 1000),
        slots=st.integers(0, 100),
        type=st.text(max_size=30),
        numa=st.integers(-1, 8),
        mode=st.sampled_from(["", "hami-core", "mig"]),
        healthy=st.booleans(),
        mig_profiles=st.lists(profiles, max_size=3).map(tuple),
    ),
    max_size=8,
    unique_by=lambda gpu: gpu.uuid,
)


def test_the_mig_instances_that_a_plugin_made_are_read_back() -> None:
    """What cannot be read is nobody's to destroy."""
    made = {records.MadeInstance(identifiers.GpuUuid("GPU-a"), "1g.10gb", start, 1) for start in (0, 3)}

    assert records.decode_made(records.encode_made(made)) == made
    wrong = [
        '["GPU-a"]',
        '[1,"1g.10gb",0,1]',
        '["!","1g.10gb",0,1]',
        '["GPU-a","x",0,1]',
        '["GPU-a","1g.10gb",0,0]',
        "7",
    ]
    assert records.decode_made(f'[["GPU-a","1g.10gb",0,1],{",".join(wrong)}]') == {min(made)}
    for text in ("", "{", "{}", "7", "[" * 100_000, "[" + "1," * 200_000 + "1]"):
        assert records.decode_made(text) == frozenset()


def test_an_inventory_is_written_without_zero_values() -> None:
    """HAMi's readers treat an absent field as zero or false; ours do too."""
    gpu = gpus.Gpu(
        uuid=A,
        index=0,
        memory_mib=16_384,
        cores_percent=100,
        slots=10,
        type="NVIDIA-Tesla T4",
        numa=0,
        mode="hami-core",
        healthy=True,
    )

    text = records.encode_inventory([gpu])

    assert text == (
        '[{"id":"GPU-a","count":10,"devmem":16384,"devcore":100,"type":"NVIDIA-Tesla T4",'
        '"mode":"hami-core","health":true}]'
    )
    assert records.decode_inventory(text) == (gpu,)
    assert not records.decode_inventory('[{"id":"GPU-a"}]')[0].healthy


def test_the_older_form_of_an_inventory_is_read() -> None:
    """Nodes whose plugin has not been upgraded are accounted for."""
    text = "GPU-a,10,16384,100,NVIDIA-Tesla T4,0,true:GPU-b,10,16384,100,NVIDIA-Tesla T4,1,false,7,mig:"

    assert records.decode_inventory(text) == (
        gpus.Gpu(
            uuid=A,
            index=0,
            memory_mib=16_384,
            cores_percent=100,
            slots=10,
            type="NVIDIA-Tesla T4",
            numa=0,
            mode="",
            healthy=True,
        ),
        gpus.Gpu(
            uuid=identifiers.GpuUuid("GPU-b"),
            index=7,
            memory_mib=16_384,
            cores_percent=100,
            slots=10,
            type="NVIDIA-Tesla T4",
            numa=1,
            mode="mig",
            healthy=False,
        ),
    )


@pytest.mark.parametrize(
    "text",
    [
        "[", "[1]", '{"id":"a"}', '[{"id":""}]', '[{"id":"a b"}]', '[{"id":"a","devmem":-1}]', '[{"id":1}]',
        '[{"id":"a","devmem":"1"}]', '[{"id":"a","devmem":1e3}]', '[{"id":"a","count":99999}]', '[{"id":"a","type":1}]',
        '[{"id":"a","health":"yes"}]', '[{"id":"a","numa":-2}]', '[{"id":"a"},{"id":"a"}]', "GPU-a,10",
        "GPU-a,x,1,1,T4,0,true:", "GPU-a,1,1,1,T4,-,true:",
        "[" * 100_000, "x" * 300_000, '[{"id":"a","devmem":true}]', '[{"id":"a","numa":true}]',
        "[" + ",".join(f'{{"id":"g{i}"}}' for i in range(65)) + "]",
    ],
)  # fmt: skip
def test_an_inventory_that_is_none_is_corrupt(text: str) -> None:
    """It is never read as a node without GPUs."""
    with pytest.raises(errors.CorruptRecord):
        records.decode_inventory(text)


@given(gpu_lists)
def test_inventories_round_trip(inventory: list[gpus.Gpu]) -> None:
    """What one process writes another reads, in the order of the GPUs' indices."""
    ordered = tuple(sorted(inventory, key=lambda gpu: (gpu.index, gpu.uuid)))

    assert records.decode_inventory(records.encode_inventory(inventory)) == ordered


def test_a_pod_record_is_written_as_hami_writes_it() -> None:
    """The documented example, and every entry of containers without GPU."""
    assert records.encode_shares(((Share(identifiers.GpuUuid("GPU-x"), 3000, 30),), ())) == "GPU-x,NVIDIA,3000,30:;;"


@given(st.lists(st.lists(shares, max_size=3).map(tuple), min_size=1, max_size=4).map(tuple))
def test_pod_records_round_trip(held: allocations.Shares) -> None:
    """A record is read back as what was decided."""
    asking = [bool(container) for container in held]

    assert records.decode_shares(records.encode_shares(held), asking) == held


@pytest.mark.parametrize(
    ("text", "asking", "expected"),
    [
        ("GPU-a,NVIDIA,1,2:;", [False, True], ((), (Share(A, 1, 2),))),
        ("GPU-a,NVIDIA,1,2:;GPU-a,NVIDIA,3,4:;", [True, False, True], ((Share(A, 1, 2),), (), (Share(A, 3, 4),))),
        ("GPU-a[0-1],NVIDIA,1,2:;", [True], ((Share(A, 1, 2),),)),
        ("GPU-a,NVIDIA,1,2:", [True], ((Share(A, 1, 2),),)),
        (";;", [False, False], ((), ())),
        (" GPU-a , NVIDIA , 1 , 2 : ;", [True], ((Share(A, 1, 2),),)),
    ],
)
def test_records_of_hamis_own_scheduler_are_read(text: str, asking: list[bool], expected: allocations.Shares) -> None:
    """It leaves out some empty entries, and marks MIG instances in brackets."""
    assert records.decode_shares(text, asking) == expected


@pytest.mark.parametrize(
    ("text", "asking"),
    [
        ("GPU-a,NVIDIA,1,2:;", [True, True]), ("GPU-a,NVIDIA,1:;", [True]), ("GPU-a,NVIDIA,-1,2:;", [True]),
        (",NVIDIA,1,2:;", [True]), ("GPU-a,NVIDIA,99999999999,2:;", [True]), ("GPU-a,NVIDIA,9999999999,2:;", [True]),
        ("GPU-a,NVIDIA,1,200000:;", [True]), ("x" * 300_000, [True]), ("GPU-a,NVIDIA,１,2:;", [True]),
    ],
)  # fmt: skip
def test_a_pod_record_that_is_none_is_corrupt(text: str, asking: list[bool]) -> None:
    """It is never read as a pod that holds nothing."""
    with pytest.raises(errors.CorruptRecord):
        records.decode_shares(text, asking)


def test_the_legible_part_of_a_corrupt_record_is_counted() -> None:
    """Then only the GPUs it does not name have to be kept out of use."""
    assert records.legible_shares("GPU-a,NVIDIA,1,2:garbage;GPU-b,NVIDIA") == (Share(A, 1, 2),)


@given(st.text(max_size=200), st.lists(st.booleans(), max_size=4))
def test_any_text_is_a_record_or_corrupt(text: str, asking: list[bool]) -> None:
    """No annotation crashes a process."""
    for decode in (lambda: records.decode_shares(text, asking), lambda: records.decode_inventory(text)):
        try:
            decode()
        except errors.CorruptRecord as corrupt:
            assert str(corrupt)
    records.legible_shares(text)
    records.decode_cordon(text)


def test_cordons_and_agents_are_read() -> None:
    """An administrator's list, and whose plugin serves the node."""
    assert records.decode_cordon(" GPU-a,GPU-b,, ") == {"GPU-a", "GPU-b"}
    assert [records.is_our_agent(text) for text in ("hami-py/0.1.0", "hami-py/", "hami-py", "other/1", None)] == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_a_binding_carries_every_annotation_that_readers_look_for() -> None:
    """HAMi's plugin and dashboards find theirs."""
    node = identifiers.NodeName("node-1")

    assert records.pod_annotations(((Share(A, 1, 2),),), node, 1_700_000_000, identifiers.DecisionId("d")) == {
        "hami.io/vgpu-node": "node-1",
        "hami.io/vgpu-time": "1700000000",
        "hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,1,2:;",
        "hami.io/vgpu-devices-to-allocate": "GPU-a,NVIDIA,1,2:;",
        "hami.io/bind-phase": "allocating",
        "hami.io/bind-time": "1700000000",
        "hami.io/decision-id": "d",
    }
    assert records.pod_labels(node) == {"hami.io/vgpu-node": "node-1"}
    assert records.pod_labels(identifiers.NodeName("n" * 64)) == {}


def test_metadata_that_would_break_the_pod_is_not_sent() -> None:
    """The API server takes it with 201 and refuses every later status of the pod."""
    assert records.unsafe_metadata({"a": "fine"}, 0) == ""
    assert "not printable" in records.unsafe_metadata({"a": "bell\x07"}, 0)
    assert "bytes" in records.unsafe_metadata({"a": "fine"}, 262_144)


def test_mig_instances_of_a_container_in_the_order_of_its_gpus() -> None:
    """Those that exist by their UUID, those to be made by profile and place."""
    text = (
        '[{"containerIndex":1,"deviceIndex":1,"gpuUUID":"GPU-a","migUUID":"MIG-b"},'
        '{"containerIndex":1,"gpuUUID":"GPU-a","profile":"3g.40gb","placement":{"start":4,"size":4}},{"migUUID":"MIG-c"}]'
    )

    assert records.mig_shares(text, 1) == (
        records.MigShare(A, "", "3g.40gb", 4, 4),
        records.MigShare(A, "MIG-b", "", 0, 0),
    )
    assert [share.mig_uuid for share in records.mig_shares(text, 0)] == ["MIG-c"]
    assert records.mig_shares("", 0) == ()


@pytest.mark.parametrize(
    "text",
    ["{", "7", "[1]", '[{"migUUID":"m","deviceIndex":"x"}]', '[{"placement":{"start":"x"}}]', '[{"placement":7}]'],
)
def test_mig_instances_that_do_not_decode_are_none(text: str) -> None:
    assert records.mig_shares(text, 0) == ()


@given(st.lists(st.lists(divided_shares, max_size=3).map(tuple), min_size=1, max_size=4).map(tuple))
def test_records_of_instances_round_trip(held: allocations.Shares) -> None:
    """The two annotations together are what was decided."""
    asking = [bool(container) for container in held]
    shares_only = records.decode_shares(records.encode_shares(held), asking)

    assert records.decode_instances(records.encode_instances(held), shares_only) == held


def test_a_record_of_an_instance_is_written_as_hami_writes_it() -> None:
    """Container and device by position, the place as NVML gives it; a pod without instances has no such record."""
    held = ((), (Share(A, 1, 2), Share(A, 9728, 14, mig.Instance("1g.10gb", 6, 1))))

    assert records.encode_instances(held) == (
        '[{"containerIndex":1,"deviceIndex":1,"gpuUUID":"GPU-a","profile":"1g.10gb","placement":{"start":6,"size":1}}]'
    )
    assert records.encode_instances(((Share(A, 1, 2),),)) == ""


@pytest.mark.parametrize(
    "text",
    [
        "{", "7", "[7]", "[{}]", '[{"gpuUUID":"GPU-b","profile":"1g.10gb","placement":{"size":1}}]',
        '[{"gpuUUID":"GPU-a","profile":"1g.10gb","placement":{"size":0}}]',
        '[{"gpuUUID":"GPU-a","profile":"1g.10gb","placement":{"start":16,"size":1}}]',
        '[{"gpuUUID":"GPU-a","profile":"1g.10gb","placement":{"size":1},"containerIndex":1}]',
        '[{"gpuUUID":"GPU-a","profile":"1g.10gb","placement":{"size":1},"deviceIndex":-1}]', " " * 300_000 + "[]",
    ],
)  # fmt: skip
def test_a_record_of_instances_that_does_not_match_is_corrupt(text: str) -> None:
    """Where the slices are is not guessed."""
    with pytest.raises(errors.CorruptRecord):
        records.decode_instances(text, ((Share(A, 1, 2),),))


@pytest.mark.parametrize(
    "profiles",
    [
        "7", '["1g.10gb"]', '[{"name":"huge","memoryMB":1,"placements":[]}]',
        '[{"name":"1g.10gb","memoryMB":-1,"placements":[]}]',
        '[{"name":"1g.10gb","memoryMB":1,"placements":[{"start":99,"size":1}]}]',
        '[{"name":"1g.10gb","memoryMB":1}]', '[{"name":"1g.10gb","memoryMB":true,"placements":[]}]',
        "[" + ",".join(['{"name":"1g.10gb","memoryMB":1,"placements":[]}'] * 33) + "]",
    ],
)  # fmt: skip
def test_profiles_that_cannot_be_are_corrupt(profiles: str) -> None:
    """The node's record is not read in part."""
    with pytest.raises(errors.CorruptRecord):
        records.decode_inventory(f'[{{"id":"GPU-a","mode":"mig","migProfiles":{profiles}}}]')


def test_profiles_with_extra_engines_are_left_out() -> None:
    """A GPU has just one of them, and nobody can request it."""
    text = (
        '[{"id":"GPU-a","migProfiles":[{"name":"1g.10gb+me","memoryMB":9728,"core":14,"placements":[{"size":1}]},'
        '{"name":"1g.10gb","memoryMB":9728,"core":14,"placements":[{"size":1},{"start":1,"size":1}]}]}]'
    )

    (gpu,) = records.decode_inventory(text)

    assert gpu.mig_profiles == (mig.Profile("1g.10gb", 9728, 14, (mig.Slices(0, 1), mig.Slices(1, 1))),)


def test_problems_of_a_node_come_back_as_they_were_written_and_forged_ones_are_bounded() -> None:
    """They are only reported, so that a forged one must not stop anything, nor fill a page."""
    written = {"PLUGIN_NO_DRIVER": "no library", "PLUGIN_DELIVERY": "x" * 1000}
    assert records.decode_problems(records.encode_problems(written)) == {
        "PLUGIN_DELIVERY": "x" * 300,
        "PLUGIN_NO_DRIVER": "no library",
    }
    many = {f"CODE_{number:03}": "text" for number in range(100)}
    assert len(records.decode_problems(json.dumps(many))) == 32
    assert len(records.decode_problems(records.encode_problems(many))) == 32
    assert records.decode_problems('{"<b>": "text", "CODE_A": 7, "CODE_B": ""}') == {}
    for bad in ("", "[]", "7", "{", "[" * 100_000, "x" * 300_000):
        assert records.decode_problems(bad) == {}


def test_unhealthy_reasons_are_read_as_far_as_they_can_be() -> None:
    """They are only told, so that a forged one must not stop anything."""
    good = '{"GPU-a": {"cause": "XID 79: the GPU has fallen off the bus"}, "GPU-b": {"cause": 7}, "GPU-c": []}'
    assert records.decode_unhealthy_reasons(good) == {"GPU-a": "XID 79: the GPU has fallen off the bus"}
    assert records.decode_unhealthy_reasons('{"GPU-a": {"cause": "' + "x" * 1000 + '"}}') == {"GPU-a": "x" * 300}
    for bad in ("", "[]", "7", "{", "[" * 100_000, "x" * 300_000, '{"GPU-a": {"cause": ""}}'):
        assert records.decode_unhealthy_reasons(bad) == {}
