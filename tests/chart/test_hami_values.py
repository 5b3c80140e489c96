"""A values file of HAMi's chart: names with the same meaning work, the others are refused with the reason."""

import functools
import json
import pathlib
from typing import Any

import pytest
import yaml

from tests.chart import rendering

ENTRIES = yaml.safe_load((rendering.CHART / "files" / "hami-values.yaml").read_text())
THEIRS = (pathlib.Path(__file__).parent / "hami-v2.10-values.txt").read_text().split()
"""Names of values. Source: HAMi v2.10, charts/hami/values.yaml."""


@functools.cache
def values() -> Any:
    return yaml.safe_load((rendering.CHART / "values.yaml").read_text())


def has(path: str) -> bool:
    """Whether this chart has the value, with a default."""
    at = values()
    for name in path.split("."):
        if not isinstance(at, dict) or name not in at:
            return False
        at = at[name]
    return True


def covers(path: str, name: str) -> bool:
    return path == name or (path.endswith(".*") and name.startswith(path.removesuffix("*")))


def rendered(tmp_path: pathlib.Path, given: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(given))
    return rendering.objects(4, "--values", str(file), **more)


def test_every_value_of_hami_has_an_answer() -> None:
    """Each is the same here, or named otherwise, or absent with a reason; and no entry is about nothing."""
    assert [name for name in THEIRS if not any(covers(one["path"], name) for one in ENTRIES)] == []
    assert [one["path"] for one in ENTRIES if not any(covers(one["path"], name) for name in THEIRS)] == []


def test_the_names_in_the_table_are_values_of_this_chart() -> None:
    """A table that names what does not exist sends its reader away."""
    same = [one["path"] for one in ENTRIES if "same" in one and not one["path"].startswith("devicePlugin.nodeConf")]
    use = [name for one in ENTRIES if "use" in one for name in one["use"].split(", ")]
    assert [name for name in (*same, *use) if not has(name)] == []


