"""What happens to containers and their node over time, on a real kubelet and containerd."""

import contextlib
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_sharing.core import records
from lab import plugin_process
from tests.e2e import gpu_node


@pytest.fixture(scope="module")
def node(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running(tmp_path_factory.mktemp("node"), 2) as site:
        yield site


def crash(node: gpu_node.GpuNode, pod: Any) -> None:
    """Kill every process of a pod's containers, as a fault of theirs would."""
    ids = [one["containerID"].rpartition("/")[2] for one in pod["status"]["containerStatuses"]]
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdecimal() and any(one in _cgroup(process) for one in ids):
            with contextlib.suppress(ProcessLookupError):  # It may have ended meanwhile, as a `sleep` does.
                os.kill(int(process.name), signal.SIGKILL)


def _cgroup(process: pathlib.Path) -> str:
    try:
        return (process / "cgroup").read_text()
    except OSError:
        return ""


def restarts(node: gpu_node.GpuNode, name: str) -> int:
    return sum(one["restartCount"] for one in node.pod(name)["status"].get("containerStatuses", ()))


def told(node: gpu_node.GpuNode) -> None:
    node.wait("all have told", lambda: not any("written nothing" in one for one in node.mismatches()), 60)
    assert node.mismatches() == []


def test_sidecars_init_only_requests_and_several_gpus(node: gpu_node.GpuNode) -> None:
    """Kinds of containers that the kubelet treats differently, each with its own slice."""
    sidecar = {**gpu_node.container("side", 150), "restartPolicy": "Always"}
    plain = {key: value for key, value in gpu_node.container("c", 1).items() if key != "resources"}
    node.create(
        gpu_node.pod("sidecar", gpu_node.container("c", 250), init=[sidecar]),
        gpu_node.pod("two-gpus", gpu_node.container("c", 350, cores=5, count=2)),
        gpu_node.pod("init-only", plain, init=[gpu_node.container("i", 450, command=gpu_node.SHOW_ONCE)]),
    )

    node.wait_running("sidecar", "two-gpus", "init-only")

    node.wait("all have told", lambda: "==end" in node.node.log(node.pod("two-gpus"), "c"))
    init = node.node.log(node.pod("init-only"), "i")
    without = node.node.log(node.pod("init-only"), "c")
    assert "CUDA_DEVICE_MEMORY_LIMIT_0=450m" in init
    assert "CUDA_DEVICE_MEMORY_LIMIT" not in without
    node.delete_and_wait("init-only")
    told(node)
    node.delete_all()


def test_a_container_that_crashes_comes_back_with_the_same_slice(node: gpu_node.GpuNode) -> None:
    node.create(gpu_node.pod("crasher", gpu_node.container("c", 500, cores=7)))
    node.wait_running("crasher")

    crash(node, node.pod("crasher"))

    node.wait("it was restarted", lambda: restarts(node, "crasher") > 0)
    node.wait_running("crasher")
    told(node)
    node.delete_all()


def test_a_container_that_crashes_while_the_plugin_is_away_waits_for_it(node: gpu_node.GpuNode) -> None:
    node.create(gpu_node.pod("crasher", gpu_node.container("c", 500)))
    node.wait_running("crasher")

    node.plugin.kill()
    crash(node, node.pod("crasher"))
    node.wait("the kubelet refuses", lambda: "has been stopped" in str(node.pod("crasher")["status"]), 60)
    node.plugin.start()

    node.wait("it was restarted", lambda: restarts(node, "crasher") > 0)
    node.wait_running("crasher")
    told(node)
    node.delete_all()


def test_a_pod_of_somebody_else_is_not_started_and_says_why(node: gpu_node.GpuNode) -> None:
    """Bound past the scheduler: `kubectl describe pod` shows our text, verbatim."""
    body = gpu_node.pod("foreign", gpu_node.container("c", 500), nodeName=gpu_node.NODE)
    node.create(body)

    text = node.wait("it is refused", lambda: _waits_for(node.pod("foreign"), "CreateContainerConfigError"))

    assert "ALLOC_NO_RECORD: default/foreign has no record of GPUs" in text
    assert "Set schedulerName: hami-scheduler" in text
    node.wait("it has an event", lambda: node.events("AllocationFailed"))
    node.delete_all()


def _waits_for(pod: Any, reason: str) -> str:
    for one in pod["status"].get("containerStatuses", ()):
        waiting = one["state"].get("waiting", {})
        if waiting.get("reason") == reason:
            return str(waiting["message"])
    return ""


def test_after_a_restart_of_the_node_every_container_has_its_own(node: gpu_node.GpuNode) -> None:
    """All processes are gone, and the runtime's directory of specifications is empty; the kubelet comes first.

    A pod that the kubelet admits before the plugin is back fails for good, whatever the plugin does; its controller
    makes it again, as this test does.
    """
    bodies = {
        f"pod-{number}": gpu_node.pod(f"pod-{number}", gpu_node.container("c", 600 + number)) for number in range(6)
    }
    node.create(*bodies.values())
    node.wait_running(*bodies)
    before = [node.pod(name) for name in bodies]

    node.plugin.kill()
    node.node.kill_kubelet()
    for path in node.node.cdi_dir.iterdir():
        path.unlink()
    for pod in before:
        crash(node, pod)
    node.plugin.reboot("next")
    node.node.start_kubelet()
    node.plugin.start()
    node.plugin.wait_ready()

    failed = node.wait_settled(*bodies, restarted=True)
    node.delete_and_wait(*failed)
    node.create(*(bodies[name] for name in failed))
    node.wait_running(*bodies)
    told(node)


def test_containers_that_outlive_a_restart_of_kubelet_and_plugin_have_their_specification_again(
    node: gpu_node.GpuNode,
) -> None:
    """The directory was emptied in between; when they crash later, they come back with their own slice."""
    names = [pod["metadata"]["name"] for pod in node.pods()]
    node.plugin.kill()
    node.node.kill_kubelet()
    for path in node.node.cdi_dir.iterdir():
        path.unlink()
    node.node.start_kubelet()
    node.plugin.start()
    node.plugin.wait_ready()

    for name in names:
        crash(node, node.pod(name))

    node.wait("all were restarted", lambda: all(restarts(node, name) > 0 for name in names), 120)
    node.wait_running(*names)
    told(node)
    node.delete_all()


def test_a_plugin_that_ends_after_its_successor_has_registered_takes_nothing_off_the_node(
    node: gpu_node.GpuNode, tmp_path: pathlib.Path
) -> None:
    """The kubelet then closes the successor's connection; on a busy machine it notices a plain restart as late.

    The node offered no GPU from then on, so that kube-scheduler ruled it out for every pod.
    """
    successor = plugin_process.PluginProcess(tmp_path, node.driver, node.plugin_flags)
    with plugin_process.running(successor):
        node.wait("it is registered", lambda: successor.logged("registered"))
        node.plugin.kill()
        node.wait("it registers again", lambda: successor.logged("registering again"))
        node.create(gpu_node.pod("next", gpu_node.container("c", 500)))
        node.wait_running("next")
        node.delete_all()
    node.plugin.start()
    node.plugin.wait_ready()
    node.wait("slots are offered", lambda: node.allocatable() == 40)


@pytest.fixture(scope="module")
def deaf(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_node.GpuNode]:
    """A node whose runtime ignores what CDI says: containerd 2.4 always listens, so runc is kept from hearing."""
    folder = tmp_path_factory.mktemp("node")
    runc = tmp_path_factory.mktemp("bin") / "runc"
    runc.write_text(DEAF_RUNC.format(runc=shutil.which("runc")))
    runc.chmod(0o755)
    with gpu_node.running(folder, 2, "--identity", "cdi", "--forget-after", "2", runc=runc) as site:
        yield site


DEAF_RUNC = """#!/bin/sh
for argument; do
  if [ "$last" = --bundle ]; then
    sed -i -E -e 's/"(HAMI_|CUDA_|NVIDIA_)[A-Z_0-9]*=[^"]*",?//g' \\
      -e 's#\\{{"destination":"/run/hami.io/[^}}]*\\}},?##g' -e 's/,]/]/g' "$argument/config.json"
  fi
  last=$argument
done
exec {runc} "$@"
"""


def test_a_runtime_that_ignores_cdi_is_found_out(deaf: gpu_node.GpuNode) -> None:
    deaf.create(gpu_node.pod("ignored", gpu_node.container("c", 700)))

    deaf.wait("it is found out", lambda: _told_of(deaf, "ALLOC_CDI_IGNORED"), 60)
    deaf.delete_all()


def test_specifications_and_caches_go_with_their_pods(deaf: gpu_node.GpuNode) -> None:
    deaf.create(gpu_node.pod("later", gpu_node.container("c", 701)))  # The kubelet forgets pods when it gives ids out.
    deaf.wait_running("later")

    deaf.wait("one specification is left", lambda: len(list(deaf.node.cdi_dir.glob("hami-vgpu_*"))) == 1, 60)
    containers = deaf.plugin.hook_path / "vgpu" / "containers"
    deaf.wait("one cache is left", lambda: len(list(containers.iterdir())) == 1, 60)
    deaf.delete_all()


def test_without_cdi_no_container_starts_with_anothers_slice(
    programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Eight at once, matched; whoever was answered another's record does not start, and says why."""
    with gpu_node.running(tmp_path_factory.mktemp("node"), 2, "--identity", "match", "--delivery", "envvar") as node:
        names = [f"match-{number}" for number in range(8)]
        node.create(*(gpu_node.pod(name, gpu_node.container("c", 800 + int(name[6:]))) for name in names))
        node.wait("all are decided", lambda: all(_decided(node.pod(name)) for name in names), 90)
        for name in names:
            if not _runs(node.pod(name)):
                assert "ALLOC_WRONG_MATCH" in str(node.pod(name)["status"])
                node.delete_and_wait(name)
        node.wait("all have told", lambda: not any("nothing" in one for one in node.mismatches(folders=False)), 60)
        assert node.mismatches(folders=False) == []


def test_with_cdi_off_in_containerd_no_container_starts_green_and_empty(
    programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As containerd 1.7 is by default: the answer to the kubelet carries the device nodes of the host's files."""
    with gpu_node.running(tmp_path_factory.mktemp("node"), 2, "--identity", "match", has_cdi=False) as node:
        node.create(gpu_node.pod("served", gpu_node.container("c", 700)))
        node.wait_running("served")

        shown = node.node.log(node.pod("served"), "c")
        devices = shown.partition("==devices")[2].split()
        (uuid,) = records.decode_shares(node.pod("served")["metadata"]["annotations"][records.ALLOCATED], [True])[0]
        index = next(index for index, gpu in enumerate(node.driver.gpus) if gpu.uuid == uuid.uuid)
        assert {f"nvidia{index}", "nvidiactl"} <= set(devices)
        assert f"nvidia{1 - index}" not in devices
        assert node.mismatches(folders=False) == []


def _told_of(node: gpu_node.GpuNode, code: str) -> bool:
    return any(code in event["note"] for event in node.events("AllocationFailed"))


def _runs(pod: Any) -> bool:
    return any(one.get("started") for one in pod["status"].get("containerStatuses", ()))


def _decided(pod: Any) -> bool:
    return _runs(pod) or "ALLOC_WRONG_MATCH" in str(pod["status"])


def test_the_phase_of_a_pod_is_written_with_just_the_plugins_rights(node: gpu_node.GpuNode) -> None:
    node.create(gpu_node.pod("phase", gpu_node.container("c", 900)))
    node.wait_running("phase")

    node.wait(
        "the phase is written",
        lambda: node.pod("phase")["metadata"]["annotations"][records.BIND_PHASE] == records.PHASE_SUCCESS,
    )
    node.delete_all()
