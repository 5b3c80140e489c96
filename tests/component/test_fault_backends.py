"""What the fault injection service writes on a real cluster: the kernel's log, DCGM, NetworkPolicies, Chaos Mesh."""

import asyncio
import json
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from fault_injector import agent, consent, injector, metrics, tracker
from fault_injector.backends import BackendFailed, chaos_mesh, dcgm, kmsg, network_policy, node_agent
from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, errors, faults
from gpu_sharing.core.faults import State
from lab import api_server, gpus, kinds, service_process

pytestmark = pytest.mark.component

MAPS = "/api/v1/namespaces/hami-system/configmaps"
POLICIES = kinds.BY_PATH["networking.k8s.io", "v1", "networkpolicies"]
UUID = gpus.gpu_uuid("n", 0)


@pytest.fixture
def server() -> Iterator[api_server.Running]:
    """With a node that permits faults."""
    node = gpus.gpu_node("n", gpus.A100, 2, labels={faults.CONSENT_LABEL: faults.CONSENT})
    with api_server.running() as running:
        running.call(lambda: running.app.store.create(kinds.NODES, "", node))
        yield running


@pytest.fixture
def gpu_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """/proc/driver/nvidia/gpus of a machine with two GPUs, the first of them ours."""
    for bus, uuid in (("0000:3b:00.0", UUID), ("0000:86:00.0", "GPU-other")):
        file = tmp_path / "gpus" / bus / "information"
        file.parent.mkdir(parents=True)
        file.write_text(
            f"Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 40\nGPU UUID: \t {uuid}\nBus Type: \t PCIe\n"
            f"Bus Location: \t {bus}\nDevice Minor: \t 0\n"
        )
    return tmp_path / "gpus"


def fault(**values: Any) -> faults.Fault:
    _, made = faults.Document(next_number=7).with_new(faults.read_request(values), "x", 1.0)
    return made


@pytest.mark.parametrize("xid", faults.XID_SHORTCUTS)
def test_the_line_is_the_drivers(xid: int) -> None:
    """Log watchers find it by these expressions: NVSentinel's, gpud's, and that of NVIDIA's documents."""
    line = kmsg.line("0000:3b:00", xid)

    for pattern in (r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),", r"NVRM: Xid.*?: (\d+),"):
        match = re.search(pattern, line)
        assert match
        assert match[match.lastindex or 1] == str(xid)


