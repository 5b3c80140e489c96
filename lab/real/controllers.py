"""kube-controller-manager with the controllers of Deployments and ReplicaSets alone: they make and replace pods.

Source: kube-controller-manager `--help`, 1.36.
"""

import contextlib
import ssl
import urllib.request
from collections.abc import Iterator

from lab.real import components, control_plane

_NAME = "kube-controller-manager"


@contextlib.contextmanager
def running(plane: control_plane.ControlPlane) -> Iterator[None]:
    """Run it until the context ends.

    Raises:
        NotReady: It does not start in time.
    """
    port = components.free_port()
    plane.parts.start(
        _NAME, "--kubeconfig", plane.kubeconfig("admin"), "--leader-elect=false",
        "--controllers", "deployment-controller,replicaset-controller",
        "--bind-address", "127.0.0.1", "--secure-port", str(port),
        "--cert-dir", plane.parts.folder / "certs-controllers",
    )  # fmt: skip
    try:
        plane.parts.wait(_NAME, lambda: _is_healthy(port))
        yield
    finally:
        plane.parts.end(_NAME)


def _is_healthy(port: int) -> bool:
    context = ssl._create_unverified_context()
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/healthz", timeout=5, context=context) as answer:
        return bool(answer.status == 200)
