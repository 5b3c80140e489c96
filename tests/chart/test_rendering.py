"""What is rendered: the same by helm 3 and 4, held to files, valid for every version of Kubernetes that is promised."""

import difflib
import json
import os
import pathlib
import re
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gpu_sharing.core import remediation_rules
from lab.real import control_plane
from observability import targets
from tests.chart import rendering

GOLDENS = pathlib.Path(__file__).parent / "golden"
EVERYTHING = (*rendering.OPERATOR, *rendering.CERT_MANAGER)
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "everything": (
        (
            "--set",
            (
                "scheduler.replicas=2,scheduler.certManager.enabled=true,webui.auth=kubernetes,"
                "webui.prometheusUrl=http://prometheus:9090,dashboards.enabled=true,devicePlugin.isolation=mps,"
                "global.imageRegistry=registry.example:5000,devicePlugin.runtimeClassName=nvidia,"
                "devicePlugin.gpuOperatorToolkitReady.enabled=true,scheduler.remediation.mode=on,operator.enabled=true"
            ),
        ),
        EVERYTHING,
    ),
    "least": (
        (
            "--set",
            (
                "monitor.enabled=false,webui.enabled=false,networkPolicy.enabled=false,"
                "scheduler.admissionWebhook.enabled=false,scheduler.recordGuard=false"
            ),
        ),
        (),
    ),
}
"""Values and the APIs of the cluster."""
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "Certificate", "Issuer"}