def test_an_xid_is_one_record_of_the_kernels_log(gpu_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Journald cuts off a first word that ends in a colon, so that word is not `NVRM:`."""
    log = tmp_path / "kmsg"
    log.touch()
    backend = kmsg.KernelLog(log, gpu_folder)

    asyncio.run(backend.inject(fault(kind="xid", node="n", gpu=str(UUID), xid=79)))
    assert log.read_text() == (
        "<3>kernel: NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
    )
    with pytest.raises(BackendFailed, match="does not list GPU-away"):
        asyncio.run(backend.inject(fault(kind="xid", node="n", gpu="GPU-away", xid=79)))


def test_dcgm_gets_the_field_and_the_value_each_second(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement of DCGM would replace it otherwise."""
    monkeypatch.setattr(dcgm, "_AGAIN_SECONDS", 0.01)
    calls = tmp_path / "calls"
    program = tmp_path / "dcgmi"
    listed = f"| 0      | Name: A100 |\\n|        | Device UUID: GPU-a |\\n| 3      | Device UUID: {UUID} |"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$1" = discovery ] && printf "{listed}\\n"\nexit 0\n')
    program.chmod(0o755)

    async def scenario() -> None:
        backend = dcgm.Dcgm(str(program))
        assert "overheat" in backend.kinds
        hot = fault(kind="overheat", node="n", gpu=str(UUID), celsius=99)
        await backend.inject(hot)
        while calls.read_text().count("test --inject --gpuid 3 -f 150 -v 99") < 3:
            await asyncio.sleep(0.01)
        await backend.recover(hot)
        with pytest.raises(BackendFailed, match="does not list GPU-b"):
            await backend.inject(fault(kind="overheat", node="n", gpu="GPU-b"))
        assert dcgm.Dcgm("/no/such/dcgmi").kinds == frozenset()
        with pytest.raises(BackendFailed, match="No such file"):
            await dcgm.Dcgm("/no/such/dcgmi").inject(hot)

    asyncio.run(scenario())


def with_client(
    server: api_server.Running, folder: pathlib.Path, act: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    kubeconfig = server.write_kubeconfig(folder / "kubeconfig")

    async def run() -> None:
        async with kubernetes.Client(kubeconfig, "test") as client:
            await act(client)

    asyncio.run(run())


async def with_agent(
    client: kubernetes.Client, backend: kmsg.KernelLog, act: Callable[[injector.Injector], Coroutine[Any, Any, None]]
) -> None:
    """Run a controller and the agent of node n, which have nothing but two ConfigMaps in common."""
    await client.post(MAPS, b'{"metadata":{"name":"hami-faults-results"}}')
    label = consent.NodeLabels(client)
    paths = (f"{MAPS}/hami-faults", f"{MAPS}/hami-faults-results")
    works = asyncio.create_task(agent.Agent(client, "n", [backend], label, paths).run())
    agents = node_agent.NodeAgents(client, paths[1], "kmsg", backend.kinds)
    keep = tracker.ConfigMapKeep(client, "hami-system", "hami-faults")
    service = injector.Injector(keep, [agents], label, metrics.Metrics())
    try:
        await service.start()
        await act(service)
    finally:
        works.cancel()


def test_the_agent_of_a_node_injects_what_the_controller_records(
    server: api_server.Running, gpu_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller needs no access to nodes, and the agent none to other nodes."""
    monkeypatch.setattr(agent, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(node_agent, "_POLL_SECONDS", 0.01)
    log = tmp_path / "kmsg"
    log.touch()

    async def scenario(service: injector.Injector) -> None:
        injected = await service.inject(faults.read_request({"kind": "xid", "node": "n", "gpu": 0, "xid": 79}))
        assert (injected.state, injected.target) == (State.INJECTED, f"n/{UUID}")
        assert "(PCI:0000:3b:00): 79" in log.read_text()
        assert (await service.recover(injected.id)).state is State.RECOVERED
        failed = await service.inject(faults.read_request({"kind": "xid", "node": "n", "gpu": 1, "xid": 79}))
        assert failed.state is State.FAILED
        assert "does not list" in failed.cause
        with pytest.raises(errors.FaultRefused) as refused:
            await service.inject(faults.read_request({"kind": "xid", "node": "n", "gpu": 2, "xid": 79}))
        assert refused.value.code == error_codes.FAULT_NO_TARGET

    backend = kmsg.KernelLog(log, gpu_folder)
    with_client(server, tmp_path, lambda client: with_agent(client, backend, scenario))


def test_without_an_agent_nothing_is_believed(
    server: api_server.Running, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller says so, and an agent that comes late does not inject after all."""
    monkeypatch.setattr(agent, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(node_agent, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(node_agent, "_ANSWER_SECONDS", 0.05)

    async def scenario(client: kubernetes.Client) -> None:
        await client.post(MAPS, b'{"metadata":{"name":"hami-faults-results"}}')
        agents = node_agent.NodeAgents(client, f"{MAPS}/hami-faults-results", "kmsg", frozenset({"xid"}))
        keep = tracker.ConfigMapKeep(client, "hami-system", "hami-faults")
        service = injector.Injector(keep, [agents], consent.NodeLabels(client), metrics.Metrics())
        await service.start()
        failed = await service.inject(faults.read_request({"kind": "xid", "node": "n", "gpu": 0, "xid": 79}))
        assert failed.state is State.FAILED
        assert "no agent on n has answered" in failed.cause

    with_client(server, tmp_path, scenario)


PARTITION = {"kind": "partition", "pair": "ui-extender"}


def test_a_partition_permits_all_pods_but_the_other_side() -> None:
    """A NetworkPolicy can only permit."""
    first, second = network_policy.policies(fault(**PARTITION), "hami-system")

    assert first["metadata"]["name"] == "hami-fault-f7-a"
    assert first["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "webui"
    permitted = json.dumps(first["spec"]["egress"])
    assert '"key": "app.kubernetes.io/component", "operator": "NotIn", "values": ["scheduler"]' in permitted
    assert second["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "scheduler"
    (alone,) = network_policy.policies(fault(kind="partition", pair="plugin-apiserver"), "hami-system")
    assert alone["spec"]["egress"] == [{"to": [{"namespaceSelector": {}}]}]


def test_chaos_mesh_gets_both_sides_and_the_action() -> None:
    """As its reference describes NetworkChaos."""
    custom = {"pair": "custom", "namespace": "ml", "from_pods": "app=a,tier=b", "to_pods": "app=c"}
    spec = chaos_mesh.network_chaos(fault(kind="network-latency", latency_ms=50, **custom), "hami-system")["spec"]
    assert (spec["action"], spec["delay"], spec["direction"]) == ("delay", {"latency": "50ms"}, "both")
    assert spec["selector"] == {"namespaces": ["ml"], "labelSelectors": {"app": "a", "tier": "b"}}
    assert spec["target"]["selector"] == {"namespaces": ["ml"], "labelSelectors": {"app": "c"}}
    lossy = chaos_mesh.network_chaos(
        fault(kind="packet-loss", loss_percent=25, pair="extender-apiserver"), "hami-system"
    )["spec"]
    assert (lossy["action"], lossy["loss"], lossy["direction"]) == ("loss", {"loss": "25"}, "to")
    assert lossy["externalTargets"] == ["kubernetes.default.svc"]
    assert chaos_mesh.network_chaos(fault(**PARTITION), "x")["spec"]["action"] == "partition"


class Controller(service_process.ServiceProcess):
    """The controller as a process, with a record in a ConfigMap."""

    def __init__(self, kubeconfig: pathlib.Path, log_file: pathlib.Path) -> None:
        listeners = {"api": "--api-bind", "health": "--health-bind"}
        super().__init__("fault_injector", listeners, ["--kubeconfig", str(kubeconfig)], log_file)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        url = f"http://{self.addresses['api']}/api/v1/faults/{path}"
        try:
            with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            return refused.code, json.loads(refused.read())


@pytest.mark.slow
def test_the_controller_survives_a_crash_and_recovers_all_when_it_is_stopped(
    server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """NetworkPolicies stay in effect without the process, and are still known by the next one."""

    def policies() -> list[str]:
        found = server.call(lambda: [key[1] for key, _ in server.app.store.all(POLICIES)])
        return [str(name) for name in found]

    controller = Controller(server.write_kubeconfig(tmp_path / "kubeconfig"), tmp_path / "log")
    controller.start()
    controller.wait_ready()
    for pair, code in (("scheduler-extender", "FAULT_NOT_SUPPORTED"), ("plugin-kubelet", "FAULT_NOT_SUPPORTED")):
        status, answer = controller.post("network/inject", {"kind": "partition", "pair": pair})
        assert (status, answer["error_code"]) == (501, code)
    assert controller.post("network/inject", {"kind": "partition", "pair": "worker-worker"})[0] == 400
    status, injected = controller.post("network/inject", PARTITION)
    assert (status, injected["state"]) == (201, "injected")
    assert policies() == ["hami-fault-f1-a", "hami-fault-f1-b"]

    controller.kill()
    controller.start()
    controller.wait_ready()
    status, answer = controller.post("network/inject", PARTITION)
    assert (status, answer["error_code"]) == (409, "FAULT_COLLIDES")
    assert controller.post("network/inject", {"kind": "partition", "pair": "extender-apiserver"})[0] == 201
    assert controller.post("f1/recover", {})[1]["state"] == "recovered"
    assert policies() == ["hami-fault-f2-a"]
    assert controller.get("health", "/healthz")[0] == 200
    assert controller.metric('hami_faults{kind="partition",state="injected"}') == 1.0

    controller.stop()
    assert policies() == []
