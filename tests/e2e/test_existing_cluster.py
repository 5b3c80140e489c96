"""The tests run on a cluster that is there already, and leave it as they found it."""

from tests.e2e import site as sites
from tests.e2e import test_kinds_of_pods


def test_a_cluster_of_somebody_else_is_used_and_left_as_it_was(own_site: sites.Site) -> None:
    """What `E2E_KUBECONFIG` names: pods and fake nodes come and go, everything else stays."""
    assert own_site.plane is not None
    kubeconfig = str(own_site.plane.kubeconfig("admin"))
    theirs = [namespace["metadata"]["name"] for namespace in own_site.api.pages("/api/v1/namespaces")]

    with sites.existing(kubeconfig) as site:
        test_kinds_of_pods.test_every_kind_of_hami_pod_lands_with_its_record_and_event(site)

    left = [space for space in own_site.api.pages("/api/v1/namespaces") if "deletionTimestamp" not in space["metadata"]]
    assert [namespace["metadata"]["name"] for namespace in left] == theirs
    assert own_site.api.pages("/api/v1/nodes") == []
    assert own_site.api.pages("/api/v1/pods") == []