@pytest.mark.parametrize("major", rendering.HELMS)
def test_helm_finds_nothing_to_complain_of(major: int) -> None:
    """Strictly."""
    command = [rendering.program(major), "lint", "--strict", str(rendering.CHART)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("name", CASES)
def test_the_rendered_objects_are_those_of_the_files(name: str) -> None:
    """So that a review sees what a change of a template does; dashboards and alerts are held elsewhere."""
    values, apis = CASES[name]
    found = rendering.objects(4, *values, apis=apis)
    assert found == rendering.objects(3, *values, apis=apis)
    for one in found:
        if one["metadata"]["name"].startswith("hami-dashboard-"):
            one["data"] = dict.fromkeys(one["data"], "…")
        if one["kind"] == "PrometheusRule":
            one["spec"] = "…"
    shown = yaml.safe_dump_all(found, sort_keys=False, allow_unicode=True, width=120)
    path = GOLDENS / f"{name}.yaml"
    if os.environ.get("RENEW_GOLDENS"):
        path.write_text(shown)
    golden = path.read_text() if path.exists() else ""
    difference = difflib.unified_diff(golden.splitlines(), shown.splitlines(), str(path), "rendered", lineterm="")
    assert golden == shown, "\n".join(difference)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    """By Kubernetes' own schemas, strictly: a field that is not known is an error."""
    for values, apis in CASES.values():
        for one in rendering.objects(4, *values, apis=apis, version=f"v{version}.0"):
            if one["kind"] not in CUSTOM:
                kubernetes_validate.validate(one, version, strict=True)


def test_an_older_cluster_is_refused_and_a_vendors_version_understood() -> None:
    """kube-scheduler's image is that of the cluster."""
    with pytest.raises(rendering.Refused, match=r"chart requires kubeVersion: >=1\.30"):
        rendering.text(4, version="v1.29.9")
    for version in ("v1.33.4+k3s1", "v1.33.4-eks-1234567", "v1.33.4-gke.1000"):
        scheduler = rendering.one(rendering.objects(4, version=version), "Deployment", "hami-scheduler")
        image = rendering.container(scheduler, "kube-scheduler")["image"]
        assert image == "registry.k8s.io/kube-scheduler:v1.33.4"


def test_every_role_is_what_the_end_to_end_tests_run_with() -> None:
    """They start each process with just these rights."""
    found = rendering.objects(4, "--set", "webui.auth=kubernetes")

    def rights(rules: Any) -> set[tuple[str, str, str, str]]:
        return {
            (group, resource, verb, ",".join(rule.get("resourceNames", [])))
            for rule in rules
            for group in rule.get("apiGroups", ["-"])
            for resource in rule.get("resources", rule.get("nonResourceURLs"))
            for verb in rule["verbs"]
        }

    def of(kind: str, name: str) -> set[tuple[str, str, str, str]]:
        return rights(rendering.one(found, kind, name)["rules"])

    leases = ("coordination.k8s.io", "leases", "get", "")
    hooks = {
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", verb, "hami-webhook")
        for verb in ("get", "patch")
    }
    assert of("ClusterRole", "hami-scheduler-extender") == rights(control_plane.EXTENDER_RULES) - {leases} | hooks
    remediating = rendering.objects(4, "--set", "scheduler.remediation.mode=on")
    extra = rendering.one(remediating, "ClusterRole", "hami-scheduler-remediation")["rules"]
    assert rights(extra) == rights(control_plane.REMEDIATION_RULES)
    classes = ("node.k8s.io", "runtimeclasses", "get")
    plugin = {(*one[:3], "nvidia") if one[:3] == classes else one for one in rights(control_plane.PLUGIN_RULES)}
    assert of("ClusterRole", "hami-device-plugin") == plugin
    webui = of("ClusterRole", "hami-webui") | of("Role", "hami-webui")
    assert webui == rights(control_plane.WEBUI_RULES)


def test_remediation_gets_its_rules_and_no_right_before_it_is_switched_on() -> None:
    """A dry run needs no right; NVSentinel's objects are for those who name them in the rules."""
    rule = '{"name":"r","when":{"xid":[79]},"do":"evict-pods"}'
    rules = ("--set-json", f'scheduler.remediation.rules={{"rules":[{rule}],"nvsentinel":true}}')

    def rendered(mode: str) -> list[dict[str, Any]]:
        return rendering.objects(4, "--set-string", f"scheduler.remediation.mode={mode}", *rules)

    def names(mode: str) -> set[str]:
        return {one["metadata"]["name"] for one in rendered(mode)}

    assert not {"hami-remediation", "hami-scheduler-remediation", "hami-own-nodes"} & names("off")
    assert names("dry-run") - names("off") == {"hami-remediation"}
    assert names("on") - names("dry-run") == {"hami-scheduler-remediation", "hami-own-nodes"}
    found = rendered("on")
    arguments = rendering.container(rendering.one(found, "Deployment", "hami-scheduler"), "extender")["args"]
    assert {"--remediation=on", "--remediation-rules=/etc/hami-remediation/rules.json"} <= set(arguments)
    file = json.loads(rendering.one(found, "ConfigMap", "hami-remediation")["data"]["rules.json"])
    assert isinstance(remediation_rules.read(file), remediation_rules.RuleSet)
    janitor = [rule for rule in rendering.one(found, "ClusterRole", "hami-scheduler-remediation")["rules"]
               if rule["apiGroups"] == ["janitor.dgxc.nvidia.com"]]  # fmt: skip
    assert [rule["verbs"] for rule in janitor] == [["create"]]
    with pytest.raises(rendering.Refused, match="mode"):
        rendering.text(4, "--set-string", "scheduler.remediation.mode=maybe")


def test_no_process_listens_on_addresses_of_one_family() -> None:
    """On an IPv6-only cluster probes, webhook, pages and metrics come by IPv6; the rest is loopback in the pod."""
    found = rendering.objects(4, "--set", "webui.auth=kubernetes")
    binds = [
        argument
        for one in found
        if one["kind"] in ("Deployment", "DaemonSet")
        for container in one["spec"]["template"]["spec"]["containers"]
        for argument in container["args"]
        if "bind=" in argument
    ]
    hosts = {argument.partition("=")[2].rpartition(":")[0] for argument in binds}
    assert len(binds) == 9
    assert hosts == {"", "127.0.0.1"}
    probes = [
        container[probe]["httpGet"]
        for one in found
        if one["kind"] in ("Deployment", "DaemonSet")
        for container in one["spec"]["template"]["spec"]["containers"]
        for probe in ("livenessProbe", "readinessProbe")
        if "httpGet" in container.get(probe, {})
    ]
    assert all("host" not in probe for probe in probes)


def test_no_container_has_more_than_it_needs() -> None:
    """Extender and WebUI meet the pod security standard `restricted`; the node's agents have what the driver needs."""
    found = rendering.objects(4, "--set", "devicePlugin.driver=runtimeClass")
    for kind, name, restricted, added in (
        ("Deployment", "hami-scheduler", True, {}),
        ("Deployment", "hami-webui", True, {}),
        ("DaemonSet", "hami-core", False, {}),
        ("DaemonSet", "hami-device-plugin", False, {"nvidia": ["DAC_OVERRIDE", "SYS_ADMIN"], "monitor": ["SYS_ADMIN"]}),
    ):
        pod = rendering.one(found, kind, name)["spec"]["template"]["spec"]
        assert not any(pod.get(key) for key in ("hostNetwork", "hostIPC"))
        # The monitor sees no process of another PID namespace.
        assert pod.get("hostPID", False) is (name == "hami-device-plugin")
        for one in pod["containers"]:
            security = one["securityContext"]
            assert security["capabilities"]["drop"] == ["ALL"]
            assert security["capabilities"].get("add") == added.get(one["name"])
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert not security.get("privileged")
            assert bool(security.get("runAsNonRoot")) is restricted
            assert {"requests", "limits"} <= one["resources"].keys()
            assert "latest" not in one["image"]
        assert any("hostPath" in volume for volume in pod["volumes"]) is not restricted
    core = rendering.one(found, "DaemonSet", "hami-core")["spec"]["template"]["spec"]
    assert core["automountServiceAccountToken"] is False
    without = rendering.objects(4, "--set", "devicePlugin.driver=runtimeClass,devicePlugin.mig.enabled=false")
    plugin = rendering.one(without, "DaemonSet", "hami-device-plugin")
    assert rendering.container(plugin, "nvidia")["securityContext"]["capabilities"]["add"] == ["DAC_OVERRIDE"]
    assert "NVIDIA_MIG" not in json.dumps(plugin)


def _brings_driver(pod: dict[str, Any], container: dict[str, Any]) -> str:
    """What brings the driver into a container, as its runtime or its own process will find it."""
    environment = {one["name"]: one.get("value") for one in container["env"]}
    asks = environment.get("NVIDIA_VISIBLE_DEVICES") == "all" and "utility" in environment["NVIDIA_DRIVER_CAPABILITIES"]
    if pod.get("runtimeClassName"):
        return f"runtime class {pod['runtimeClassName']}" if asks else ""
    roots = {one["name"]: one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one}
    mounted = {one["mountPath"]: one for one in container["volumeMounts"]}
    mount = mounted.get("/driver-root")
    if mount is not None:
        # Only a privileged container can open its device files.
        can_open = container["securityContext"].get("privileged") is True
        follows = mount["readOnly"] and mount["mountPropagation"] == "HostToContainer"
        named = "--driver-root=/driver-root" in container["args"]
        return f"host path {roots[mount['name']]}" if can_open and follows and named else ""
    return "default runtime" if asks else ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("", "host path /"),
        ("devicePlugin.driver=runtimeClass", "runtime class nvidia"),
        ("devicePlugin.driver=runtimeClass,devicePlugin.runtimeClassName=nv", "runtime class nv"),
        ("devicePlugin.runtimeClassName=nv", "runtime class nv"),
        ("devicePlugin.driver=hostPath,devicePlugin.driverRoot=/run/nvidia/driver", "host path /run/nvidia/driver"),
        ("devicePlugin.driver=none", "default runtime"),
        ("devicePlugin.driver=runtimeClass,devicePlugin.isolation=mps", "runtime class nvidia"),
        (("devicePlugin.driver=none,devicePlugin.nodeConfiguration[0].name=a,"
         "devicePlugin.nodeConfiguration[0].operatingmode=mps"), "default runtime"),
    ],
)  # fmt: skip
def test_something_brings_the_driver_into_every_pod_that_needs_it(values: str, expected: str) -> None:
    """Variables alone do nothing on a plain runtime: the commonest failure of GPU charts."""
    for major in rendering.HELMS:
        found = rendering.objects(major, "--set", values)
        pods = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in found if one["kind"] == "DaemonSet"}
        assert ("hami-mps" in pods) is ("mps" in values)
        pods.pop("hami-core", None)
        brought = {_brings_driver(pod, one) for pod in pods.values() for one in pod["containers"]}
        assert brought == {expected}


