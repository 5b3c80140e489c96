"""The scheduler configuration for the cluster autoscaler, loaded by a real kube-scheduler."""

import pathlib
import subprocess

import yaml

from tests.e2e import site as sites

CONFIG = pathlib.Path(__file__).parents[2] / "charts/hami/files/cluster-autoscaler-config.yaml"


def test_kube_scheduler_loads_it_strictly(own_site: sites.Site, programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The autoscaler decodes the file by the same code: an unknown field would end its start."""
    assert own_site.plane is not None
    config, written = tmp_path / "config.yaml", tmp_path / "complete.yaml"
    connection = {"clientConnection": {"kubeconfig": str(own_site.plane.kubeconfig("scheduler"))}}
    config.write_text(CONFIG.read_text() + yaml.safe_dump(connection))
    command = [str(programs / "kube-scheduler"), "--config", str(config), "--write-config-to", str(written)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    arguments = {one["name"]: one["args"] for one in yaml.safe_load(written.read_text())["profiles"][0]["pluginConfig"]}
    assert "nvidia.com/gpumem" in arguments["NodeResourcesFit"]["ignoredResources"]
