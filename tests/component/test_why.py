"""Why a pod is pending: the first line of `hamictl explain` names the true cause. `tests/e2e/test_why.py` is the same
table on a real kube-scheduler.
"""

import contextlib
import io
import sys
import time
from collections.abc import Iterator

import pytest
import structlog

from hamictl import __main__ as hamictl
from lab import api_server, extender_process, kinds
from tests.component import calls
from tests.support import pending_table

MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The flags that reach an extender with the pods of the table, as kube-scheduler has left them."""
    folder = tmp_path_factory.mktemp("why")
    with api_server.running() as server:
        server.call(lambda: [server.app.store.create(kinds.NODES, "", node) for node in pending_table.nodes()])
        server.request("POST", "/api/v1/namespaces", {"metadata": {"name": "limited"}})
        server.request("POST", "/api/v1/namespaces/limited/resourcequotas", pending_table.QUOTA)
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        with extender_process.running(kubeconfig, folder / "extender.log") as extender:
            for node, body in pending_table.HOLDERS.values():
                assert calls.bind(extender, server.request("POST", calls.PODS, body), node) == ""
            for case in pending_table.TABLE:
                create(server, case)
            for namespace, body in pending_table.OTHERS:
                server.request("POST", f"/api/v1/namespaces/{namespace}/pods", body)
            server.request("PATCH", f"{calls.PODS}/ended/status", pending_table.ENDED, MERGE)
            with_gpus = len(pending_table.TABLE) + 2
            calls.eventually(lambda: calls.read(extender, "cluster")["pods_pending"] == with_gpus)
            yield "--extender", f"http://{extender.api}", "--kubeconfig", str(kubeconfig)


def create(server: api_server.Running, case: pending_table.Case) -> None:
    path = f"/api/v1/namespaces/{case.namespace}/pods"
    server.request("POST", path, case.body)
    if case.condition:
        condition = {"type": "PodScheduled", "status": "False", "reason": case.reason, "message": case.condition}
        body = {"status": {"phase": "Pending", "conditions": [condition]}}
        path = f"{path}/{case.body['metadata']['name']}/status"
        server.request("PATCH", path, body, MERGE)


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def explain(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Return status, output and errors of `hamictl explain`."""
    monkeypatch.setattr(sys, "argv", ["hamictl", "explain", *arguments])
    printed, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
        status = hamictl.main()
    return status, printed.getvalue(), complained.getvalue()


@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize("case", pending_table.TABLE, ids=lambda case: case.cause)
def test_the_first_line_names_the_true_cause(
    case: pending_table.Case, cluster: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person whose pod is pending reads one line and knows what to change."""
    key = f"{case.namespace}/{case.body['metadata']['name']}"

    deadline = time.monotonic() + 60
    while not (said := explain(monkeypatch, key, *cluster)[1]).startswith(f"{key} is pending: {case.first} [SCHED_"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)

    assert said.partition(" [SCHED_")[0] == f"{key} is pending: {case.first}"


@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize(("name", "first"), pending_table.UNKNOWN.items())
def test_a_name_that_is_not_known_is_answered_with_what_was_probably_meant(
    name: str, first: str, cluster: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typo, another namespace, a pod without GPUs and one that has ended look alike to a person who only waits."""
    status, printed, complained = explain(monkeypatch, name, *cluster)

    assert (status, printed) == (1, "")
    assert complained.splitlines()[0].removeprefix("hamictl: ").removeprefix("SCHED_NO_SUCH_POD: ") == first


@pytest.mark.usefixtures("quiet_logs")
def test_a_misspelled_resource_is_named_although_the_pod_requests_no_gpu(
    cluster: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner believes that it requests GPU memory."""
    _, _, complained = explain(monkeypatch, "only-misspelled", *cluster)

    assert complained.splitlines()[1].strip() == (
        "container main: resource nvidia.com/gpumemm has no effect: the known one is nvidia.com/gpumem"
    )
