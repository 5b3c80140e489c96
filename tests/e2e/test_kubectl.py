"""`kubectl hami …`: a real kubectl finds our program and hands it what it was given."""

import os
import pathlib
import subprocess
import sys

from lab import gpus
from tests.e2e import site as sites


def test_a_real_kubectl_runs_our_commands(own_site: sites.Site, tmp_path: pathlib.Path) -> None:
    """By the name kubectl-hami on the path."""
    assert own_site.plane is not None
    assert own_site.extender is not None
    own_site.add_nodes(*(gpus.gpu_node(name, gpus.A100, 1) for name in ("one", "two")))
    own_site.create(own_site.pod_body("large", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "999000"}))
    kubectl, kubeconfig = pathlib.Path(own_site.kubectl_command[0]), own_site.plane.kubeconfig("admin")
    path = f"{pathlib.Path(sys.executable).parent}:{kubectl.parent}:{os.environ['PATH']}"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig)}
        return subprocess.run(
            [str(kubectl), "hami", *arguments], capture_output=True, text=True, timeout=60, env=environment
        )

    url = f"http://{own_site.extender.api}"
    assert "explain-code" in run("--help").stdout
    sites.wait_for(lambda: run("explain", "large", "--extender", url).returncode == 0, 60)
    assert "GPU memory insufficient" in run("explain", "large", "--extender", url).stdout
    assert len(run("nodes", "--extender", url, "-o", "name").stdout.split()) == 2
    saved = tmp_path / "cluster.json"
    assert run("snapshot", str(saved)).returncode == 0
    assert saved.stat().st_size > 0
    assert run("explain", "nobody", "--extender", url).returncode == 1
