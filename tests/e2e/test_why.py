"""Why a pod is pending, on a real kube-scheduler: the first line of `hamictl explain` names the true cause.

`tests/component/test_why.py` is the same table with kube-scheduler's conditions written by hand.
"""

import contextlib
import io
import pathlib
import sys
import time
from collections.abc import Iterator

import pytest
import structlog

from hamictl import __main__ as hamictl
from lab.real import control_plane
from tests.e2e import site as sites
from tests.support import pending_table

MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def cluster(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The flags that reach a cluster with the pods of the table."""
    del programs
    with sites.own(tmp_path_factory.mktemp("why")) as site:
        assert site.plane is not None
        assert site.extender is not None
        nodes = pending_table.nodes()
        control_plane.add_nodes(site.api, nodes)
        for node in nodes:  # Their admission gives each a taint, which `add_nodes` removes together with its own.
            site.api("PATCH", f"/api/v1/nodes/{node['metadata']['name']}", {"spec": node.get("spec", {})}, MERGE)
        site.api("POST", "/api/v1/namespaces", {"metadata": {"name": "limited"}})
        site.api("POST", "/api/v1/namespaces/limited/resourcequotas", pending_table.QUOTA)
        site.api("POST", "/api/v1/namespaces/default/persistentvolumeclaims", pending_table.CLAIM)
        site.create(*(body for _, body in pending_table.HOLDERS.values()))
        site.wait_bound(*pending_table.HOLDERS)
        for case in pending_table.TABLE:
            site.api("POST", f"/api/v1/namespaces/{case.namespace}/pods", case.body)
        for namespace, body in pending_table.OTHERS:
            site.api("POST", f"/api/v1/namespaces/{namespace}/pods", body)
        site.api("PATCH", "/api/v1/namespaces/default/pods/ended/status", pending_table.ENDED, MERGE)
        yield "--extender", f"http://{site.extender.api}", "--kubeconfig", str(site.plane.kubeconfig("admin"))


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """The command silences the logs of its process, which is that of the tests here."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def explain(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Return what `hamictl explain` prints, errors included."""
    monkeypatch.setattr(sys, "argv", ["hamictl", "explain", *arguments])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        hamictl.main()
    return printed.getvalue()


def eventually(monkeypatch: pytest.MonkeyPatch, name: str, cluster: tuple[str, ...], beginning: str) -> str:
    """Return the first line that begins so, or the last one after a minute."""
    deadline = time.monotonic() + 60
    while True:
        first = explain(monkeypatch, name, *cluster).partition("\n")[0]
        if first.startswith(beginning) or time.monotonic() > deadline:
            return first
        time.sleep(0.2)


def test_the_table_has_every_kind_of_cause() -> None:
    """At least 25, of which each is one that people meet."""
    assert len({case.cause for case in pending_table.TABLE}) == len(pending_table.TABLE) >= 25


@pytest.mark.parametrize("case", pending_table.TABLE, ids=lambda case: case.cause)
def test_the_first_line_names_the_true_cause(
    case: pending_table.Case, cluster: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person whose pod is pending reads one line and knows what to change."""
    key = f"{case.namespace}/{case.body['metadata']['name']}"
    expected = f"{key} is pending: {case.first}"

    first = eventually(monkeypatch, key, cluster, f"{expected} [SCHED_")

    assert first.partition(" [SCHED_")[0] == expected


@pytest.mark.parametrize(("name", "expected"), pending_table.UNKNOWN.items())
def test_a_name_that_is_not_known_is_answered_with_what_was_probably_meant(
    name: str, expected: str, cluster: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typo, another namespace, a pod without GPUs and one that has ended look alike to a person who only waits."""
    first = explain(monkeypatch, name, *cluster).partition("\n")[0]

    assert first.removeprefix("hamictl: ").removeprefix("SCHED_NO_SUCH_POD: ") == expected
