"""The settings of the installation in a cluster: the names of its GPU resources."""

import contextlib
import io
import sys

import msgspec

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors, requests
from scheduler_extender import settings

_NAME_FLAGS = ("--resource-", "--default-")


class _Container(msgspec.Struct):
    name: str = ""
    args: list[str] | None = None


class _PodSpec(msgspec.Struct):
    containers: list[_Container] | None = None


class _Template(msgspec.Struct):
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)


class _Spec(msgspec.Struct):
    template: _Template = msgspec.field(default_factory=_Template)


class Deployment(msgspec.Struct):
    """The Deployment of the extender, with the fields that are read."""

    spec: _Spec = msgspec.field(default_factory=_Spec)


async def resource_names(client: kubernetes.Client, namespace: str) -> requests.ResourceNames:
    """Return the names by the extender's flags; where its Deployment cannot be read, warn and return the defaults."""
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/hami-scheduler"
    try:
        return names_of(await client.get(path, Deployment))
    except (errors.KubernetesError, msgspec.MsgspecError) as cause:
        names = requests.ResourceNames()
        print(
            f"hamictl: the names of the GPU resources are not known, {names.count} is assumed: {cause}\n"
            "  set --system-namespace to the extender's namespace, or --extender URL",
            file=sys.stderr,
        )
        return names


def names_of(deployment: Deployment) -> requests.ResourceNames:
    """Return the names by the flags of the container `extender`."""
    for container in deployment.spec.template.spec.containers or ():
        flags = [flag for flag in container.args or () if flag.startswith(_NAME_FLAGS) and "=" in flag]
        if container.name == "extender" and flags:
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    return settings.parse(flags, {}).resource_names
            except (errors.SettingsError, SystemExit):
                break  # Of another version.
    return requests.ResourceNames()
