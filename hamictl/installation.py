"""What an installation of the chart says of itself: under which names its containers ask for GPUs."""

import msgspec

from gpu_sharing.adapters import flags, kubernetes
from gpu_sharing.core import errors, requests

_DEPLOYMENT = "hami-scheduler"


class _Container(msgspec.Struct, gc=False):
    args: list[str] | None = None


class _PodSpec(msgspec.Struct, gc=False):
    containers: list[_Container] | None = None


class _Template(msgspec.Struct, gc=False):
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)


class _DeploymentSpec(msgspec.Struct, gc=False):
    template: _Template = msgspec.field(default_factory=_Template)


class _Deployment(msgspec.Struct, gc=False):
    spec: _DeploymentSpec = msgspec.field(default_factory=_DeploymentSpec)


async def resource_names(client: kubernetes.Client, namespace: str) -> requests.ResourceNames:
    """Return the names that the extender of the cluster was started with; the usual ones where it is not to be seen.

    Args:
        client: Of the cluster.
        namespace: Where the chart is installed.
    """
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{_DEPLOYMENT}"
    try:
        found = await client.get(path, _Deployment)
    except (errors.KubernetesError, msgspec.MsgspecError):
        return requests.ResourceNames()
    arguments = [one for container in found.spec.template.spec.containers or () for one in container.args or ()]
    given = dict(one[2:].split("=", 1) for one in arguments if one.startswith("--") and "=" in one)
    return flags.resource_names(given.get)
