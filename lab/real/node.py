"""A real kubelet and containerd on this machine, as root, as the node of a `control_plane`.

They and all containers run in a separate mount and PID namespace, whose init reaps processes: when it ends, all
processes and mounts in it end. The folder's `kubelet` lies over `/var/lib/kubelet` there, because the kubelet's device
plugin directory is a constant; from outside it is used directly.

Source: kubelet and containerd 2 configuration references. Tried on cgroup v1 with the cgroupfs driver.
"""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from lab.real import build, components, control_plane, images

_PROGRAMS = {"runc": "runc", "unshare": "util-linux", "nsenter": "util-linux", "mount": "mount"}
PODS = "10.213.0.0/16"
"""The network of the pods."""
_CNI = pathlib.Path("/usr/lib/cni")
_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_CGROUP_SECONDS = 10.0
"""Seconds in which killed processes must end."""
_FORWARDING = pathlib.Path("/proc/sys/net/ipv4/ip_forward")
_INIT = """
mount --make-rshared /
mkdir -p /var/lib/kubelet /run/containerd /var/log/containers
mount --bind {folder}/kubelet /var/lib/kubelet
mount --bind {folder}/run /run/containerd
mount --bind {folder}/links /var/log/containers
touch {folder}/namespace-ready
exec {folder}/images/pause
"""


