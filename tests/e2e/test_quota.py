"""Quotas of GPU memory on a real control plane: what `kubectl` users see, and what wakes their pods."""

from lab import gpus
from tests.e2e import site as sites
from tests.support import accounting

A100 = gpus.Model("NVIDIA A100-SXM4-40GB", 40_000)
MERGE = "application/merge-patch+json"
PATH = "/api/v1/namespaces/default/resourcequotas"


def _held_mib(site: sites.Site) -> int:
    return sum(mib for pod in site.pods() for held in accounting.devices(pod) for _, mib, _ in held)


def test_a_namespace_gets_what_its_quota_allows_and_the_rest_when_that_is_freed(own_site: sites.Site) -> None:
    """Percent counts as the MiB that it is, which only the scheduler knows; a freed or raised quota wakes who waits."""
    own_site.add_nodes(gpus.gpu_node("n", A100, 4))
    quota = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "ai-team"},
        "spec": {"hard": {"limits.nvidia.com/gpumem": "32000"}},
    }  # fmt: skip
    own_site.api("POST", PATH, quota)
    try:
        names = [f"p{number}" for number in range(6)]
        for name in names:
            own_site.create(own_site.pod_body(name, {"nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "20"}))

        def bound() -> list[str]:
            return [pod["metadata"]["name"] for pod in own_site.pods() if pod["spec"].get("nodeName")]

        def told() -> list[str]:
            return [note for name in names for note in own_site.events(name, "FailedScheduling")]

        sites.wait_for(lambda: len(bound()) == 4 and len(told()) >= 2, 60, lambda: f"{bound()} {told()}")
        assert _held_mib(own_site) == 32_000
        assert told()[0].splitlines() == [
            "0/1 nodes available: 1 quota exceeded",
            "    n: quota exceeded (namespace default): GPU memory requested 8000MB, left 0MB of 32000MB by ai-team",
        ]

        own_site.delete_pod(bound()[0])
        sites.wait_for(lambda: len(bound()) == 4, 60, lambda: f"{bound()}")
        assert _held_mib(own_site) == 32_000

        own_site.api("PATCH", f"{PATH}/ai-team", {"spec": {"hard": {"limits.nvidia.com/gpumem": "40Gi"}}}, MERGE)
        sites.wait_for(lambda: len(bound()) == 5, 60, lambda: f"{bound()}")
        assert _held_mib(own_site) == 40_000
    finally:
        own_site.api("DELETE", f"{PATH}/ai-team")
