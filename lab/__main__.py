"""Run the lab's API server alone, with fake GPU nodes: `python -m lab --nodes 10`. For kubectl and benchmarks."""

import argparse
import json
import pathlib
import signal
import sys
import threading
import time

from gpu_sharing.adapters import signals
from gpu_sharing.core import allocations, identifiers, records
from lab import api_server, gpus, kinds, pods, store

_GPUS_PER_NODE = 8


def bound_pod(index: int, node: str, gpu: int) -> store.Object:
    """Return a running pod that holds a tenth of the cores and 8000 MiB of one of its node's GPUs."""
    uuid = gpus.gpu_uuid(node, gpu % _GPUS_PER_NODE)
    shares = ((allocations.Share(uuid, 8000, 10),),)
    annotations = records.pod_annotations(
        shares, identifiers.NodeName(node), int(time.time()), identifiers.DecisionId(f"seed-{index}")
    )
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "8000", "nvidia.com/gpucores": "10"}
    body = {
        "metadata": {"name": f"seed-{index}", "annotations": {**annotations, records.BIND_PHASE: "success"}},
        "spec": {
            "schedulerName": "hami-scheduler",
            "nodeName": node,
            "containers": [{"name": "main", "image": "train:1", "resources": {"limits": limits}}],
        },
    }
    pod = pods.with_defaults(body, {})
    return {**pod, "status": {"phase": "Running"}}


def seed(keep: store.Store, nodes: int, pod_count: int) -> None:
    """Fill a store with GPU nodes, and with pods that hold GPUs."""
    names = [f"node-{index:05d}" for index in range(nodes)]
    for name in names:
        keep.create(kinds.NODES, "", gpus.gpu_node(name, gpus.A100, _GPUS_PER_NODE))
    for index in range(pod_count):
        keep.create(kinds.PODS, "default", bound_pod(index, names[index % nodes], index // nodes))


def main() -> int:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.add_argument("--bind", default="127.0.0.1:0", metavar="HOST:PORT", help="default: a free loopback port")
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="nodes with 8 GPUs each (default 3)")
    parser.add_argument("--pods", type=int, default=0, metavar="M", help="pods that hold GPUs already (default 0)")
    parser.add_argument("--kubeconfig-out", type=pathlib.Path, metavar="FILE", help="where to write a kubeconfig")
    options = parser.parse_args()
    host, _, port = options.bind.rpartition(":")
    if not port.isdigit():
        parser.error(f"--bind {options.bind!r} is not HOST:PORT")
    stop = threading.Event()
    signals.act_on((signal.SIGTERM, signal.SIGINT), stop.set)
    with api_server.running(host or "127.0.0.1", int(port)) as server:
        server.call(lambda: seed(server.app.store, options.nodes, options.pods))
        if options.kubeconfig_out:
            server.write_kubeconfig(options.kubeconfig_out)
        ready = {"event": "listening", "url": server.url, "nodes": options.nodes, "pods": options.pods}
        print(json.dumps(ready), flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
