"""The admission webhook behind a real kube-apiserver: what the user of kubectl sees."""

import base64
import pathlib
import subprocess
from typing import Any

import orjson

from lab import certificates, extender_process, gpus
from lab.real import client
from tests.e2e import site as sites
from tests.support import accounting, manuals

A100 = gpus.Model("NVIDIA A100-SXM4-80GB", 16_000)
GPU, MEM = "nvidia.com/gpu", "nvidia.com/gpumem"
UNNAMED = "default-scheduler"
"""What the API server writes where a pod names none."""


def configuration(address: str, certificate: pathlib.Path) -> dict[str, object]:
    """The configuration that the page on the webhook shows, with an address in place of the Service."""
    found: dict[str, Any] = manuals.one("run-the-webhook", "MutatingWebhookConfiguration", "hami-webhook")
    found["webhooks"][0]["clientConfig"] = {
        "url": f"https://{address}/webhook",
        "caBundle": base64.b64encode(certificate.read_bytes()).decode(),
    }
    return found


def test_mistakes_show_at_creation_and_plain_pods_are_made_ours(own_site: sites.Site, tmp_path: pathlib.Path) -> None:
    """Refused with one sentence, mended, warned; and while the webhook is away pods are created as they are."""
    site = own_site
    assert site.plane is not None
    site.add_nodes(gpus.gpu_node("a100", A100, 2))
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificates.write(certificate, key)
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key), "--hide-gpus")
    with extender_process.running(site.plane.kubeconfig("extender"), tmp_path / "webhook.log", *flags) as extender:
        site.api(
            "POST",
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
            configuration(extender.webhook, certificate),
        )
        # The API server learns of a configuration a moment after it is written.
        sites.wait_for(lambda: _refusal(site, site.pod_body("probe", {GPU: "1", MEM: "8M"}, schedulerName=UNNAMED)), 60)

        refused = _refusal(site, site.pod_body("bad", {GPU: "1", "nvidia.com/gpucores": "150"}, schedulerName=UNNAMED))
        pinned = _refusal(site, site.pod_body("pinned", {GPU: "1"}, nodeName="a100", schedulerName=UNNAMED))
        site.create(site.pod_body("plain", {GPU: "1", MEM: "4000"}, {"cpu": "1"}, schedulerName=UNNAMED))
        large = site.pod_body("large", {GPU: "1", MEM: "99000"}, schedulerName=UNNAMED)
        manifest = tmp_path / "large.json"
        manifest.write_bytes(orjson.dumps({"apiVersion": "v1", "kind": "Pod", **large}))
        applied = subprocess.run(
            [*site.kubectl_command, "apply", "--namespace", site.namespace, "--filename", str(manifest)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        bound = site.wait_bound("plain")["plain"]
        gang = {"hami.io/gang": "train", "hami.io/gang-size": "2"}
        members = [site.pod_body(f"m{n}", {MEM: "4000"}, annotations=gang, schedulerName=UNNAMED) for n in range(3)]
        site.create(members[0])
        gates = site.pod("m0")["spec"]["schedulingGates"]
        site.create(members[1])
        site.wait_bound("m0", "m1")
        third = _refusal(site, members[2])

    assert "SCHED_PERCENT_OUT_OF_RANGE: container c0: nvidia.com/gpucores" in refused
    assert "SCHED_NODE_NAME_SET" in pinned
    assert "values: [a100]" in pinned
    assert bound["spec"]["schedulerName"] == "hami-scheduler"
    assert [[mib for _, mib, _ in one] for one in accounting.devices(bound)] == [[4000], []]
    assert bound["spec"]["containers"][1]["env"] == [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]
    assert gates == [{"name": "hami.io/gang"}]
    assert "SCHED_BAD_GANG: gang train has its 2 members already" in third
    assert applied.returncode == 0
    assert "Warning: no GPU here has 99,000 MiB" in applied.stderr

    site.create(site.pod_body("later", {GPU: "1", "nvidia.com/gpucores": "150"}))
    sites.wait_for(lambda: site.events("later", "FailedScheduling"), 60)
    assert "nvidia.com/gpucores" in site.events("later", "FailedScheduling")[0]


def _refusal(site: sites.Site, body: dict[str, object]) -> str:
    """Why the API server does not create it; empty where it would."""
    path = f"/api/v1/namespaces/{site.namespace}/pods?dryRun=All"
    try:
        site.api("POST", path, body)
    except client.Refused as refused:
        return str(refused)
    return ""
