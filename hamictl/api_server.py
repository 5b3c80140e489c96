"""Calls of the API server by a command: one client by its flags, and errors as sentences with a hint."""

import asyncio
import os
import pathlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from gpu_sharing.adapters import cluster_access, kubernetes
from gpu_sharing.core import errors
from hamictl import failures

T = TypeVar("T")


def call(
    kubeconfigs: Sequence[pathlib.Path],
    context: str,
    calls: Callable[[kubernetes.Client], Awaitable[T]],
    *,
    rights: str,
) -> T:
    """Return the result of calls with a client.

    Args:
        kubeconfigs: As of `cluster_access.files`; none in a pod.
        context: Of the kubeconfigs; empty for the current one.
        calls: Receives the client.
        rights: The rights that the calls need, for the hint where the API server refuses one.

    Raises:
        CommandFailed: There is no kubeconfig, no answer, or a refusal.
    """
    if not kubeconfigs and not cluster_access.is_pod(os.environ):
        raise failures.no_kubeconfig()

    async def run() -> T:
        async with kubernetes.Client(kubeconfigs, "hamictl", context) as client:
            return await calls(client)

    try:
        return asyncio.run(run())
    except errors.SettingsError as cause:
        raise failures.CommandFailed(str(cause)) from cause
    except (errors.Forbidden, errors.Invalid) as cause:
        raise failures.CommandFailed(str(cause), f"you need to {rights}") from cause
    except errors.NotFound as cause:
        raise failures.CommandFailed(str(cause), status=failures.NEGATIVE) from cause
    except errors.KubernetesError as cause:
        hint = "does kubectl get nodes work, with the same --kubeconfig and --context?"
        raise failures.CommandFailed(str(cause), hint) from cause
