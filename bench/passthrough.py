"""An extender that accepts every node: the upper limit of any extender in Python on the same machine.

Filter answers the names that it received, prioritize answers zeros, bind posts a plain Binding. Everything else
(server, JSON, connections) is what our extender uses.
"""

import argparse
import pathlib
import socket

import orjson
import uvicorn
import uvloop

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors
from scheduler_extender.serve import server


class PassThrough:
    """The ASGI application."""

    def __init__(self, client: kubernetes.Client) -> None:
        self._client = client
        self._bodies = server.BodyBudget(2 * server.MOST_BODY_BYTES)

    async def __call__(self, scope: server.Scope, receive: server.Receive, send: server.Send) -> None:
        if scope["type"] != "http":
            return
        async with self._bodies.reading(receive, server.MOST_BODY_BYTES) as read:
            body = orjson.loads(read or b"{}")
        answer: object
        match scope["path"].rpartition("/")[2]:
            case "filter":
                answer = {"NodeNames": body["NodeNames"], "Error": ""}
            case "prioritize":
                answer = [{"Host": name, "Score": 0} for name in body["NodeNames"]]
            case "bind":
                answer = {"Error": await self._bind(body)}
            case _:
                answer = {}
        await server.answer(send, 200, orjson.dumps(answer))

    async def _bind(self, body: dict[str, str]) -> str:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": body["PodName"], "namespace": body["PodNamespace"], "uid": body["PodUID"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": body["Node"]},
        }
        path = f"/api/v1/namespaces/{body['PodNamespace']}/pods/{body['PodName']}/binding"
        try:
            await self._client.post(path, orjson.dumps(binding))
        except errors.KubernetesError as refused:
            return str(refused)
        return ""


async def serve(kubeconfig: pathlib.Path, port: int) -> None:
    async with kubernetes.Client(kubeconfig, "pass-through") as client:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        config = uvicorn.Config(
            PassThrough(client),
            loop="uvloop",
            http="httptools",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=120,
        )
        await uvicorn.Server(config).serve(sockets=[sock])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=pathlib.Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvloop.run(serve(options.kubeconfig, options.port))