@pytest.mark.parametrize("entry", [one for one in ENTRIES if "same" not in one], ids=lambda one: one["path"])
def test_a_value_without_effect_is_refused_with_its_reason(entry: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Silence would leave the reader of a migrated file believing that it counts."""
    path = entry["path"].replace(".*", ".x").split(".")
    given: Any = "x"
    for name in reversed(path):
        given = {name: given}

    with pytest.raises(rendering.Refused) as refused:
        rendered(tmp_path, given)

    assert f"{entry['path'].removesuffix('.*')}: " in str(refused.value)
    assert (entry.get("why") or entry.get("absent") or entry["use"]) in str(refused.value)


def test_a_whole_file_of_hami_is_refused_once_with_every_name(tmp_path: pathlib.Path) -> None:
    """One error to work through, and not one at a time."""
    given = {"legacyMetrics": False, "scheduler": {"leaderElect": True, "patch": {"enabled": True}}}

    with pytest.raises(rendering.Refused) as refused:
        rendered(tmp_path, given)

    for name in ("legacyMetrics", "scheduler.leaderElect", "scheduler.patch"):
        assert f"{name}: " in str(refused.value)


def test_names_of_hami_with_the_same_meaning_have_their_effect(tmp_path: pathlib.Path) -> None:
    """As in a values file that was written for HAMi."""
    nodes = {"nodeconfig": [{"name": "n1", "devicesplitcount": 4}]}
    found = rendered(
        tmp_path,
        {
            "namespaceOverride": "gpus",
            "global": {"imagePullSecrets": ["pull-a"], "labels": {"team": "ai"}, "annotations": {"owner": "ops"}},
            "platform": {"openshift": True},
            "scheduler": {
                "overwriteEnv": "true",
                "certManager": {"enabled": True},
                "service": {"labels": {"s": "1"}, "annotations": {"t": "2"}},
                "admissionWebhook": {
                    "namespaceSelector": {"matchLabels": {"gpu": "yes"}},
                    "objectSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                    "reinvocationPolicy": "IfNeeded",
                },
            },
            "devicePlugin": {
                "nvidiaNodeSelector": {"pool": "gpus"},
                "nvidiaDriverRoot": "/run/nvidia/driver",
                "createRuntimeClass": True,
                "disablecorelimit": "true",
                "extraEnvs": [{"name": "A", "value": "b"}],
                "nodeConfiguration": {"config": json.dumps(nodes)},
            },
        },
        apis=rendering.CERT_MANAGER,
    )
    assert {one["metadata"]["namespace"] for one in found if "namespace" in one["metadata"]} <= {"gpus", "kube-system"}
    labelled = [one for one in found if "helm.sh/chart" in one["metadata"].get("labels", {})]
    assert all(one["metadata"]["labels"]["team"] == "ai" for one in labelled)
    assert all(one["metadata"]["annotations"]["owner"] == "ops" for one in labelled)
    extender = rendering.container(rendering.one(found, "Deployment", "hami-scheduler"), "extender")
    assert "--hide-gpus=true" in extender["args"]
    assert rendering.one(found, "Service", "hami-scheduler")["metadata"]["labels"]["s"] == "1"
    assert rendering.one(found, "Service", "hami-scheduler")["metadata"]["annotations"] == {"t": "2", "owner": "ops"}
    (webhook,) = rendering.one(found, "MutatingWebhookConfiguration", "hami-webhook")["webhooks"]
    assert webhook["namespaceSelector"]["matchLabels"] == {"gpu": "yes"}
    assert {"key": "a", "operator": "Exists"} in webhook["objectSelector"]["matchExpressions"]
    assert webhook["reinvocationPolicy"] == "IfNeeded"
    annotations = rendering.one(found, "MutatingWebhookConfiguration", "hami-webhook")["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/inject-ca-from": "gpus/hami-scheduler", "owner": "ops"}
    daemons = rendering.one(found, "DaemonSet", "hami-device-plugin")
    pod = daemons["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "gpus"}
    assert pod["imagePullSecrets"] == [{"name": "pull-a"}]
    plugin = rendering.container(daemons, "nvidia")
    assert {"--disable-core-limit=true", "--driver-root=/driver-root"} <= set(plugin["args"])
    assert {"name": "A", "value": "b"} in plugin["env"]
    (root,) = (one["hostPath"]["path"] for one in pod["volumes"] if one["name"] == "driver-root")
    assert root == "/run/nvidia/driver"
    assert rendering.one(found, "RuntimeClass", "nvidia")["handler"] == "nvidia"
    assert json.loads(rendering.one(found, "ConfigMap", "hami-device-plugin")["data"]["config.json"]) == nodes
    bindings = {one["roleRef"]["name"]: one for one in found if one["kind"] == "RoleBinding"}
    assert [one["name"] for one in bindings["system:openshift:scc:privileged"]["subjects"]] == ["hami-device-plugin"]


def test_the_node_selector_replaces_the_default(tmp_path: pathlib.Path) -> None:
    """Helm merges maps, and a node with the label of one's own has no gpu=on."""
    for name in ("nvidiaNodeSelector", "nvidianodeSelector"):
        found = rendered(tmp_path, {"devicePlugin": {name: {"pool": "gpus"}}})
        for one in (one for one in found if one["kind"] == "DaemonSet"):
            assert one["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "gpus"}


def test_without_the_device_plugin_nothing_of_the_nodes_is_installed(tmp_path: pathlib.Path) -> None:
    """Where another installation serves the nodes."""
    found = rendered(tmp_path, {"devicePlugin": {"enabled": False}}, apis=rendering.OPERATOR)

    assert [one for one in found if one["kind"] == "DaemonSet"] == []
    assert [one["metadata"]["name"] for one in found if "device-plugin" in json.dumps(one["metadata"])] == []
    assert "monitor" not in json.dumps([one["spec"] for one in found if one["kind"] == "Deployment"])


def test_settings_of_nodes_can_be_a_config_map_of_ones_own(tmp_path: pathlib.Path) -> None:
    """With HAMi's name."""
    found = rendered(tmp_path, {"devicePlugin": {"nodeConfiguration": {"externalConfigName": "mine"}}})

    volumes = rendering.one(found, "DaemonSet", "hami-device-plugin")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": "mine"}} in volumes
    assert [one for one in found if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", "hami-device-plugin")] == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"nvidiaNodeSelector": {"a": "b"}, "nvidianodeSelector": {"a": "c"}},
            "are two names of one value, and differ",
        ),
        ({"nvidiaDriverRoot": "/x", "driverRoot": "/y"}, "are two names of one value"),
        ({"nvidiaDriverRoot": "/x", "driver": "none"}, "does not read one"),
        ({"nodeConfiguration": {"config": "{"}}, "is not JSON with a list nodeconfig"),
        ({"nodeConfiguration": {"config": "{}"}}, "is not JSON with a list nodeconfig"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(given: dict[str, Any], sentence: str, tmp_path: pathlib.Path) -> None:
    """Two names of one value must agree."""
    with pytest.raises(rendering.Refused, match=sentence):
        rendered(tmp_path, {"devicePlugin": given})
