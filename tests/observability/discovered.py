"""The pods and Services of the rendered chart as Prometheus' discovery in Kubernetes finds them, for file discovery.

Each port of a pod that one of our processes serves has the address of a real process; all others have an address where
nothing listens, so that a target too many is seen as one that is down.

Source: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#kubernetes_sd_config
"""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from observability import targets

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "tests" / "chart" / "golden" / "everything.yaml"
"""What the chart renders; the chart's tests hold it to real helms."""
EXAMPLES = ROOT / "examples" / "observability"
META = "__meta_kubernetes"
NOWHERE = "127.0.0.1:9"
OTHER_POD = {"name": "theirs", "labels": {"app": "theirs"}}
Objects = Sequence[Mapping[str, Any]]
Group = dict[str, Any]
Addresses = Mapping[str, Sequence[str]]
"""The addresses of the processes of each job."""


def chart() -> Objects:
    return [one for one in yaml.safe_load_all(CHART.read_text()) if one]


def example_jobs(folder: pathlib.Path, addresses: Addresses) -> list[dict[str, Any]]:
    """The jobs of the example for a Prometheus without operator, over files instead of an API server."""
    config = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    discovery = _written(folder / "pods.json", pod_targets(chart(), addresses))
    for job in config["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": [targets.NAMESPACE]}}]
        job["file_sd_configs"] = discovery
    jobs: list[dict[str, Any]] = config["scrape_configs"]
    return jobs


def operator_jobs(folder: pathlib.Path, addresses: Addresses, monitors: Objects) -> list[dict[str, Any]]:
    """The jobs that the operator makes of ServiceMonitors, over files instead of an API server."""
    discovery = _written(folder / "endpoints.json", endpoint_targets(chart(), addresses))
    return [
        _operators_job(one, number, endpoint) | {"file_sd_configs": discovery}
        for one in monitors
        for number, endpoint in enumerate(one["spec"]["endpoints"])
    ]


def pod_targets(objects: Objects, addresses: Addresses) -> list[Group]:
    """One target for each port of each container, as the role `pod` finds them; one for a container without ports."""
    return [
        {"targets": [address], "labels": labels}
        for pod in _pods(objects)
        for container in pod["containers"]
        for port in container.get("ports") or [None]
        for address, labels in _of_container(pod, container, port, addresses)
    ]


def endpoint_targets(objects: Objects, addresses: Addresses) -> list[Group]:
    """One target for each port of a Service and each pod behind it, as the role `endpoints` finds them."""
    return [
        {"targets": [address], "labels": labels | _of_service(service, port)}
        for service in objects
        if service["kind"] == "Service"
        for pod in _pods(objects)
        if service["spec"]["selector"].items() <= pod["labels"].items()
        for port in service["spec"]["ports"]
        for container in pod["containers"]
        for container_port in container.get("ports") or ()
        if container_port["name"] == port["targetPort"]
        for address, labels in _of_container(pod, container, container_port, addresses)
    ]


def _pods(objects: Objects) -> Iterator[dict[str, Any]]:
    """The pods of the workloads, and one of another team in our namespace."""
    for one in objects:
        if one["kind"] in ("Deployment", "DaemonSet"):
            template = one["spec"]["template"]
            containers = [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]
            yield {"name": one["metadata"]["name"], "labels": template["metadata"]["labels"], "containers": containers}
    yield OTHER_POD | {"containers": [{"name": "theirs", "ports": [{"name": "metrics", "containerPort": 8080}]}]}


def _of_container(
    pod: Mapping[str, Any], container: Mapping[str, Any], port: Mapping[str, Any] | None, addresses: Addresses
) -> Iterator[tuple[str, dict[str, str]]]:
    labels = {
        "__meta_kubernetes_namespace": targets.NAMESPACE,
        "__meta_kubernetes_pod_phase": "Running",
        "__meta_kubernetes_pod_ready": "true",
        "__meta_kubernetes_pod_container_name": container["name"],
    } | _labelled("pod", pod["labels"])
    job = ""
    if port is not None:
        labels["__meta_kubernetes_pod_container_port_name"] = port["name"]
        labels["__meta_kubernetes_pod_container_port_number"] = str(port["containerPort"])
        component = pod["labels"].get("app.kubernetes.io/component")
        job = next(
            (one.job for one in targets.TARGETS if (one.component, one.port_name) == (component, port["name"])), ""
        )
    for number, address in enumerate(addresses.get(job, (NOWHERE,))):
        yield address, labels | {"__meta_kubernetes_pod_name": f"{pod['name']}-{number}"}


def _of_service(service: Mapping[str, Any], port: Mapping[str, Any]) -> dict[str, str]:
    return {
        "__meta_kubernetes_service_name": service["metadata"]["name"],
        "__meta_kubernetes_endpoint_port_name": port["name"],
        "__meta_kubernetes_endpoint_ready": "true",
    } | _labelled("service", service["metadata"]["labels"])


def _labelled(kind: str, labels: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in labels.items():
        word = re.sub(r"[^a-zA-Z0-9_]", "_", name)
        found[f"__meta_kubernetes_{kind}_label_{word}"] = value
        found[f"__meta_kubernetes_{kind}_labelpresent_{word}"] = "true"
    return found


def _operators_job(monitor: Mapping[str, Any], number: int, endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the operator generates for one endpoint of a ServiceMonitor.

    Source: github.com/prometheus-operator/prometheus-operator pkg/prometheus/promcfg.go, generateServiceMonitorConfig.
    """
    where, selector = monitor["metadata"], monitor["spec"]["selector"]["matchLabels"]
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [targets.NAMESPACE]}
    keeps = {f"service_label_{re.sub(r'[^a-zA-Z0-9_]', '_', key)}": value for key, value in selector.items()}
    keeps["endpoint_port_name"] = endpoint["port"]
    copied = {
        "namespace": "namespace", "service_name": "service", "pod_name": "pod", "pod_container_name": "container",
    }  # fmt: skip
    return {
        "job_name": f"serviceMonitor/{where['namespace']}/{where['name']}/{number}",
        "honor_labels": endpoint["honorLabels"],
        "metrics_path": endpoint["path"],
        "relabel_configs": [
            *({"source_labels": [f"{META}_{name}"], "regex": value, "action": "keep"} for name, value in keeps.items()),
            *({"source_labels": [f"{META}_{name}"], "target_label": label} for name, label in copied.items()),
            {"source_labels": [f"{META}_service_name"], "target_label": "job"},
            {"target_label": "endpoint", "replacement": endpoint["port"]},
            *(
                {"target_label": given["targetLabel"], "replacement": given["replacement"]}
                for given in endpoint["relabelings"]
            ),
        ],
    }


def _written(path: pathlib.Path, groups: Sequence[Group]) -> list[dict[str, Any]]:
    path.write_text(json.dumps(groups))
    return [{"files": [str(path)]}]
