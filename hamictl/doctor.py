"""`hamictl doctor`: looks at a cluster or at the node it runs on, and says what is wrong and how to mend it.

It only reads. Exit status 0: nothing was found; 1: something was; 2: it could not look.
"""

import argparse
import asyncio
import base64
import ctypes
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gpu_sharing.adapters import certificates, kubernetes
from gpu_sharing.core import error_codes, errors, requests
from hamictl import failures, findings, flags, output, reader, state

_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
_LIBRARY = "libnvidia-ml.so.1"
_TRIES, _PAUSE_SECONDS = 5, 0.5


class _Object(msgspec.Struct):
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    webhooks: list[dict[str, Any]] | None = None
    spec: dict[str, Any] | None = None


class _List(msgspec.Struct):
    items: list[_Object] = msgspec.field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own flags."""
    parser.add_argument("what", nargs="?", choices=("cluster", "node"), default="cluster", help="default cluster")
    parser.add_argument("--kubelet-dir", type=pathlib.Path, default=pathlib.Path("/var/lib/kubelet"), metavar="DIR")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("/"), metavar="DIR", help="the host's root")


def run(options: argparse.Namespace) -> int:
    """Look, and tell. Returns the exit status."""
    checks = (
        node_checks(options.root, options.kubelet_dir)
        if options.what == "node"
        else _cluster(options.context, flags.kubeconfig(options), flags.where(options))
    )
    look = flags.look(options)
    found: list[findings.Finding] = []
    count = 0
    for name, told in checks:
        more = list(told)
        found += more
        count += 1
        if look.is_table:
            print(f"{'ok  ' if not more else 'bad '} {name}" + (f": {len(more)}" if more else ""), file=sys.stderr)
    failed = sum(one.severity == findings.ERROR for one in found)
    value = {
        "summary": {"checks": count, "errors": failed, "warnings": len(found) - failed},
        "findings": [one.to_facts() for one in found],
    }
    rows = [
        {"SEVERITY": one.severity, "ABOUT": one.about, "CODE": one.code, "DETAIL": one.detail,
         "WHAT TO DO": error_codes.REGISTRY[one.code].remedy}
        for one in found
    ]  # fmt: skip
    if look.is_table and not found:
        print("nothing is wrong")
    else:
        print(output.render(value, rows, look, names=[f"{one.code} {one.about}" for one in found]))
    return failures.NEGATIVE if found else 0


def _cluster(context: str, kubeconfig: pathlib.Path | None, where: reader.Where) -> Iterator[findings.Check]:
    names = requests.ResourceNames()
    believed, trouble = None, ""
    try:
        with reader.reaching(where) as api:
            before, cluster, after = _agreeing(api, kubeconfig, context, names)
            believed = after if before == after else None
            trouble = "" if believed is not None else "too much changes to compare it with the cluster"
    except failures.CommandFailed as cause:
        trouble = f"{cause}. {cause.hint}".strip()
        cluster = state.read_cluster(kubeconfig, context, names)
    ends_at, guarded = asyncio.run(_admission(kubeconfig, context))
    return findings.checks(findings.Patient(cluster, believed, trouble, ends_at, guarded, time.time()), names)


def _agreeing(
    api: reader.Reader, kubeconfig: pathlib.Path | None, context: str, names: requests.ResourceNames
) -> tuple[Any, state.State, Any]:
    """What the extender believes before and after a look at the cluster: looked again until nothing moved meanwhile."""
    for _ in range(_TRIES):
        before = api.get("pods")["pods"]
        cluster = state.read_cluster(kubeconfig, context, names)
        after = api.get("pods")["pods"]
        if before == after:
            break
        time.sleep(_PAUSE_SECONDS)
    return before, cluster, after


async def _admission(kubeconfig: pathlib.Path | None, context: str) -> tuple[float | None, bool]:
    """When the webhook's certificate ends, and whether records are guarded."""
    async with kubernetes.Client(kubeconfig, "hamictl", context) as client:
        hooks = await _list(client, "mutatingwebhookconfigurations")
        policies = await _list(client, "validatingadmissionpolicies")
    ours = [
        hook["clientConfig"]
        for item in hooks
        for hook in item.webhooks or ()
        if _calls_us(hook.get("clientConfig") or {})
    ]
    ends = [_ends_at(config.get("caBundle") or "") for config in ours]
    return min(ends, default=None), any("hami.io/vgpu" in json.dumps(one.spec or {}) for one in policies)


async def _list(client: kubernetes.Client, plural: str) -> list[_Object]:
    try:
        return (await client.get(f"{_ADMISSION}/{plural}", _List)).items
    except errors.NotFound:
        return []  # A server that does not know the kind has none of it.
    except errors.KubernetesError as cause:
        raise failures.CommandFailed(str(cause), f"you need to list {plural}") from cause


def _calls_us(config: dict[str, Any]) -> bool:
    path = (config.get("service") or {}).get("path") or config.get("url") or ""
    return str(path).rstrip("/").endswith("/webhook")


def _ends_at(bundle: str) -> float:
    """When a bundle's first certificate ends; never where that cannot be read, as cert-manager fills it in later."""
    try:
        text = base64.b64decode(bundle, validate=True).decode()
    except ValueError:
        return float("inf")
    found = certificates.ends_at(text)
    return float("inf") if found is None else found


def node_checks(root: pathlib.Path, kubelet_dir: pathlib.Path) -> Iterator[findings.Check]:
    """What a GPU node must have, looked for on this one."""
    sockets = kubelet_dir / "device-plugins"
    yield "driver", _unless(_loads(), error_codes.DOCTOR_NODE_DRIVER, _LIBRARY)
    yield "device nodes", _unless((root / "dev/nvidiactl").exists(), error_codes.DOCTOR_NODE_DEVICES, "/dev/nvidiactl")
    folders = [root / "etc/cdi", root / "var/run/cdi"]
    yield (
        "CDI",
        _unless(any(map(_has_spec, folders)), error_codes.DOCTOR_NODE_CDI, "kind: nvidia.com/gpu", findings.WARNING),
    )
    yield (
        "kubelet",
        _unless((sockets / "kubelet.sock").exists(), error_codes.DOCTOR_NODE_KUBELET, f"{sockets}/kubelet.sock"),
    )
    ours = any(sockets.glob("hami-*.sock"))
    yield "device plugin", _unless(ours, error_codes.DOCTOR_NODE_PLUGIN, f"{sockets}/hami-*.sock")
    memory = root / "dev/shm"
    writable = memory.is_dir() and os.access(memory, os.W_OK)
    yield "shared memory", _unless(writable, error_codes.DOCTOR_NODE_SHARED_MEMORY, str(memory), findings.WARNING)


def _unless(
    good: bool,
    code: error_codes.Code,
    detail: str,
    severity: str = findings.ERROR,
) -> Iterable[findings.Finding]:
    return () if good else (findings.Finding(code, severity, "node", detail),)


def _loads() -> bool:
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True


def _has_spec(folder: pathlib.Path) -> bool:
    for path in (*folder.glob("*.json"), *folder.glob("*.yaml")):
        try:
            if "nvidia.com/gpu" in path.read_text():
                return True
        except (OSError, UnicodeDecodeError):
            continue
    return False