def test_the_toolkit_of_the_gpu_operator_is_waited_for() -> None:
    """Before, a pod of its RuntimeClass cannot start."""
    values = "devicePlugin.gpuOperatorToolkitReady.enabled=true,devicePlugin.gpuOperatorToolkitReady.hostPath=/run/v"
    pod = rendering.one(rendering.objects(4, "--set", values), "DaemonSet", "hami-device-plugin")["spec"]["template"]
    (waiting,) = pod["spec"]["initContainers"]
    assert waiting["args"] == ["device_plugin.toolkit_ready", "/validations/toolkit-ready"]
    (mount,) = waiting["volumeMounts"]
    (volume,) = (one for one in pod["spec"]["volumes"] if one["name"] == mount["name"])
    assert (volume["hostPath"]["path"], mount["mountPropagation"]) == ("/run/v", "HostToContainer")


def test_the_mps_daemon_outlives_the_plugin_and_an_upgrade_of_the_chart() -> None:
    """With the daemon every client ends."""
    values = "devicePlugin.driver=runtimeClass,devicePlugin.isolation=mps,devicePlugin.mps.sharedMemory=64"
    found = rendering.objects(4, "--set", values)
    daemon = rendering.one(found, "DaemonSet", "hami-mps")
    assert daemon["spec"]["updateStrategy"] == {"type": "OnDelete"}
    pod = daemon["spec"]["template"]["spec"]
    assert pod["hostPID"] is True
    (mounting,) = pod["initContainers"]
    assert "--shared-memory=64" in mounting["args"]
    assert mounting["volumeMounts"][0]["mountPropagation"] == "Bidirectional"
    mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    paths = {one["name"]: one.get("hostPath", {}).get("path") for one in pod["volumes"]}
    assert paths[mounts["/dev/shm"]] == "/run/nvidia/mps/shm"  # As the clients have it.
    plugin = rendering.container(rendering.one(found, "DaemonSet", "hami-device-plugin"), "nvidia")
    assert "--mps-root=/run/nvidia/mps" in plugin["args"]
    assert "privileged" not in plugin["securityContext"]
    assert all(one["metadata"]["name"] != "hami-mps" for one in rendering.objects(4))