class Node:
    """A running node.

    Attributes:
        kubelet_dir: The kubelet's directory, for a device plugin.
        cdi_dir: Where containerd looks for device specifications.
    """

    def __init__(
        self, plane: control_plane.ControlPlane, runc: str, nvidia_runtime: str = "", *, has_cdi: bool = True
    ) -> None:
        self._plane = plane
        self._nvidia_runtime = nvidia_runtime
        self._has_cdi = has_cdi
        self._parts = plane.parts
        self._folder = plane.parts.folder
        self._runc = runc
        self._holder: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._forwarding = _FORWARDING.read_text()
        # Of its own: a kubelet ends what it finds under its root and does not know.
        self._cgroup = f"lab-{os.getpid()}-{secrets.token_hex(3)}"
        self.kubelet_dir = self._folder / "kubelet"
        self.cdi_dir = self._folder / "cdi"

    def start(self) -> None:
        """Start containerd and the kubelet, and wait until the node is ready for pods.

        Raises:
            BuildFailed: A program is missing here.
            NotReady: They do not come up.
        """
        _demand_programs()
        for name in ("kubelet", "cdi", "run", "links", "logs", "images", "cni"):
            (self._folder / name).mkdir()
        archives = images.make(self._folder / "images")
        self._make_cgroups()
        self._hold_namespaces()
        self._write_containerd()
        self._write_kubelet()
        self.start_containerd()
        for archive in archives:
            self.import_image(archive)
        self.start_kubelet()
        path = f"/api/v1/nodes/{control_plane.NODE_NAME}"
        # No controller manager runs here that would take the taint of a new node away.
        self._plane.api("PATCH", path, {"spec": {"taints": None}}, "application/merge-patch+json")

    def import_image(self, archive: pathlib.Path, name: str = "") -> None:
        """Make an image known to containerd.

        Args:
            archive: It, as `docker save` or an OCI layout writes it.
            name: What pods call it, where the archive does not name it.

        Raises:
            NotReady: containerd does not accept it.
        """
        named = ("--index-name", name) if name else ()
        done = self._ctr("-n", "k8s.io", "images", "import", "--local", *named, str(archive))
        if done.returncode:
            raise components.NotReady(f"containerd does not take an image: {done.stdout!r}")

    def start_containerd(self) -> None:
        """Start containerd and wait until it answers."""
        self._parts.start("containerd", "-c", self._folder / "containerd.toml", within=self.within())
        self._parts.wait("containerd", lambda: self._ctr("version").returncode == 0)

    def kill_containerd(self, number: int = signal.SIGKILL) -> None:
        """End containerd; containers go on, by their shims."""
        self._parts.end("containerd", number)

    def start_kubelet(self) -> None:
        """Start the kubelet and wait until its node is Ready."""
        begun = time.time()
        self._parts.start(
            "kubelet", "--config", self._folder / "kubelet.json", "--kubeconfig", self._plane.kubeconfig("node"),
            "--root-dir", "/var/lib/kubelet", "--cert-dir", self._folder / "certs-kubelet",
            "--hostname-override", control_plane.NODE_NAME, within=self.within(),
        )  # fmt: skip
        self._parts.wait("kubelet", lambda: self._is_ready(begun))

    def kill_kubelet(self, number: int = signal.SIGKILL) -> None:
        """End the kubelet; containers go on."""
        self._parts.end("kubelet", number)

    def within(self) -> list[str]:
        """The command that starts another one in the node's namespaces."""
        return ["nsenter", "-t", str(self._init), "-m", "-p", "--"]

    def log(self, pod: dict[str, Any], container: str) -> str:
        """What a container wrote last, as the kubelet keeps it."""
        metadata = pod["metadata"]
        folder = self._folder / "logs" / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}" / container
        files = sorted(folder.glob("*.log"), key=lambda path: int(path.stem))
        # Each line is: time, stream, flags, text.
        lines = files[-1].read_text().splitlines() if files else []
        return "\n".join(line.split(" ", 3)[3] for line in lines)

    def stop(self) -> None:
        """End everything, and remove all processes, mounts and cgroups."""
        for name in ("kubelet", "containerd"):
            self._parts.end(name)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        _FORWARDING.write_text(self._forwarding)  # The network plugin sets it.
        deadline = time.monotonic() + _CGROUP_SECONDS
        while self._remove_cgroups() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _remove_cgroups(self) -> bool:
        """Returns whether some are left, because their processes are still ending."""
        for top in self._cgroup_folders():
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    pathlib.Path(path).rmdir()
        return any(top.exists() for top in self._cgroup_folders())

    def _is_ready(self, since: float) -> bool:
        node: Any = self._plane.api("GET", f"/api/v1/nodes/{control_plane.NODE_NAME}")
        for condition in node["status"].get("conditions", ()):
            if condition["type"] == "Ready" and condition["status"] == "True":
                heard = time.mktime(time.strptime(condition["lastHeartbeatTime"], "%Y-%m-%dT%H:%M:%SZ"))
                return heard - time.timezone >= int(since)
        return False

    def _ctr(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [*self.within(), str(self._parts.binaries / "ctr"), "-a", str(self._folder / "containerd.sock")]
        return subprocess.run([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def _hold_namespaces(self) -> None:
        script = _INIT.format(folder=self._folder)
        command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        pathlib.Path("/var/lib/kubelet").mkdir(parents=True, exist_ok=True)
        with (self._folder / "namespaces.log").open("ab") as log:
            self._holder = subprocess.Popen(
                [*command, "sh", "-e", "-c", script], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                preexec_fn=components.die_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + 10
        while not (self._folder / "namespace-ready").exists():
            if time.monotonic() > deadline or self._holder.poll() is not None:
                said = (self._folder / "namespaces.log").read_text()
                raise components.NotReady(f"no mount and PID namespace can be made (needs root): {said}")
            time.sleep(0.02)
        pid = self._holder.pid
        self._init = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def _cgroup_folders(self) -> list[pathlib.Path]:
        tops = [_CGROUPS] if (_CGROUPS / "cgroup.controllers").exists() else list(_CGROUPS.iterdir())
        return [top / self._cgroup for top in tops if top.is_dir() and (top / "cgroup.procs").exists()]

    def _make_cgroups(self) -> None:
        """Create the kubelet's root in every v1 hierarchy; a new cpuset starts empty and must be filled."""
        for folder in self._cgroup_folders():
            folder.mkdir(exist_ok=True)
            if folder.parent.name == "cpuset":
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (folder / name).write_text((folder.parent / name).read_text())

    def _write_containerd(self) -> None:
        folder = self._folder
        network = {"type": "ptp", "ipMasq": False, "ipam": {
            "type": "host-local", "dataDir": str(folder / "addresses"), "subnet": PODS,
            "routes": [{"dst": "0.0.0.0/0"}],
        }}  # fmt: skip
        (folder / "cni" / "10-lab.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "lab", "plugins": [network]})
        )
        (folder / "containerd.toml").write_text(f"""version = 3
root = "{folder}/containerd-root"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{images.PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  enable_cdi = {str(self._has_cdi).lower()}
  cdi_spec_dirs = ["{self.cdi_dir}"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{_CNI}"]
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{self._runc}"
      SystemdCgroup = false
{self._nvidia_handler()}""")

    def _nvidia_handler(self) -> str:
        """The runtime handler of the RuntimeClass `nvidia`, as nvidia-ctk writes it."""
        if not self._nvidia_runtime:
            return ""
        table = '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia'
        return f"""  {table}]
    runtime_type = "io.containerd.runc.v2"
    {table}.options]
      BinaryName = "{self._nvidia_runtime}"
      SystemdCgroup = false
"""

    def _write_kubelet(self) -> None:
        on_v1 = not (_CGROUPS / "cgroup.controllers").exists()
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            **({"failCgroupV1": False} if on_v1 else {}), "failSwapOn": False, "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}", "cgroupsPerQOS": True, "enforceNodeAllocatable": [],
            "containerRuntimeEndpoint": f"unix://{self._folder}/containerd.sock", "address": "127.0.0.1",
            "port": components.free_port(), "healthzPort": components.free_port(), "readOnlyPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"}, "podLogsDir": str(self._folder / "logs"), "maxPods": 120,
            "registryPullQPS": 0, "serializeImagePulls": False, "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "2s", "nodeStatusReportFrequency": "2s", "syncFrequency": "10s",
        }  # fmt: skip
        (self._folder / "kubelet.json").write_text(json.dumps(config, indent=1))


def _demand_programs() -> None:
    missing = [package for name, package in _PROGRAMS.items() if shutil.which(name) is None]
    if not (_CNI / "ptp").exists():
        missing.append("containernetworking-plugins")
    if os.geteuid() != 0:
        raise build.BuildFailed("a real kubelet needs root")
    if missing:
        raise build.BuildFailed(f"a real node needs more programs: apt install {' '.join(sorted(set(missing)))}")


@contextlib.contextmanager
def running(
    plane: control_plane.ControlPlane,
    runc: pathlib.Path | None = None,
    nvidia_runtime: pathlib.Path | None = None,
    *,
    has_cdi: bool = True,
) -> Iterator[Node]:
    """Run a node until the context ends.

    Args:
        plane: Whose node it is.
        runc: What containerd runs in place of runc.
        nvidia_runtime: What the runtime handler `nvidia` runs, where the node has one.
        has_cdi: Whether containerd resolves CDI names; 1.7 does not as it comes.

    Raises:
        BuildFailed: A program is missing here.
        NotReady: It does not come up.
    """
    node = Node(plane, str(runc or shutil.which("runc")), str(nvidia_runtime or ""), has_cdi=has_cdi)
    try:
        node.start()
        yield node
    finally:
        node.stop()
