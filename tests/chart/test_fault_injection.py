"""The fault injection service in the chart: off by default, with its own accounts and few permissions."""

from typing import Any

from fault_injector import settings
from tests.chart import rendering


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


def ours(*values: str) -> list[dict[str, Any]]:
    arguments = ["--set", ",".join(("faultInjection.enabled=true", *values))]
    return [one for one in rendering.objects(4, *arguments) if "hami-fault" in one["metadata"]["name"]]


def test_nothing_of_it_is_installed_by_default() -> None:
    """A service that breaks things is asked for."""
    assert not [one for one in rendering.objects(4) if "fault" in one["metadata"]["name"]]


def test_the_agent_runs_only_where_the_nodes_label_permits_faults() -> None:
    """Consent is the node's; the agent is privileged there, for the kernel's log."""
    pod = named(ours(), "DaemonSet", "hami-fault-agent")["spec"]["template"]["spec"]

    assert pod["nodeSelector"] == {"hami.io/fault-injection": "allowed"}
    assert pod["volumes"] == [{"name": "kmsg", "hostPath": {"path": "/dev/kmsg", "type": "CharDevice"}}]
    assert not [one for one in ours("faultInjection.agent.enabled=false") if one["kind"] == "DaemonSet"]


def test_its_accounts_may_do_little() -> None:
    """The agent writes one ConfigMap; the controller neither reads Secrets nor changes nodes or pods."""
    found = ours()
    agent = named(found, "Role", "hami-fault-agent")["rules"]
    assert [(rule["resourceNames"], rule["verbs"]) for rule in agent] == [
        (["hami-faults"], ["get"]), (["hami-faults-results"], ["get", "patch"]),
    ]  # fmt: skip
    rules = named(found, "ClusterRole", "hami-fault-injector")["rules"]
    verbs = {resource: set(rule["verbs"]) for rule in rules for resource in rule["resources"]}
    assert verbs == {
        "nodes": {"get", "list"}, "pods": {"list"}, "networkpolicies": {"create", "delete"},
        "networkchaos": {"get", "create", "delete"},
    }  # fmt: skip
    assert named(found, "ClusterRole", "hami-fault-injector")["metadata"]["labels"]


def test_the_api_leaves_the_pod_only_with_a_certificate_and_reviews() -> None:
    """Without one it listens on loopback alone."""
    plain, secured = ours(), ours("faultInjection.tlsSecret=faults-tls")
    for found, has_service in ((plain, False), (secured, True)):
        container = named(found, "Deployment", "hami-fault-injector")["spec"]["template"]["spec"]["containers"][0]
        parsed = settings.parse(container["args"][1:], {})
        assert parsed.api_bind.is_loopback
        assert (parsed.secure_api_bind is not None) is has_service
        assert bool([one for one in found if one["kind"] == "Service"]) is has_service
    reviewed = named(secured, "ClusterRole", "hami-fault-injector")["rules"]
    assert {"tokenreviews", "subjectaccessreviews"} <= {one for rule in reviewed for one in rule["resources"]}
    agent = named(plain, "DaemonSet", "hami-fault-agent")["spec"]["template"]["spec"]["containers"][0]
    assert settings.parse(agent["args"][1:], {"HAMI_NODE_NAME": "n"}).node_name == "n"
