"""What the chart renders, by a real helm without a cluster."""

import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from lab.real import build, helm
from tests import tools

CHART = pathlib.Path(__file__).parents[2] / "charts" / "hami"
NAMESPACE = "hami-system"
OPERATOR = ("monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule")
CERT_MANAGER = ("cert-manager.io/v1",)
HELMS = (3, 4)


class Refused(Exception):
    """helm does not render it; the text is what it says."""


def program(major: int) -> str:
    """A helm. Missing is a skip on a developer's machine, and a failure in CI."""
    try:
        return str(helm.program(major))
    except build.BuildFailed as missing:
        tools.missing(str(missing))


def text(major: int, *arguments: str, apis: Sequence[str] = (), version: str = "v1.36.3") -> str:
    """The rendered documents.

    Raises:
        Refused: It does not render them.
    """
    command = [program(major), "template", "hami", str(CHART), "--namespace", NAMESPACE, "--kube-version", version]
    command += [part for api in apis for part in ("--api-versions", api)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def objects(major: int, *arguments: str, apis: Sequence[str] = (), version: str = "v1.36.3") -> list[dict[str, Any]]:
    """The rendered objects, in the order of kind and name."""
    found = [one for one in yaml.safe_load_all(text(major, *arguments, apis=apis, version=version)) if one]
    return sorted(found, key=lambda one: (one["kind"], one["metadata"]["name"]))


def one(found: Sequence[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The object of that kind and name."""
    (match,) = (each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return match


def container(workload: dict[str, Any], name: str) -> dict[str, Any]:
    """A container of a Deployment or DaemonSet."""
    containers: list[dict[str, Any]] = workload["spec"]["template"]["spec"]["containers"]
    (match,) = (each for each in containers if each["name"] == name)
    return match
