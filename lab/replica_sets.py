"""The controller of ReplicaSets: as many pods as each wants, from its template; one that is evicted is made again.

Source: k8s.io/kubernetes pkg/controller/replicaset: a pod that is being deleted or has ended does not count, names are
the set's with five characters, and the set is the pod's controller.
"""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from lab import api_server, kinds, pods, store

_EVERY_SECONDS = 0.1
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
"""Source: k8s.io/apimachinery, pkg/util/rand: no vowels, so that no words arise."""
_MOST_REPLICAS = 100
REPLICA_SETS = kinds.BY_PATH["apps", "v1", "replicasets"]


async def run(server: api_server.ApiServer) -> None:
    """Serve all ReplicaSets until cancelled."""
    while True:
        await asyncio.sleep(_EVERY_SECONDS)
        sets = list(server.store.all(REPLICA_SETS))
        if not sets:
            continue
        present = [pod for _, pod in server.store.all(kinds.PODS)]
        for (namespace, _), one in sets:
            try:
                _serve(server.store, namespace, one, present)
            except store.ApiError:
                continue  # Of this set alone, and tried again.


def _serve(keep: store.Store, namespace: str, one: store.Object, present: list[store.Object]) -> None:
    own = [pod for pod in present if _controller(pod) == one["metadata"]["uid"] and _lives(pod)]
    wanted = min(int(one["spec"].get("replicas", 1)), _MOST_REPLICAS)
    for _ in range(wanted - len(own)):
        keep.create(kinds.PODS, namespace, _made(one))
    for pod in own[wanted:]:
        key = (namespace, pod["metadata"]["name"])
        keep.mark_deleted(kinds.PODS, key, keep.get(kinds.PODS, *key), 1)


def _controller(pod: Mapping[str, Any]) -> str:
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def _lives(pod: Mapping[str, Any]) -> bool:
    return not pod["metadata"].get("deletionTimestamp") and pod["status"].get("phase") not in ("Failed", "Succeeded")


def _made(one: store.Object) -> store.Object:
    template, name = one["spec"]["template"], one["metadata"]["name"]
    owner = {
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": one["metadata"]["uid"], "controller": True,
        "blockOwnerDeletion": True,
    }  # fmt: skip
    suffix = "".join(secrets.choice(_LETTERS) for _ in range(5))
    metadata = {**template.get("metadata", {}), "name": f"{name}-{suffix}", "ownerReferences": [owner]}
    return pods.with_defaults({"metadata": metadata, "spec": template["spec"]}, {})
