"""Why the extender has no pod of a name: a typo, another namespace, a pod that requests no GPU, or one that has ended.

The extender knows only pods that request GPUs; the API server knows the others, where the caller may read them.
"""

import argparse
import asyncio
from urllib import parse

import msgspec

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import errors, requests
from hamictl import failures, flags, installation
from scheduler_extender.cluster import from_objects

_TIMEOUT_SECONDS = 5.0
_MOST_NAMESPACES = 5


class _Pods(msgspec.Struct):
    items: list[objects.Pod] | None = None


def refusal(
    options: argparse.Namespace,
    namespace: str,
    name: str,
    refused: failures.CommandFailed,
    *,
    names: requests.ResourceNames | None,
) -> failures.CommandFailed:
    """Return what to print instead of the extender's refusal; the same where the API server knows no more."""
    if refused.status != failures.NEGATIVE:
        return refused
    try:
        sentence, hint = asyncio.run(_looked_up(options, namespace, name, names))
    except (errors.GpuSharingError, msgspec.MsgspecError, OSError):
        return refused  # The caller reaches the extender alone, or may not read pods.
    return failures.CommandFailed(sentence, hint, failures.NEGATIVE) if sentence else refused


async def _looked_up(
    options: argparse.Namespace, namespace: str, name: str, known: requests.ResourceNames | None
) -> tuple[str, str]:
    """Return a sentence and a hint about a pod that the extender does not know; empty where there is none."""
    async with kubernetes.Client(flags.kubeconfigs(options), "hamictl", options.context) as client:
        names = known or await installation.resource_names(client, options.system_namespace)
        path = f"/api/v1/namespaces/{parse.quote(namespace, safe='')}/pods/{parse.quote(name, safe='')}"
        try:
            return about(await client.get(path, objects.Pod, _TIMEOUT_SECONDS), names)
        except errors.NotFound:
            query = parse.urlencode({"fieldSelector": f"metadata.name={name}", "limit": _MOST_NAMESPACES})
            namesakes = await client.get(f"/api/v1/pods?{query}", _Pods, _TIMEOUT_SECONDS)
    others = sorted({pod.metadata.namespace for pod in namesakes.items or ()})
    if not others:
        return "", ""
    sentence = f"there is no pod {namespace}/{name}; it exists in namespace {', '.join(others)}"
    return sentence, f"hamictl explain {others[0]}/{name}"


def about(pod: objects.Pod, names: requests.ResourceNames) -> tuple[str, str]:
    """Return why a pod that exists is not among those that request GPUs, and what to do. Pure."""
    if pod.has_ended and pod.status is not None:
        return f"{pod.key} has ended ({pod.status.phase}), so it neither waits nor holds GPUs", ""
    if from_objects.is_ours(pod, names):
        return f"{pod.key} requests GPUs, and the extender has not seen it yet", "try again in some seconds"
    words = requests.unknown_words((*pod.init_containers, *pod.containers), pod.annotations, names)
    hint = "; ".join(words) or f"write {names.count}: 1 under resources.limits of a container"
    return f"{pod.key} exists and requests no GPU", hint
