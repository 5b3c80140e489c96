"""Fake monitors for a cluster without GPUs: each container uses a part of its allocation.

The WebUI finds them like real ones, by the EndpointSlices of a Service: one address of this machine's loopback a node.
"""

import contextlib
import http.server
import itertools
import json
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from lab import cluster, kinds

SERVICE = "hami-monitor"
_USED_PERCENT = (62, 91, 35, 108, 77)
"""The used part of the allocation, by the pod's position; one pod exceeds its allocation."""


def _exposition(api: str, node: str) -> str:
    """Return the metrics of a node, with the real monitor's names."""

    def read(what: str) -> list[Any]:
        with urllib.request.urlopen(f"http://{api}/api/v1/{what}", timeout=5) as answer:
            found: list[Any] = json.load(answer)[what]
            return found

    lines: list[str] = []
    (mine,) = (one for one in read("nodes") if one["name"] == node)
    shares = [
        (share["uuid"], pod, share["memory_mib"] * _USED_PERCENT[turn % len(_USED_PERCENT)] // 100)
        for turn, pod in enumerate(read("pods"))
        for share in pod["gpus"]
    ]
    for gpu in mine["gpus"]:
        labels = f'node="{node}",device="{gpu["uuid"]}"'
        held = [(pod, used) for uuid, pod, used in shares if uuid == gpu["uuid"]]
        lines.append(f"hami_gpu_memory_used_bytes{{{labels}}} {sum(used for _, used in held) << 20}")
        lines.append(f"hami_gpu_utilization_percent{{{labels}}} {min(30 * len(held), 95)}")
        lines += [
            f'hami_vgpu_memory_usage_bytes{{namespace="{pod["namespace"]}",pod="{pod["name"]}",container="main",'
            f'device="{gpu["uuid"]}"}} {used << 20}'
            for pod, used in held
        ]
    return "".join(f"{line}\n" for line in lines)


@contextlib.contextmanager
def serving(lab: cluster.Cluster, nodes: Sequence[str]) -> Iterator[str]:
    """Run them until the context ends, and yield their Service for `--monitor-service`."""

    def handler(node: str) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = _exposition(lab.extender.api, node).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Suppress the log line of each request."""

        return Handler

    with contextlib.ExitStack() as stack:
        port, endpoints = 0, []
        for turn, node in zip(itertools.count(1), nodes):
            address = f"127.0.1.{turn}"
            server = stack.enter_context(http.server.ThreadingHTTPServer((address, port), handler(node)))
            port = server.server_address[1]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            endpoints.append({"addresses": [address], "nodeName": node})
        lab.create(
            kinds.BY_PATH["discovery.k8s.io", "v1", "endpointslices"],
            {
                "metadata": {
                    "name": SERVICE,
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": SERVICE},
                },
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [{"port": port}],
            },
        )
        yield f"default/{SERVICE}:{port}"
