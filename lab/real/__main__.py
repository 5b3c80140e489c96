"""Run real components: `python -m lab.real build`, or `python -m lab.real up DIR` for a cluster to use with kubectl.

`up --extender` is a cluster for `E2E_KUBECONFIG`, with our extender and a kube-scheduler that calls it.
"""

import argparse
import contextlib
import pathlib
import signal
import sys
import threading

from gpu_sharing.adapters import signals
from lab import extender_process
from lab.real import build, components, control_plane


def main() -> int:
    """Build, or run until SIGTERM or Ctrl-C. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.real", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build etcd, kube-apiserver, kube-scheduler and kubectl into the cache")
    up = commands.add_parser("up", help="run etcd and kube-apiserver until Ctrl-C")
    up.add_argument("folder", type=pathlib.Path, help="where files and logs go")
    up.add_argument("--extender", action="store_true", help="also run our extender, and a kube-scheduler that calls it")
    options = parser.parse_args()
    try:
        if options.command == "build":
            print(build.binaries())
            return 0
        stop = threading.Event()
        signals.act_on((signal.SIGTERM, signal.SIGINT), stop.set)
        options.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            plane = stack.enter_context(control_plane.running(options.folder.resolve()))
            if options.extender:
                log = plane.parts.folder / "extender.log"
                extender = stack.enter_context(extender_process.running(plane.kubeconfig("extender"), log))
                stack.enter_context(plane.scheduler(f"http://{extender.verbs}"))
            print(
                f"export KUBECONFIG={plane.kubeconfig('admin')}\n# kubectl: {plane.parts.binaries}/kubectl", flush=True
            )
            stop.wait()
    except (build.BuildFailed, components.NotReady, extender_process.ExtenderFailed) as failed:
        print(f"lab.real: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
