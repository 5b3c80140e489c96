"""What the cluster's GPUs could give if they were all free: to warn of requests that no wait will cure."""

from gpu_sharing.core import requests
from scheduler_extender.fleet.arrays import Arrays


def beyond(arrays: Arrays, request: requests.PodRequest) -> tuple[str, ...]:
    """Why no node as it is known now can ever take the pod; empty where one could, or where none is known."""
    count = arrays.columns
    exists = arrays.exists[:, :count]
    if not exists.any():
        return ()
    types = arrays.types.matching(request.selectors.accept_type)
    among = exists & types[arrays.type_id[:, :count]]
    if not among.any():
        known = ", ".join(sorted(name for name in arrays.types.words if name))
        return (f"the pod cannot be placed: no GPU here has a type that the pod accepts; there are {known}",)
    largest_mib, most_gpus = int(arrays.memory_total[:, :count][among].max()), int(among.sum(0).max())
    found = []
    for ask in request.containers:
        if ask and ask.memory_mib > largest_mib:
            found.append(
                f"{ask.memory_mib} MiB are asked of one GPU; the largest that it accepts has {largest_mib} MiB"
            )
        if ask and ask.gpus > most_gpus:
            found.append(f"{ask.gpus} GPUs are asked for one container; no node has more than {most_gpus} it accepts")
    return tuple(dict.fromkeys(f"the pod cannot be placed: {one}" for one in found))
