"""Probes and canaries of all four processes, each as a real one."""

import json
from collections.abc import Iterator, Mapping

import pytest

from lab import cluster, gpus, node_processes, service_process, webui_process
from tests.component import calls

CANARIES = {"extender": "verbs", "device plugin": "socket", "monitor": "scrape", "webui": "pages"}
"""The component of each process that shows its calls to itself."""
Processes = Mapping[str, service_process.ServiceProcess]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """All four, with paths of probes of their own, by the variables that all have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAMI_LIVEZ_PATH", "/my/live")
        patch.setenv("HAMI_READYZ_PATH", "/my/ready")
        patch.setenv("HAMI_HEALTHZ_PATH", "/my/health")
        patch.setenv("HAMI_STARTUPZ_PATH", "/my/startup")
        folder = tmp_path_factory.mktemp("p")
        node = gpus.gpu_node("n", gpus.A100, 1)
        with cluster.running([node], folder=folder, plugins=True, make_node=node_processes.NodeProcesses) as running:
            served = running.gpu_nodes["n"]
            assert isinstance(served, node_processes.NodeProcesses)
            served.wait_ready()
            webui = webui_process.WebUIProcess(folder, f"http://{running.extender.api}")
            with webui_process.running(webui):
                yield {
                    "extender": running.extender, "device plugin": served.plugin, "monitor": served.monitor,
                    "webui": webui,
                }  # fmt: skip


@pytest.mark.parametrize("name", CANARIES)
def test_a_path_of_a_probe_is_added_and_the_known_ones_stay(name: str, processes: Processes) -> None:
    """A probe at the old path would find nothing, and the kubelet would restart the process for ever."""
    process = processes[name]
    for paths in (
        ("/my/live", "/livez", "/live"), ("/my/ready", "/readyz", "/ready"), ("/my/health", "/healthz", "/health"),
        ("/my/startup", "/startupz"),
    ):  # fmt: skip
        calls.eventually(lambda paths=paths: [process.get("health", path)[0] for path in paths] == [200] * len(paths))  # type: ignore[misc]
    assert process.get("health", "/my")[0] == 404


@pytest.mark.parametrize("name", CANARIES)
def test_the_result_of_the_canary_is_a_component_and_a_metric(name: str, processes: Processes) -> None:
    """A listener may hang while the process is healthy: its callers get no answer, and no probe shows it."""
    process = processes[name]

    def component() -> bool:
        found = json.loads(process.get("health", "/healthz")[1])["components"][CANARIES[name]]
        return bool(found["healthy"] and found["reason"] == "answers" and not found["required"])

    calls.eventually(component)
    calls.eventually(lambda: b"\nhami_canary_success 1.0\n" in process.get("health", "/metrics")[1])


def test_the_canary_of_the_webui_is_no_viewer(processes: Processes) -> None:
    """Its requests would hide that the pages have no users, or that they are slow for users."""
    calls.eventually(lambda: b"\nhami_canary_success 1.0\n" in processes["webui"].get("health", "/metrics")[1])
    text = processes["webui"].get("health", "/metrics")[1].decode()
    assert "\nhami_webui_viewers 0.0\n" in text
    assert "hami_webui_requests_total{" not in text


def test_the_extender_lists_the_nodes_that_are_registered(processes: Processes) -> None:
    """A node that is missing there gets no pods; one page shows it without a command of the cluster."""

    def registered() -> bool:
        found = json.loads(processes["extender"].get("health", "/healthz")[1])
        assert {"plugins", "monitors"} <= found.keys()
        nodes = found["registeredNodes"]
        return bool(nodes["count"] == 1 and nodes["names"][0]["name"] == "n" and nodes["names"][0]["ageSeconds"] >= 0)

    calls.eventually(registered)
