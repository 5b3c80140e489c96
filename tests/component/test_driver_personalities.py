"""Our plugin on every kind of driver: what it offers, what is healthy, what it says, and that it lives."""

import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from device_plugin.driver import gpu_source
from device_plugin.node import gpu_problems, problems
from gpu_sharing.core import error_codes, identifiers, records
from lab import api_server, fake_driver, gpu_nodes, gpus, kinds, plugin_process
from lab.fake_driver import personalities

pytestmark = pytest.mark.slow

MEMORY, IDENTITY = error_codes.PLUGIN_GPU_MEMORY_UNKNOWN, error_codes.PLUGIN_GPU_NOT_IDENTIFIED
XIDS, MIG = error_codes.PLUGIN_XIDS_NOT_HEARD, error_codes.PLUGIN_MIG_NOT_READ
OURS = {MEMORY, IDENTITY, XIDS, MIG}

EXPECTED: dict[str, tuple[list[int], list[int], dict[str, str]]] = {
    "a10": ([0, 1], [0, 1], {}),
    "a100": ([0, 1, 2, 3], [0, 1, 2, 3], {}),
    "a100-mig": ([0, 1], [0, 1], {}),
    "checked-versions": ([0, 1], [0, 1], {}),
    "foreign-pid-namespace": ([0], [0], {}),
    "gb10": ([], [], {MEMORY: "GPU 0 (NVIDIA GB10)"}),
    "geforce": ([0, 1], [0, 1], {}),
    "h100": ([0, 1], [0, 1], {}),
    "h200": ([0], [0], {}),
    "jetson": (
        [],
        [],
        {MEMORY: "GPU 0 (Orin (nvgpu))", XIDS: "nvmlDeviceRegisterEvents: Not Supported"},
    ),
    "lost-during-event-wait": ([0, 2], [0, 2], {IDENTITY: "GPU 1: nvmlDeviceGetHandleByIndex: GPU is lost"}),
    "old-driver": ([0, 1], [0, 1], {}),
    "reset-in-progress": ([0], [0], {IDENTITY: "GPU 1: nvmlDeviceGetHandleByIndex: GPU requires restart"}),
    "t4": ([0, 1], [0, 1], {}),
    "unprivileged-caller": (
        [2],
        [2],
        {
            IDENTITY: "GPU 0: nvmlDeviceGetHandleByIndex: Insufficient Permissions",
            MEMORY: "GPU 1",
            MIG: "nvmlDeviceGetGpuInstanceById: Insufficient Permissions",
        },
    ),
    "vgpu-guest": ([0], [0], {XIDS: "nvmlDeviceRegisterEvents: Not Supported"}),
    "wsl2": ([0], [0], {XIDS: "nvmlDeviceRegisterEvents: Not Supported"}),
}
"""Positions of the GPUs that are offered, those of them that are healthy, and a part of each sentence by code."""


@pytest.fixture(scope="module")
def server() -> Iterator[api_server.Running]:
    with api_server.running() as found:
        yield found


