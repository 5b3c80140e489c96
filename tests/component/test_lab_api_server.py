"""The lab's API server keeps the contract that a real one keeps."""

from collections.abc import Iterator

import pytest

from lab import api_server
from lab.real import client as clients
from tests.contracts.api_server import *  # noqa: F403  # the tests themselves


@pytest.fixture(scope="module")
def api() -> Iterator[clients.Api]:
    with api_server.running() as server:
        client = clients.Api(server.url, server.token)
        yield client
        client.close()


def test_an_expired_version_is_410(api: clients.Api) -> None:
    """As after a compaction of etcd: list again."""
    with api_server.running() as server:
        client = clients.Api(server.url, server.token)
        client("POST", PODS, pod("p"))  # noqa: F405
        server.call(server.app.store.compact)

        (event,) = watch(client, f"{PODS}?resourceVersion=1", 2)  # noqa: F405

        client.close()
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