def test_libraries_are_brought_where_a_node_may_use_them() -> None:
    """And nowhere else: a foreign image is not run for nothing."""

    def brought(values: str) -> bool:
        return any(one["metadata"]["name"] == "hami-core" for one in rendering.objects(4, "--set", values))

    assert brought("")
    assert brought("devicePlugin.isolation=hami-core")
    assert not brought("devicePlugin.isolation=none")
    assert not brought("devicePlugin.hamiCore.enabled=false")
    node = "devicePlugin.nodeConfiguration[0].name=a,devicePlugin.nodeConfiguration[0].operatingmode"
    assert brought(f"devicePlugin.isolation=none,{node}=hami-core")
    mirrored = rendering.objects(4, "--set", "global.imageRegistry=registry.example:5000")
    image = rendering.container(rendering.one(mirrored, "DaemonSet", "hami-core"), "copy")["image"]
    assert image == "registry.example:5000/projecthami/hami:v2.10.0"


def test_images_come_from_a_registry_of_ones_own_and_by_digest() -> None:
    """For clusters without a way out."""
    digest = "sha256:" + "a" * 64
    found = rendering.objects(
        4, "--set", f"global.imageRegistry=registry.example:5000/mirror/,image.digest={digest},nodeImage.tag=v7"
    )
    images = {
        one["image"]
        for each in found
        if each["kind"] in ("Deployment", "DaemonSet")
        for one in each["spec"]["template"]["spec"]["containers"]
    }
    assert images == {
        f"registry.example:5000/mirror/hami-py/hami@{digest}", "registry.example:5000/mirror/hami-py/hami-node:v7",
        "registry.example:5000/mirror/kube-scheduler:v1.36.3", "registry.example:5000/mirror/projecthami/hami:v2.10.0",
    }  # fmt: skip