class Node:
    """A node whose plugin runs on one driver; there is no kubelet, as nothing is started on it."""

    def __init__(
        self, folder: pathlib.Path, server: api_server.Running, name: str, driver: fake_driver.FakeDriver, *flags: str
    ) -> None:
        self.driver = driver
        self._server, self._name = server, name
        server.call(
            lambda: server.app.store.create(kinds.NODES, "", gpu_nodes.unserved(gpus.gpu_node(name, gpus.A100, 1)))
        )
        self.plugin = plugin_process.PluginProcess(
            folder, driver,
            ["--kubeconfig", str(server.write_kubeconfig(folder / "kubeconfig")), "--node-name", name,
             "--kubelet-dir", str(folder / "kubelet"), "--cdi-dir", str(folder / "cdi"), "--delivery", "envvar",
             "--host-cdi-dirs", str(folder / "none"), "--health-interval", "0.1", "--health-hold", "0", *flags],
        )  # fmt: skip

    def annotations(self) -> dict[str, str]:
        found: dict[str, str] = self._server.request("GET", f"/api/v1/nodes/{self._name}")["metadata"]["annotations"]
        return found

    def offered(self) -> dict[int, bool]:
        """Whether each offered GPU is healthy, by position."""
        inventory = records.decode_inventory(self.annotations().get(records.INVENTORY, "[]"))
        return {gpu.index: gpu.healthy for gpu in inventory}

    def problems(self) -> dict[str, str]:
        """The sentences about the driver."""
        found = records.decode_problems(self.annotations().get(records.PROBLEMS, ""))
        return {code: sentence for code, sentence in found.items() if code in OURS}

    def cause(self, index: int) -> dict[str, Any]:
        """Why a GPU is not healthy."""
        facts = json.loads(self.annotations().get(records.HEALTH) or "{}")
        found: dict[str, Any] = facts.get(self.driver.gpus[index].uuid, {})
        return found

    def wait(self, what: str, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60.0
        while not condition():
            if time.monotonic() > deadline:
                said = f"{self.offered()}, {self.problems()}; {self.plugin.log_file.read_text()[-2000:]}"
                raise AssertionError(f"not within 60 s: {what}; {said}")
            time.sleep(0.02)


def test_every_personality_says_what_is_expected_of_it_and_where_its_answers_come_from() -> None:
    """A new one that no test knows, or an answer without a source, is worth nothing."""
    assert set(personalities.names()) == set(EXPECTED)
    for name in personalities.names():
        for refusal in personalities.read(name).refusals:
            assert re.match(r"(seen|read|guess)\b", refusal.source), (name, refusal)


@pytest.mark.parametrize("name", personalities.names())
def test_on_each_driver_the_plugin_offers_what_it_can_and_says_what_it_cannot(
    server: api_server.Running, tmp_path: pathlib.Path, name: str
) -> None:
    """A GPU that lacks something is offered without it or left out with a code, its neighbours are offered."""
    offered, healthy, sentences = EXPECTED[name]
    node = Node(tmp_path, server, name, personalities.read(name).make(tmp_path))
    node.plugin.start()
    try:
        node.wait("what is offered", lambda: node.offered() == {index: index in healthy for index in offered})
        node.wait("what is said", lambda: node.problems().keys() == sentences.keys())
        said = node.problems()
        for code, part in sentences.items():
            assert part in said[code]
        text = node.plugin.get("health", "/metrics")[1].decode()
        assert text.count("hami_device_plugin_xids_received{") == len(node.driver.gpus) - (IDENTITY in sentences)
        deaf = [
            line
            for line in text.splitlines()
            if line.startswith("hami_device_plugin_xids_received{") and "} 0.0" in line
        ]
        assert bool(deaf) == (XIDS in sentences)
        pid = node.plugin.pid
        node.wait("it still lives", lambda: node.plugin.get("health", "/livez")[0] == 200 and node.plugin.pid == pid)
    finally:
        node.plugin.stop()


def test_memory_that_is_configured_makes_a_gpu_with_unified_memory_one_to_offer(
    server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """DGX Spark: the amount is the administrator's word, by model."""
    driver = personalities.read("gb10").make(tmp_path)
    node = Node(tmp_path, server, "spark", driver, "--preconfigured-device-memory", "GB10=100000")
    node.plugin.start()
    try:
        node.wait("it is offered", lambda: node.offered() == {0: True})
        (gpu,) = records.decode_inventory(node.annotations()[records.INVENTORY])
        assert (gpu.memory_mib, node.problems()) == (100_000, {})
    finally:
        node.plugin.stop()


def test_a_reset_brings_a_gpu_back_without_a_reboot_and_its_xids_are_heard_again(
    server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """While the GPU refuses everything it stays in the node's books, and the node says what it needs."""
    personality = personalities.read("reset-in-progress")
    driver = personality.make(tmp_path)
    refusals, driver.rules = driver.rules, []
    driver.write()
    node = Node(tmp_path, server, "reset", driver)
    node.plugin.start()
    try:
        node.wait("both are healthy", lambda: node.offered() == {0: True, 1: True})
        with pytest.raises(fake_driver.InUse):
            driver.reset(1)  # The plugin itself holds it.
        driver.rules = refusals
        driver.write()
        node.wait("it is unhealthy", lambda: node.offered() == {0: True, 1: False})
        assert (node.cause(1)["need"], node.cause(1)["cause"]) == (
            "reset",
            "the driver refuses calls until the GPU is reset",
        )

        driver.reset(1, despite_clients=True)

        node.wait("it is back", lambda: node.offered() == {0: True, 1: True})
        uuid = driver.gpus[1].uuid
        node.wait("it is registered", lambda: _count(node, f'hami_device_plugin_xids_received{{device="{uuid}"') == 1)

        def heard() -> bool:  # Of an XID that is counted only.
            driver.report_xid(1, 43)
            return _count(node, f'hami_device_plugin_xids_total{{device="{uuid}",xid="43"}}') > 0

        node.wait("its XIDs are heard", heard)
    finally:
        node.plugin.stop()


def test_a_gpu_that_falls_off_the_bus_is_the_only_one_that_is_lost(
    server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """Its neighbours are healthy, and their XIDs are heard although every wait with it in the set fails."""
    driver = personalities.read("lost-during-event-wait").make(tmp_path)
    refusals, driver.rules = driver.rules, []
    driver.write()
    node = Node(tmp_path, server, "lost", driver)
    node.plugin.start()
    try:
        node.wait("all are healthy", lambda: node.offered() == {0: True, 1: True, 2: True})
        driver.rules = refusals
        driver.write()
        node.wait("one is lost", lambda: node.offered() == {0: True, 1: False, 2: True})
        assert node.cause(1)["need"] == "reboot"
        uuid = driver.gpus[2].uuid

        def heard() -> bool:
            driver.report_xid(2, 43)
            return _count(node, f'hami_device_plugin_xids_total{{device="{uuid}",xid="43"}}') > 0

        node.wait("a neighbour's XID is heard", heard)
        node.wait("that it is deaf is said", lambda: driver.gpus[1].uuid in node.problems().get(XIDS, ""))
        assert node.offered() == {0: True, 1: False, 2: True}
    finally:
        node.plugin.stop()


def test_problems_of_gpus_end_with_what_caused_them() -> None:
    """A code that stays after its cause is gone makes people look for nothing."""
    uuid = identifiers.GpuUuid("GPU-a")
    node = problems.Problems(lambda: None)
    silent = gpu_source.Device(uuid=uuid, index=0, name="T", memory_mib=None, minor=0)
    gaps = gpu_source.Gaps({3: "no"}, {uuid: "no"}, mig={uuid: "no"})

    gpu_problems.report(node, [silent], gaps)
    assert set(node.current) == {(MEMORY, uuid), (IDENTITY, "GPU 3"), (XIDS, uuid), (MIG, uuid)}
    gpu_problems.report(
        node, [gpu_source.Device(uuid=uuid, index=0, name="T", memory_mib=1, minor=0)], gpu_source.Gaps()
    )
    assert not node.current


def _count(node: Node, series: str) -> float:
    """The value of a series whose name and labels begin so."""
    text = node.plugin.get("health", "/metrics")[1].decode()
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series)), 0.0)
