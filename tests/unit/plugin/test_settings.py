import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin import settings
from device_plugin.driver import gpu_source
from device_plugin.isolation import table
from device_plugin.isolation.backend import BackendSettings
from device_plugin.node import inventory
from gpu_sharing.core import errors, gpus, health, identifiers, mig, records
from tests.unit.plugin.test_isolation import INSTANCE, A, B, device

BACKENDS = table.build(BackendSettings())


def test_defaults_are_those_of_the_documentation() -> None:
    found = settings.parse([], {"NODE_NAME": "n"})

    assert (found.node_name, found.kubelet_dir, found.cdi_dir, found.sharing.split_count) == (
        "n", pathlib.Path("/var/lib/kubelet"), pathlib.Path("/var/run/cdi"), 10,
    )  # fmt: skip


def test_flags_environment_and_hamis_spellings() -> None:
    found = settings.parse(
        ["--node-name", "n", "--device_split_count", "4", "--mps-multi-user"],
        {"HAMI_DEVICE_MEMORY_SCALING": "1.5", "HOOK_PATH": "/h", "DP_DISABLE_HEALTHCHECKS": "79,what"},
    )

    assert found.sharing.split_count == 4
    assert found.sharing.memory_scaling == 1.5
    assert found.hook_path == pathlib.Path("/h")
    assert found.mps_multi_user
    assert found.health_rules.overrides.disabled == {79}
    assert found.unknown_xids == ("what",)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [([], "--node-name"), (["--node-name", "n", "--device-split-count", "0"], "--device-split-count"),
     (["--node-name", "n", "--isolation", "magic"], "--isolation"),
     (["--node-name", "n", "--identity", "guess"], "--identity")],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(arguments: list[str], named: str) -> None:
    with pytest.raises(errors.SettingsError, match=named):
        settings.parse(arguments, {})


def test_a_nodes_own_entry_wins() -> None:
    """The file that HAMi's users have."""
    text = """{"nodeconfig":[{"name":"n","devicesplitcount":3,"devicememoryscaling":1.8,"operatingmode":"none",
        "filterdevices":{"uuid":["GPU-a"],"index":[1]}},{"name":"m","devicesplitcount":9}]}"""

    found = settings.for_node(settings.Sharing(), text, "n")

    assert found == settings.Sharing(
        3, 1.8, isolation="none", hidden_uuids=frozenset(["GPU-a"]), hidden_indices=frozenset([1])
    )
    assert settings.for_node(settings.Sharing(), text, "other") == settings.Sharing()
    assert settings.for_node(settings.Sharing(), "{}", "n") == settings.Sharing()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"nodeconfig":[7]}', '{"nodeconfig":[{"name":"n","devicesplitcount":"many"}]}',
     '{"nodeconfig":[{"name":"n","operatingmode":"magic"}]}', '{"nodeconfig":[{"name":"n","operatingmode":7}]}',
     '{"nodeconfig":[{"name":"n","filterdevices":[1]}]}',
     '{"nodeconfig":[{"name":"n","preconfigureddevicememory":"much"}]}',
     '{"nodeconfig":[{"name":"n","preconfigureddevicememory":{"GB10":[]}}]}',
     '{"nodeconfig":[{"name":"n","filterdevices":{"index":["x"]}}]}'],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(errors.SettingsError):
        settings.for_node(settings.Sharing(), text, "n")


def test_what_a_node_offers() -> None:
    """Headroom comes off before scaling; hidden GPUs are not offered; MPS and MIG know their own most."""
    sharing = settings.Sharing(20, 2.0, 1.5, memory_headroom_mib=100, hidden_indices=frozenset([1]))
    devices = [device(), device(B, 1), device(identifiers.GpuUuid("GPU-c"), 2, mig_enabled=True, migs=(INSTANCE,))]
    sick = health.after_xid(health.Health(), 79, 0.0, "b", health.Rules())

    offered = inventory.offered_gpus(
        devices, {A: sick}, {A: "mps", B: "none", devices[2].uuid: "mig"}, sharing, backends=BACKENDS
    )

    assert [(gpu.uuid, gpu.memory_mib, gpu.cores_percent, gpu.slots, gpu.mode, gpu.healthy) for gpu in offered] == [
        ("GPU-a", 1800, 150, 1, "mps", False),
        ("GPU-c", 1800, 150, 1, "mig", True),
    ]
    assert offered[0].type == "NVIDIA-T"


