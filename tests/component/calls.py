"""How tests call an extender and the API server beside it."""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

from lab import api_server, extender_process

LIMITS = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}
PODS = "/api/v1/namespaces/default/pods"


def raw(
    extender: extender_process.ExtenderProcess, verb: str, body: bytes, method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(extender.verbs, timeout=60)
    try:
        connection.request(method, f"/{verb}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally:
        connection.close()


def call(extender: extender_process.ExtenderProcess, verb: str, body: Any) -> Any:
    status, answer = raw(extender, verb, json.dumps(body).encode())
    assert status == 200, answer
    return answer


def create(server: api_server.Running, name: str, limits: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "i", "resources": {"limits": LIMITS if limits is None else limits}}]
    body = {"metadata": {"name": name}, "spec": {"schedulerName": "hami-scheduler", "containers": containers, **spec}}
    made: dict[str, Any] = server.request("POST", PODS, body)
    return made


def bind(extender: extender_process.ExtenderProcess, pod: dict[str, Any], node: str) -> str:
    metadata = pod["metadata"]
    body = {"PodName": metadata["name"], "PodNamespace": "default", "PodUID": metadata["uid"], "Node": node}
    error: str = call(extender, "bind", body)["Error"]
    return error


def filtered(extender: extender_process.ExtenderProcess, pod: dict[str, Any], *names: str) -> dict[str, Any]:
    answer: dict[str, Any] = call(extender, "filter", {"Pod": pod, "Nodes": None, "NodeNames": list(names)})
    return answer


def read(extender: extender_process.ExtenderProcess, path: str) -> Any:
    status, body = extender.get("api", f"/api/v1/{path}")
    assert status == 200, body
    return json.loads(body)


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")
