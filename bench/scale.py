"""Memory of the extender, and its time from start to ready, at 5,000 nodes and 50,000 pods."""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

from bench import report
from lab import extender_process

TARGET_MIB = 500


def run(quick: bool) -> report.Report:
    nodes, pods = (100, 1000) if quick else (5_000, 50_000)
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = pathlib.Path(folder) / "kubeconfig"
        command = [sys.executable, "-m", "lab", "--nodes", str(nodes), "--pods", str(pods), "--kubeconfig-out"]
        lab = subprocess.Popen([*command, str(kubeconfig)], stdout=subprocess.PIPE, text=True)
        try:
            assert lab.stdout is not None
            json.loads(lab.stdout.readline())
            started = time.monotonic()
            with extender_process.running(kubeconfig, pathlib.Path(folder) / "extender.log") as extender:
                ready_seconds = time.monotonic() - started
                assert json.loads(extender.get("api", "/api/v1/cluster")[1])["pods_bound"] == pods
                resident_mib, peak_mib = _memory(extender.pid)
        finally:
            lab.terminate()
            lab.wait()
    missed = [] if peak_mib < TARGET_MIB else [f"{peak_mib:.0f} MiB, wanted under {TARGET_MIB} MiB"]
    return report.Report(
        "the extender at size",
        ["nodes", "GPUs", "pods", "start to ready, s", "resident, MiB", "peak, MiB"],
        [[nodes, nodes * 8, pods, ready_seconds, resident_mib, peak_mib]],
        {"start delay": "0 s (2 s by default, on top)", "API server": "the lab's, on the same machine"},
        missed,
    )


def _memory(pid: int) -> tuple[float, float]:
    """Return the resident memory now and at its maximum, in MiB."""
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) / 1024
    return found["VmRSS"], found["VmHWM"]
