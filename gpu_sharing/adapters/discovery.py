"""Which APIs a cluster has: some are alpha and off, others come with an add-on.

Source: k8s.io/apimachinery meta/v1, APIGroupList and APIResourceList; what `kubectl api-resources` asks.
"""

from gpu_sharing.adapters import kubernetes, objects


async def path_of(client: kubernetes.Client, api_group: str, resource: str) -> str | None:
    """The path under which all objects of a kind are listed, in the version that the API server likes best.

    Args:
        client: Of the API server.
        api_group: For example `resource.k8s.io`.
        resource: Plural name of the kind, for example `resourceslices`.

    Returns:
        The path, or None where the API server does not have that kind.

    Raises:
        KubernetesError: The API server does not say.
    """
    listed = await client.get("/apis", objects.APIGroupList)
    versions = [one for group in listed.groups or () if group.name == api_group for one in group.versions or ()]
    for version in versions:
        path = f"/apis/{version.group_version}"
        found = await client.get(path, objects.APIResourceList)
        if any(kind.name == resource for kind in found.resources or ()):
            return f"{path}/{resource}"
    return None