def test_service_monitors_are_made_as_promised() -> None:
    """One for each process under its documented job, honouring our labels; only where their kind is known."""
    found = rendering.objects(4, apis=rendering.OPERATOR)
    monitors = [one for one in found if one["kind"] == "ServiceMonitor"]
    assert {one["metadata"]["namespace"] for one in monitors} == {"monitoring"}
    expected = targets.service_monitors()
    by_job = {one["metadata"]["name"]: one["spec"] for one in monitors}
    assert by_job == {one["metadata"]["name"]: one["spec"] for one in expected}
    assert rendering.one(found, "PrometheusRule", "hami")["spec"]["groups"]
    assert not [one for one in rendering.objects(4) if one["kind"] in CUSTOM]


@pytest.mark.parametrize(
    ("values", "missing"),
    [("monitor.enabled=false", {"hami-monitor"}), ("webui.enabled=false", {"hami-webui"}),
     ("devicePlugin.enabled=false", {"hami-monitor", "hami-device-plugin"})],
)  # fmt: skip
def test_what_is_not_installed_is_not_scraped(values: str, missing: set[str]) -> None:
    """A monitor of a port that no Service has is a target that is never found."""
    found = rendering.objects(4, "--set", values, apis=rendering.OPERATOR)
    jobs = {one["metadata"]["name"] for one in found if one["kind"] == "ServiceMonitor"}
    assert jobs == {one.job for one in targets.TARGETS} - missing


def test_names_of_resources_reach_everybody() -> None:
    """kube-scheduler, extender, plugin and monitor."""
    values = "resourceName=vendor.io/gpu,resourceMem=vendor.io/mem,schedulerName=gpus"
    found = rendering.objects(4, "--set", values)
    config = yaml.safe_load(rendering.one(found, "ConfigMap", "hami-scheduler")["data"]["config.yaml"])
    (extender,) = config["extenders"]
    assert [one["name"] for one in extender["managedResources"]][:2] == ["vendor.io/gpu", "vendor.io/mem"]
    assert config["profiles"][0]["schedulerName"] == "gpus"
    assert config["leaderElection"]["resourceNamespace"] == "hami-system"
    agents = rendering.one(found, "DaemonSet", "hami-device-plugin")
    scheduler = rendering.one(found, "Deployment", "hami-scheduler")
    for one in (*agents["spec"]["template"]["spec"]["containers"], rendering.container(scheduler, "extender")):
        assert {"--resource-name=vendor.io/gpu", "--resource-mem=vendor.io/mem"} <= set(one["args"])


def test_every_value_is_described_and_every_description_has_a_value() -> None:
    """values.yaml and values.schema.json say the same."""
    values = yaml.safe_load((rendering.CHART / "values.yaml").read_text())
    schema = json.loads((rendering.CHART / "values.schema.json").read_text())

    def compare(path: str, given: Any, described: Any) -> None:
        assert len(described["description"]) > 3 or not path, path
        if described.get("type") == "object" and "properties" in described:
            shown = {key for key, one in described["properties"].items() if "has no effect" not in one["description"]}
            assert given.keys() == shown, path
            for key, value in given.items():
                compare(f"{path}.{key}", value, described["properties"][key])

    compare("", values, {"description": "", **schema})
    used = "".join(one.read_text() for one in (rendering.CHART / "templates").rglob("*.*"))
    for key in re.findall(r"^  ([a-zA-Z]+):", (rendering.CHART / "values.yaml").read_text(), re.M):
        assert key in used, key