def test_memory_that_the_driver_does_not_say_is_configured_by_node_or_model() -> None:
    """HAMi's words: one amount for all, or one by model; what the driver says goes before."""
    flag = ["--node-name", "n", "--preconfigured-device-memory", "GB10=119000, Orin=30000"]
    by_model = settings.parse(flag, {}).sharing
    entry = '{"nodeconfig":[{"name":"n","preconfigureddevicememory":%s}]}'
    of_node = settings.for_node(settings.Sharing(), entry % 64000, "n")
    of_models = settings.for_node(of_node, entry % '{"gb10":100000}', "n")
    silent = device(B, 1, memory_mib=None, name="NVIDIA GB10")

    assert (by_model.configured_memory("NVIDIA GB10"), by_model.configured_memory("NVIDIA A10")) == (119_000, None)
    assert (of_node.configured_memory("any"), of_models.configured_memory("NVIDIA GB10")) == (64_000, 100_000)
    assert settings.for_node(by_model, entry % 0, "n") == by_model
    filled = inventory.with_memory([device(), silent], by_model)
    assert [one.memory_mib for one in filled] == [1000, 119_000]


def test_a_gpu_whose_memory_is_unknown_is_not_offered_and_its_neighbours_are() -> None:
    """An amount that nobody measured or configured must not be promised."""
    devices = inventory.with_memory([device(memory_mib=None), device(B, 1)], settings.Sharing())
    offered = inventory.offered_gpus(devices, {}, {A: "none", B: "none"}, settings.Sharing(), backends=BACKENDS)

    assert [gpu.uuid for gpu in offered] == [B]


def test_what_a_divided_gpu_offers_are_all_instances_where_they_are_ours_and_else_those_there() -> None:
    """The scheduler promises no instance that nobody would make."""
    profiles = (
        mig.Profile("1g.10gb", 9728, 14, tuple(mig.Slices(start, 1) for start in range(7))),
        mig.Profile("3g.40gb", 40448, 42, (mig.Slices(0, 4), mig.Slices(4, 4))),
    )
    there = (gpu_source.MigInstance("MIG-1", "3g.40gb", 40448, 4, 4),)
    divided = device(mig_enabled=True, migs=there, most_migs=7, mig_profiles=profiles)

    async def create(share: records.MigShare) -> None:
        raise AssertionError("nothing is made")

    def offered(isolation: str) -> gpus.Gpu:
        sharing = settings.Sharing(20, isolation=isolation)
        backends = BACKENDS if isolation == "auto" else table.build(BackendSettings(create_instance=create))
        (gpu,) = inventory.offered_gpus([divided], {}, {A: "mig"}, sharing, backends=backends)
        return gpu

    assert offered("mig").mig_profiles == profiles
    assert offered("auto").mig_profiles == (mig.Profile("3g.40gb", 40448, 42, (mig.Slices(4, 4),)),)
    assert (offered("mig").slots, offered("auto").slots) == (7, 1)


def test_sick_gpus_outlive_the_process_but_not_a_restart_of_the_node() -> None:
    sick = health.after_xid(health.Health(), 79, 0.0, "b1", health.Rules())
    written = inventory.annotations([], {A: sick, B: health.Health()}, {A: {B: 100}}, "hami-py/1", problems={})

    assert inventory.unhealthy_in_boot(written["hami.io/gpu-health"], "b1", 0.0) == {A: sick}
    assert inventory.unhealthy_in_boot(written["hami.io/gpu-health"], "b2", 0.0) == {}
    assert written["hami.io/node-nvidia-score"] == '[{"uuid":"GPU-a","score":{"GPU-b":100}}]'
    for garbage in ("", "{", "[]", '{"GPU-a":7}', '{"GPU-a":{"boot":"b1"}}'):
        assert inventory.unhealthy_in_boot(garbage, "b1", 0.0) == {}


keys = st.sampled_from(
    ["name", "devicesplitcount", "devicememoryscaling", "operatingmode", "filterdevices", "uuid", "index"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))


@given(st.lists(st.dictionaries(keys, values), max_size=3))
def test_any_node_file_is_settings_or_an_error(entries: list[dict[str, object]]) -> None:
    """Nobody's typing error takes a node's plugin down."""
    text = json.dumps({"nodeconfig": [{**entry, "name": "n"} for entry in entries]})

    try:
        assert settings.for_node(settings.Sharing(), text, "n").split_count >= 1
    except errors.SettingsError:
        return
