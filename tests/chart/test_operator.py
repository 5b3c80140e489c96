"""The roles of `hamictl ops` in the chart: off by default, bound on demand, and without what runs commands in pods."""

from typing import Any

import pytest

from tests.chart import rendering

ON = "operator.enabled=true"
USER = (
    "operator.subjects[0].kind=User,operator.subjects[0].name=jane,"
    "operator.subjects[0].apiGroup=rbac.authorization.k8s.io"
)


def ours(*values: str) -> list[dict[str, Any]]:
    found = rendering.objects(4, *(("--set", ",".join(values)) if values else ()))
    return [one for one in found if one["metadata"]["name"] == "hami-operator"]


def verbs(found: list[dict[str, Any]], kind: str) -> dict[str, set[str]]:
    held: dict[str, set[str]] = {}
    for rule in rendering.one(found, kind, "hami-operator")["rules"]:
        for resource in rule["resources"]:
            held.setdefault(resource, set()).update(rule["verbs"])
    return held


def test_the_roles_are_created_and_bound_only_on_demand() -> None:
    """Rights that nobody uses are rights that somebody can take."""
    assert ours() == []
    assert [one["kind"] for one in ours(ON)] == ["ClusterRole", "Role"]
    bound = ours(ON, USER)
    assert [one["kind"] for one in bound] == ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        assert [one["name"] for one in rendering.one(bound, kind, "hami-operator")["subjects"]] == ["jane"]


def test_the_rights_are_those_of_the_operations() -> None:
    """No Secret is read, and kubelets are reached only where that was asked for."""
    found = ours(ON)
    everywhere = verbs(found, "ClusterRole")

    assert {key: held for key, held in everywhere.items() if held - {"list", "get"}} == {
        "pods": {"list", "delete"}, "nodes": {"list", "patch"}, "resourcequotas": {"list", "create", "patch"},
        "priorityclasses": {"list", "create"},
    }  # fmt: skip
    assert verbs(found, "Role") == {
        "deployments": {"get", "list", "patch"}, "daemonsets": {"get", "list", "patch"},
        "pods": {"get", "create", "delete"}, "configmaps": {"get", "list", "create", "patch"},
        "pods/portforward": {"create"},
    }  # fmt: skip
    assert verbs(ours(ON, "operator.diskStats=true"), "ClusterRole")["nodes/proxy"] == {"get"}


def test_a_subject_without_a_name_is_refused() -> None:
    """The API server would refuse the whole upgrade."""
    with pytest.raises(rendering.Refused, match="name"):
        rendering.text(4, "--set", f"{ON},operator.subjects[0].kind=User")
