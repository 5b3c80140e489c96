"""`hamictl doctor` on a real API server: what it says of rights, clocks and leases is what our doctor reads."""

import json
import subprocess
import sys
from typing import Any

from lab import gpus
from tests.e2e import site as sites


def doctor(site: sites.Site, role: str) -> tuple[int, list[dict[str, Any]]]:
    assert site.plane is not None
    assert site.extender is not None
    reached = ("--extender", f"http://{site.extender.api}", "--health", f"http://{site.extender.health}")
    command = [
        sys.executable,
        "-m",
        "hamictl",
        "doctor",
        "-o",
        "json",
        "--kubeconfig",
        str(site.plane.kubeconfig(role)),
    ]
    done = subprocess.run([*command, *reached], capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)["findings"] if done.stdout else []


def test_what_an_account_lacks_is_a_finding_and_what_is_there_is_looked_at(own_site: sites.Site) -> None:
    """An administrator, one who may list nodes, pods and quotas, and one who may not even do that."""
    own_site.add_nodes(gpus.gpu_node("one", gpus.A100, 1))
    bare = [("DOCTOR_NO_WEBHOOK", "cluster"), ("DOCTOR_NO_GUARD", "cluster")]

    def seen() -> bool:
        """The extender may be new, and the scheduler's lease with it."""
        return [(one["code"], one["about"]) for one in doctor(own_site, "admin")[1]] == bare

    sites.wait_for(seen, 60, lambda: str(doctor(own_site, "admin")))
    template = {
        "metadata": {"labels": {"app": "x"}},
        "spec": {
            "containers": [{"name": "c", "image": "nvcr.io/nvidia/k8s-device-plugin:v0.17.0"}],
            "tolerations": [{"operator": "Exists"}],
        },
    }
    plugin = {"metadata": {"name": "nvidia"}, "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template}}
    own_site.api("POST", f"/apis/apps/v1/namespaces/{own_site.namespace}/daemonsets", plugin)
    assert [(one["code"], one["detail"]) for one in doctor(own_site, "admin")[1]][-1] == (
        "DOCTOR_NVIDIA_PLUGIN",
        "NVIDIA's device plugin on one",
    )

    status, found = doctor(own_site, "extender")
    assert status == 1
    assert [one["detail"] for one in found] == [
        "the right is missing: list daemonsets.apps",
        "the right is missing: list leases.coordination.k8s.io",
        "the right is missing: list mutatingwebhookconfigurations.admissionregistration.k8s.io",
        "the right is missing: list validatingadmissionpolicies.admissionregistration.k8s.io",
    ]
    assert doctor(own_site, "webui") == (2, [])
