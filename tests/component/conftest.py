"""A lab API server, and a real extender process on it."""

import pathlib
from collections.abc import Iterator

import pytest

from lab import api_server, extender_process, gpus, kinds

SMALL = gpus.Model("NVIDIA A100", 16_000)


@pytest.fixture
def server() -> Iterator[api_server.Running]:
    """With two nodes of two GPUs."""
    with api_server.running() as running:
        running.call(
            lambda: [running.app.store.create(kinds.NODES, "", gpus.gpu_node(name, SMALL, 2)) for name in ("a", "b")]
        )
        yield running


@pytest.fixture
def extender(server: api_server.Running, tmp_path: pathlib.Path) -> Iterator[extender_process.ExtenderProcess]:
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
    with extender_process.running(kubeconfig, tmp_path / "extender.log") as running:
        yield running
