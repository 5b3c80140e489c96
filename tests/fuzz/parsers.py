"""The table of parsers: everything in our processes that turns outside bytes, text or JSON into values."""

import asyncio
import base64
import contextlib
import functools
import gzip
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import yaml
from google.protobuf import message

import webui.settings
from chaos import faults as chaos_faults
from chaos import scenario
from device_plugin import mps_daemon
from device_plugin import settings as plugin_settings
from device_plugin.allocation import cdi_applied
from device_plugin.delivery import host_cdi
from device_plugin.driver import pid_namespace
from device_plugin.isolation import hami_core
from device_plugin.kubelet import checkpoint, podresources
from device_plugin.monitor import cgroups, shared_region
from device_plugin.monitor import settings as monitor_settings
from device_plugin.node import inventory, node_file, startup
from fault_injector import server as fault_server
from fault_injector import settings as fault_settings
from fault_injector import tracker
from fault_injector.backends import node_agent
from gpu_sharing.adapters import certificates, cluster_access, decoding, objects
from gpu_sharing.core import (
    errors,
    faults,
    gangs,
    identifiers,
    policies,
    quantities,
    quotas,
    records,
    remediation,
    remediation_history,
    remediation_rules,
    request_mix,
    requests,
    xids,
)
from gpu_sharing.workload.canaries import asking, engines, http_calls
from gpu_sharing.workload.canaries import settings as canary_settings
from hamictl import cluster_reading, commands, failures, manifests, node_checks, snapshot
from hamictl.operations import backup, backup_file, cluster_state, images
from lab import certificates as lab_certificates
from lab import traces
from protos.deviceplugin.v1beta1 import api_pb2
from protos.podresources.v1 import api_pb2 as podresources_pb2
from scheduler_extender import settings as extender_settings
from scheduler_extender.act import certificate_keeper
from scheduler_extender.cluster import from_objects
from scheduler_extender.serve import wire
from tests import shared_regions
from tests.fuzz.targets import ACCEPTED, Check, Target, parser

NAMES = requests.ResourceNames()
UUIDS = ("GPU-00000000-0000-0000-0000-000000000001", "GPU-00000000-0000-0000-0000-000000000002")
_INVENTORY = json.dumps([
    {"id": uuid, "index": index, "count": 10, "devmem": 16_000, "devcore": 100, "type": "NVIDIA-A100", "numa": 0,
     "health": True, "mode": "hami-core",
     "migProfiles": [{"name": "1g.5gb", "memoryMB": 4864, "core": 14, "placements": [{"start": 0, "size": 1}]}]}
    for index, uuid in enumerate(UUIDS)
])  # fmt: skip
_LEGACY = "".join(f"{uuid},10,16000,100,NVIDIA-A100,0,true,{index},hami-core:" for index, uuid in enumerate(UUIDS))
_GPUS = records.decode_inventory(_INVENTORY)
_SHARES = f"{UUIDS[0]},NVIDIA,4000,30:{UUIDS[1]},NVIDIA,4000,30:;;"
_INSTANCES = json.dumps([
    {"containerIndex": 0, "deviceIndex": 0, "gpuUUID": UUIDS[0], "migUUID": "MIG-1", "profile": "1g.5gb",
     "placement": {"start": 0, "size": 1}}
])  # fmt: skip
_HEALTH = json.dumps({UUIDS[0]: {"state": "unhealthy", "cause": "XID 79", "need": "reboot", "boot": "b1"}})
_HISTORY = json.dumps([{"action": "cordon-gpu", "rule": "lost", "at": [1, 2], "gpu": UUIDS[0], "holds": True}])
_HOLD = json.dumps({"node": "a", "gpus": [UUIDS[0]], "until": 1_700_000_000})
_POD = {
    "metadata": {
        "name": "p", "namespace": "default", "uid": "u-1", "labels": {gangs.LABEL: "g"}, "resourceVersion": "5",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {
            records.ALLOCATED: _SHARES, records.MIG_ALLOCATIONS: _INSTANCES, records.HOLD: _HOLD, records.NODE: "a",
            records.BIND_TIME: "1700000000", records.BIND_PHASE: "success", requests.GPU_POLICY: "binpack,numa",
            requests.NODE_POLICY: "spread", requests.SCORING_WEIGHTS: "slot=1,core=1,memory=3", gangs.SIZE: "2",
            gangs.NAME: "g",
        },
    },
    "spec": {
        "nodeName": "a", "priority": 5, "schedulerName": "hami-scheduler", "overhead": {"cpu": "1"},
        "initContainers": [{"name": "i", "restartPolicy": "Always", "resources": {"limits": {"nvidia.com/gpu": 1}}}],
        "containers": [{
            "name": "c",
            "resources": {
                "limits": {
                    "nvidia.com/gpu": "2", "nvidia.com/gpumem": "4k", "nvidia.com/gpucores": 30,
                    "nvidia.com/gpumem-percentage": "50", "cpu": "100m", "memory": "1Gi",
                },
                "requests": {"nvidia.com/gpu": "2", "cpu": "0.5"},
            },
        }],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["1"]}]}]}}},
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}],
    },
    "status": {"phase": "Pending", "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "X"}}}]},
}  # fmt: skip
_NODE = {
    "metadata": {
        "name": "a", "labels": {"zone": "1"},
        "annotations": {
            records.INVENTORY: _INVENTORY, records.HEALTH: _HEALTH, records.AGENT: "hami-py/1",
            records.SCORE: json.dumps([{"uuid": UUIDS[0], "score": {UUIDS[1]: 8}}]), records.CORDON: UUIDS[0],
            records.RELEASE: UUIDS[1], records.PROBLEMS: json.dumps({"PLUGIN_MPS": "text"}),
            remediation_history.ANNOTATION: _HISTORY,
        },
    },
    "spec": {"unschedulable": True, "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]},
    "status": {
        "allocatable": {"nvidia.com/gpu": "20", "cpu": "8", "memory": "64Gi"},
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}  # fmt: skip
_KUBECONFIG = {
    "apiVersion": "v1", "kind": "Config", "current-context": "x",
    "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t", "as": "me", "as-groups": ["g"], "as-user-extra": {"k": ["v"]}}}],
    "contexts": [{"name": "x", "context": {"cluster": "x", "user": "u", "namespace": "n"}}],
}  # fmt: skip
_CDI = {
    "cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
    "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/null"}]}}],
    "containerEdits": {
        "env": ["A=b"], "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"]}],
        "hooks": [{"hookName": "createContainer", "path": "/x", "args": ["a"]}],
    },
}  # fmt: skip
_NODE_FILE = {
    "nodeconfig": [{
        "name": "a", "devicesplitcount": 4, "devicememoryscaling": 1.5, "operatingmode": "mps",
        "preconfigureddevicememory": {"A100": 4000}, "filterdevices": {"uuid": ["GPU-1"], "index": [1]},
    }]
}  # fmt: skip
_RULES = {
    "actsPerHour": 5, "breaker": {"nodes": 3, "percent": 20, "halfOpenSeconds": 600},
    "rules": [{"name": "lost", "when": {"xid": [79]}, "do": "cordon-gpu", "forSeconds": 5, "priority": 5}],
}  # fmt: skip


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _refusing(read: Callable[[bytes], object], *refusals: type[Exception]) -> Check:
    """Return a check by which the reader may raise these, and nothing else. `UnicodeDecodeError` is a `ValueError`."""

    def check(data: bytes) -> str:
        try:
            value = read(data)
        except refusals as refused:
            return str(getattr(refused, "code", "") or type(refused).__name__)
        return "none" if value is None else ACCEPTED

    return check


def _texts(name: str, read: Callable[[str], object], *samples: str, refusals: Sequence[type[Exception]] = ()) -> Target:
    """Return the target of a reader of one text."""
    return parser(name, _refusing(lambda data: read(_text(data)), *refusals), (_place(read),), *samples)


def _place(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return f"{function.__module__}:{function.__qualname__}"


def _json(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    """Return the reader of the text of a value; a text that is not JSON is refused before it."""

    def whole(data: bytes) -> object:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return read(value)

    return whole


_folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))


def _certificate() -> str:
    lab_certificates.write(_folder / "sample.crt", _folder / "sample.key")
    return (_folder / "sample.crt").read_text()


_CERTIFICATE = _certificate()


def _secret_text() -> str:
    renewed = certificate_keeper.renewed({}, ("localhost",), time.time())
    assert renewed is not None
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in renewed.items()}
    return json.dumps({"metadata": {"resourceVersion": "1"}, "data": encoded})


def _file(name: str, read: Callable[[pathlib.Path], object]) -> Callable[[bytes], object]:
    """Return the reader of a file with the input in it."""
    path = _folder / name

    def whole(data: bytes) -> object:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return whole


# The domain


def _both_shares(text: str) -> object:
    records.legible_shares(text)
    return records.decode_shares(text, [True, False])


def _quantity(text: str) -> object:
    raws: list[Any] = [text]
    with contextlib.suppress(ValueError, RecursionError):
        raws.append(json.loads(text))
    for raw in raws:
        quantities.thousandths(None if isinstance(raw, list | dict) else raw)
        for read in (quantities.count, quantities.memory_mib, functools.partial(quantities.percent, lowest=0)):
            read("x", raw)
    return raws


def _policy(text: str) -> object:
    readers: tuple[Callable[[str, str], object], ...] = (policies.node_policy, policies.gpu_policy, policies.weights)
    refused: errors.BadQuantity | None = None
    for read in readers:
        try:
            return read(text, "x")
        except errors.BadQuantity as cause:
            refused = cause
    assert refused is not None
    raise refused


def _pod(data: bytes) -> object:
    pod = msgspec.json.decode(data, type=objects.Pod)
    request = requests.read(pod.init_containers, pod.containers, pod.annotations, NAMES)
    requests.device_ids(pod.init_containers, pod.containers, NAMES)
    from_objects.gang_of(pod)
    from_objects.pending_pod(pod, NAMES)
    from_objects.pod_facts(pod, NAMES)
    if isinstance(request, requests.InvalidRequest):
        raise errors.BadQuantity(request.code, request.sentence)
    return request


def _node(data: bytes) -> object:
    node = msgspec.json.decode(data, type=objects.Node)
    from_objects.node_health(node)
    return from_objects.node_facts(node, NAMES, allow_hami_nodes=True)


def _quota(data: bytes) -> object:
    quota = msgspec.json.decode(data, type=objects.ResourceQuota)
    hard = quota.spec.hard or {}
    quotas.uncounted(hard, NAMES)
    return quotas.read("q", hard, NAMES)


def _gang(data: bytes) -> object:
    words = msgspec.json.decode(data, type=dict[str, str])
    return gangs.read(words, words)


def _rules(value: Any) -> object:
    rules = remediation_rules.read(value)
    if not isinstance(rules, remediation_rules.RuleSet):
        raise errors.FaultRefused(rules[0].code, "refused")
    return rules


def _fault_request(value: Any) -> object:
    """Return the request as of each group; refused if no group accepts it."""
    refused: errors.FaultRefused | None = None
    accepted: list[faults.Request] = []
    for group in faults.Group:
        try:
            accepted.append(faults.read_request(value, group, {}))
        except errors.FaultRefused as cause:
            refused = cause
    if refused is not None and not accepted:
        raise refused
    return accepted


def _fault_record(text: str) -> object:
    document = faults.decode(text)
    return faults.decode(faults.encode(document))


_MIX = json.dumps({"version": 1, "shapes": [[1, 4000, 0, 30, ["a100"], [], 2000, 4096, 3.5]]})

_CORE = (
    _texts("inventory record", records.decode_inventory, _INVENTORY, _LEGACY, refusals=[errors.CorruptRecord]),
    parser(
        "link record", lambda data: "refused" if records.decode_links(_text(data), _GPUS)[1] else ACCEPTED,
        ["gpu_sharing.core.records:decode_links"],
        json.dumps([{"uuid": one, "score": {other: 8}} for one, other in (UUIDS, UUIDS[::-1])]),
    ),
    _texts("cordon", records.decode_cordon, ",".join(UUIDS)),
    _texts("unhealthy GPUs", records.decode_unhealthy_reasons, _HEALTH),
    _texts("problems of a node", records.decode_problems, json.dumps({"PLUGIN_MPS": "text"})),
    _texts("made MIG instances", records.decode_made, json.dumps([[UUIDS[0], "1g.5gb", 0, 1]])),
    parser(
        "pod record", _refusing(lambda data: _both_shares(_text(data)), errors.CorruptRecord),
        [f"gpu_sharing.core.records:{name}" for name in ("decode_shares", "legible_shares", "_decode_share")], _SHARES,
    ),
    parser(
        "MIG record", _refusing(
            lambda data: records.decode_instances(_text(data), records.decode_shares(_SHARES, [True, False])),
            errors.CorruptRecord,
        ),
        ["gpu_sharing.core.records:decode_instances"], _INSTANCES,
    ),
    _texts("hold", records.decode_hold, _HOLD),
    _texts("request mix", request_mix.decode, _MIX, refusals=[errors.CorruptRecord]),
    parser(
        "MIG shares", lambda data: ACCEPTED if records.mig_shares(_text(data), 0) else "none",
        ["gpu_sharing.core.records:mig_shares"], _INSTANCES,
    ),
    parser(
        "GPU facts of remediation",
        _refusing(lambda data: remediation.gpu_facts(_GPUS, _text(data), frozenset(), frozenset())),
        ["gpu_sharing.core.remediation:_health_items"], _HEALTH,
    ),
    _texts("remediation history", remediation_history.decode, _HISTORY),
    parser(
        "remediation rules", _refusing(_json(_rules), errors.FaultRefused),
        ["gpu_sharing.core.remediation_rules:read"], json.dumps(_RULES), json.dumps({"rules": []}),
    ),
    parser(
        "fault request", _refusing(_json(_fault_request), errors.FaultRefused),
        ["gpu_sharing.core.faults:read_request", "gpu_sharing.core.faults:_read"],
        json.dumps({"kind": "xid", "xid": 79, "node": "a", "gpu": "0", "duration_seconds": 60}),
        json.dumps({"pair": "custom", "namespace": "n", "from_pods": "a=b", "to_pods": "c=d"}),
    ),
    parser(
        "record of faults", _refusing(lambda data: _fault_record(_text(data)), errors.CorruptRecord),
        ["gpu_sharing.core.faults:decode"],
        json.dumps({"version": 1, "next": 2, "faults": [{
            "id": "f1", "kind": "xid", "values": {"xid": 79, "node": "a", "gpu": "0"}, "backend": "lab",
            "state": "injected", "created_at": 1.5, "injected_at": 2, "finished_at": 0, "duration_seconds": 5,
            "cause": "",
        }]}),
    ),
    parser(
        "quantity", _refusing(lambda data: _quantity(_text(data)), errors.BadQuantity), ["gpu_sharing.core.quantities"],
        "4000", "4Gi", "1e3", "30", "0.5k", "7",
    ),
    parser(
        "policy", _refusing(lambda data: _policy(_text(data)), errors.BadQuantity), ["gpu_sharing.core.policies"],
        "binpack", "spread,numa", "mutex", "slot=1,core=1,memory=3",
    ),
    parser(
        "overrides of XIDs", _refusing(lambda data: xids.read_overrides(_text(data), _text(data))),
        ["gpu_sharing.core.xids:read_overrides"], "all", "xids,79", "13, 31",
    ),
    parser(
        "gang", _refusing(_gang, errors.BadQuantity, ValueError, RecursionError), ["gpu_sharing.core.gangs:read"],
        json.dumps({gangs.NAME: "g", gangs.SIZE: "4"}), json.dumps({gangs.LABEL: "g"}),
    ),
    parser(
        "quota", _refusing(_quota, ValueError, RecursionError), ["gpu_sharing.core.quotas:read"],
        json.dumps({"metadata": {"name": "q"}, "spec": {"hard": {"limits.nvidia.com/gpu": "4", "limits.cpu": 1}}}),
    ),
    parser(
        "pod", _refusing(_pod, errors.BadQuantity, ValueError, RecursionError),
        [
            "gpu_sharing.core.requests:read", "gpu_sharing.core.requests:_from_limit_ranges",
            "scheduler_extender.cluster.from_objects",
        ],
        json.dumps(_POD),
    ),
    parser("node", _refusing(_node, ValueError, RecursionError), ["scheduler_extender.cluster.from_objects"],
           json.dumps(_NODE)),
)  # fmt: skip


# What a probe reads of a model server


def _canary_answer(data: bytes) -> object:
    """Return the answer, after every engine's canary has judged it and built a request by it."""
    value = asking.decoded(http_calls.Answer(200, data))
    for canary in engines.ENGINES.values():
        canary.wrong(value)
        canary.first_model(value)
        with contextlib.suppress(http_calls.CanaryRefused):
            canary.payload(canary_settings.CanarySettings(), "m", value)
    return value


_CANARIES = (
    parser(
        "answer to a canary", _refusing(_canary_answer, http_calls.CanaryRefused),
        ["gpu_sharing.workload.canaries.asking:decoded"],
        json.dumps({"choices": [{"text": "!"}]}), json.dumps({"data": [{"id": "m"}]}),
        json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], "outputs": [{}]}),
    ),
    parser(
        "metrics of a model server",
        _refusing(lambda data: asking.traffic(data, engines.ENGINES["vllm"].traffic_series)),
        ["gpu_sharing.workload.canaries.asking:traffic"],
        'vllm:generation_tokens_total{model_name="m"} 5.0 1700000000000', "vllm:request_success_total 1e3",
    ),
    parser(
        "whole request of a canary", _refusing(
            lambda data: canary_settings.from_environment({canary_settings.PAYLOAD: _text(data)}),
            http_calls.CanaryRefused,
        ),
        ["gpu_sharing.workload.canaries.settings:_payload"], '{"prompt": "Hi", "max_tokens": 1}',
    ),
    parser(
        "token ids of a canary", _refusing(
            lambda data: canary_settings.from_environment({canary_settings.TOKEN_IDS: _text(data)}),
            http_calls.CanaryRefused,
        ),
        ["gpu_sharing.workload.canaries.settings:_token_ids"], "1,2,3",
    ),
    parser(
        "tokenizer's configuration",
        _refusing(_file("tokenizer/config.json", lambda path: canary_settings.bos_token_id(path.parent))),
        ["gpu_sharing.workload.canaries.settings:bos_token_id"],
        json.dumps({"bos_token_id": 1}), json.dumps({"bos_token_id": [1, 2]}),
    ),
    parser(
        "address of a model server", _refusing(lambda data: http_calls.target(_text(data)), http_calls.CanaryRefused),
        ["gpu_sharing.workload.canaries.http_calls:target"], "http://localhost:8000/base", "https://[::1]:8000",
    ),
)  # fmt: skip


# What the extender and all services read


def _bodies(data: bytes) -> object:
    wire.uid_of(data)
    asked: object = None
    for read in (wire.decode_bind, wire.decode_preempt, wire.decode_filter):
        with contextlib.suppress(wire.BadRequest):
            asked = read(data)
            if isinstance(asked, wire.FilterArgs):
                wire.names_of(asked)
            if isinstance(asked, wire.PreemptArgs):
                wire.victims_of(asked)
    return asked


def _kubeconfig(path: pathlib.Path) -> object:
    cluster_access.namespace([path], "")
    return cluster_access.by_kubeconfig([path], "")


def _arguments(data: bytes) -> list[str]:
    return [word for word in _text(data).split("\n") if "help" not in word and word != "-h"]


def _flags(*parsers: Callable[[Sequence[str], Mapping[str, str]], object]) -> Callable[[bytes], object]:
    """Return the reader of a command line, one word a line, and of the same words as the environment."""

    def whole(data: bytes) -> object:
        words = _arguments(data)
        environment = {
            f"HAMI_{name.removeprefix('--').upper().replace('-', '_')}": text
            for name, text in zip(words[::2], words[1::2], strict=False)
        }
        environment |= {name: words[-1] for name in ("DP_DISABLE_HEALTHCHECKS", "DP_ENABLE_HEALTHCHECKS") if words}
        refused: BaseException | None = None
        accepted = False
        for parse in parsers:
            for arguments, variables in ((words, {}), ([], environment)):
                try:
                    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                        parse(arguments, variables)
                    accepted = True
                except (errors.SettingsError, SystemExit) as cause:
                    refused = cause
        if isinstance(refused, errors.SettingsError) and not accepted:
            raise refused
        return words if accepted else None

    return whole


def _hamictl(data: bytes) -> object:
    words = _arguments(data)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return commands.make_parser(commands.wanted_in(words)).parse_args(words)
        except SystemExit:
            return None


_HOOKS = b'{"metadata":{"resourceVersion":"1"},"webhooks":[{"clientConfig":{}}]}'


class _Secrets:
    """An API server with one Secret, which takes every write."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def get(self, path: str, kind: type[Any]) -> Any:
        """Return the Secret, or a configuration with one webhook."""
        is_secret = path.startswith("/api/")
        return decoding.json_as(kind, self._content if is_secret else _HOOKS)

    async def patch(self, path: str, body: bytes) -> bytes:
        """Accept the write."""
        return b"{}"


def _secret(data: bytes) -> object:
    place = certificate_keeper.Place("/api/s", ("localhost",), _folder / "own.crt", _folder / "own.key", "hooks")
    client: Any = _Secrets(data)
    asyncio.run(certificate_keeper.CertificateKeeper(client, place).look())
    return place


_SERVICES = (
    parser(
        "Secret of a certificate", _refusing(_secret, errors.KubernetesError, ValueError),
        ["scheduler_extender.act.certificate_keeper:CertificateKeeper.look"],
        json.dumps({"metadata": {"resourceVersion": "1"}, "data": {}}), _secret_text(),
    ),
    parser(
        "bodies of the verbs", _refusing(_bodies), ["scheduler_extender.serve.wire"],
        json.dumps({"Pod": _POD, "Nodes": None, "NodeNames": ["a", "b"]}),
        json.dumps({"pod": _POD, "nodes": {"items": [_NODE]}}),
        json.dumps({"PodName": "p", "PodNamespace": "default", "PodUID": "u-1", "Node": "a"}),
        json.dumps({
            "Pod": _POD, "NodeNameToVictims": {"a": {"Pods": [_POD], "NumPDBViolations": 1}},
            "NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "u"}], "NumPDBViolations": 1}},
        }),
    ),
    parser(
        "kubeconfig", _refusing(_file("kubeconfig", _kubeconfig), errors.SettingsError),
        ["gpu_sharing.adapters.cluster_access"], json.dumps(_KUBECONFIG), yaml.safe_dump(_KUBECONFIG),
    ),
    parser(
        "certificate", _refusing(_file("tls.crt", certificates.expires_at)), ["gpu_sharing.adapters.certificates"],
        _CERTIFICATE,
    ),
    parser(
        "remediation rules in a file",
        _refusing(
            _file("rules", lambda path: extender_settings.parse(["--remediation-rules", str(path)], {})),
            errors.SettingsError,
        ),
        ["scheduler_extender.settings:_rules"], json.dumps(_RULES), json.dumps({"rules": []}),
    ),
    parser(
        "flags and environment",
        _refusing(
            _flags(
                extender_settings.parse, plugin_settings.parse, monitor_settings.parse, mps_daemon.parse,
                webui.settings.parse, fault_settings.parse,
            ),
            errors.SettingsError,
        ),
        [
            "scheduler_extender.settings:parse", "device_plugin.settings:parse", "device_plugin.monitor.settings:parse",
            "device_plugin.mps_daemon:parse", "webui.settings:parse", "fault_injector.settings:parse",
            "gpu_sharing.adapters.flags:read", "gpu_sharing.adapters.health_endpoint:read",
            "device_plugin.node_flags:read",
        ],
        "--http-bind\n127.0.0.1:0\n--v\n4", "--node-name\na\n--device-split-count\n10\n--device-memory-scaling\n1.5",
        "--node-name\na\n--interval\n5\n--bind\n[::1]:9394", "--extender\nhttp://x:1\n--bind\n:0",
        "--gpu-scheduler-policy\nbinpack\n--prometheus-url\nhttp://p:9090", "--node-name\na\n--shared-memory\n64",
        "--readyz-components\nrecord\n--startup-seconds\n1e9", "--node-name\na\n79,13",
    ),
    parser(
        "command lines of hamictl", _refusing(_hamictl, failures.CommandFailed), ["hamictl.commands"],
        "simulate\nx.yaml\n--replicas\n4", "demo\n--nodes\n4\n--port\n1", "explain\np\n-n\nd",
        "snapshot\nx\n--seconds\n5",
        "fault\ninject\ngpu\nxid\nnode=a", "top\n-o\njson", "doctor\n--node",
    ),
)  # fmt: skip


# What a node reads


def _checkpoint(data: bytes) -> object:
    entries = checkpoint.read(data, "nvidia.com/gpu")
    return [(entry.cdi_names, entry.environment) for entry in entries]


def _podresources(data: bytes) -> object:
    answer = podresources_pb2.ListPodResourcesResponse.FromString(data)
    return podresources.PodResources(_folder, "nvidia.com/gpu")._read(answer)


def _cdi(suffix: str) -> Callable[[bytes], object]:
    def read(path: pathlib.Path) -> object:
        specs = host_cdi.Reader([path.parent]).read()
        specs.gpu(UUIDS[0], 0)
        list(specs.divided(0, [UUIDS[1]]).copied)
        return specs.version or None

    return _file(f"cdi-{suffix}/nvidia.{suffix}", read)


def _node_entry(path: pathlib.Path) -> object:
    entry = node_file.NodeFile(path, plugin_settings.Sharing(), "a", lambda sharing: None)
    entry.reload()
    return plugin_settings.for_node(plugin_settings.Sharing(), path.read_text(errors="replace"), "a")


def _proc(path: pathlib.Path) -> object:
    proc = path.parents[1]
    pid_namespace.problem(proc)
    host_cdi.driver_version(proc)
    (proc / "driver" / "nvidia" / "capabilities").mkdir(parents=True, exist_ok=True)
    return host_cdi.capabilities(proc)


def _environ(path: pathlib.Path) -> object:
    (path.parent / "cgroup").write_bytes(path.read_bytes())
    cdi_applied.find_marks(path.parents[1], {"a" * 64})
    return cdi_applied._is_marked(path.parent)


def _region() -> bytes:
    path = shared_regions.write(_folder / "sample", used=(5, 7), uuids=UUIDS, percent=20)
    return path.read_bytes()


def _shared_region(data: bytes) -> object:
    """The region is 2 MiB of zeros but for its start, which is all that is changed."""
    whole = data + _REGION[len(data) :] if len(data) < len(_REGION) else data
    return _file("region.cache", lambda path: shared_region.read(path, _MEMORY_BYTES))(whole)


_REGION = _region()
_MEMORY_BYTES = {identifiers.GpuUuid(uuid): 16 << 30 for uuid in UUIDS}
_ALLOCATED = api_pb2.ContainerAllocateResponse(envs={"A": "b"}, cdi_devices=[api_pb2.CDIDevice(name="hami.io/x=y")])
_LISTED = podresources_pb2.ListPodResourcesResponse(
    pod_resources=[
        podresources_pb2.PodResources(
            name="p", namespace="d",
            containers=[podresources_pb2.ContainerResources(
                name="c",
                devices=[podresources_pb2.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=["slot-0001"])],
            )],
        )
    ]
)  # fmt: skip
_CHECKPOINT = json.dumps({
    "Data": {
        "PodDeviceEntries": [{
            "PodUID": "u", "ContainerName": "c", "ResourceName": "nvidia.com/gpu", "DeviceIDs": {"-1": ["slot-0001"]},
            "AllocResp": base64.b64encode(_ALLOCATED.SerializeToString()).decode(),
        }],
        "RegisteredDevices": {"nvidia.com/gpu": ["slot-0001"]},
    },
    "Checksum": 1,
})  # fmt: skip
_UID = "01234567-89ab-cdef-0123-456789abcdef"

_NODES = (
    parser(
        "kubelet's checkpoint", _refusing(_checkpoint, errors.CorruptRecord),
        ["device_plugin.kubelet.checkpoint:read", "device_plugin.kubelet.checkpoint:_entry",
         "device_plugin.kubelet.checkpoint:_decoded", "device_plugin.kubelet.checkpoint:Entry._decoded"],
        _CHECKPOINT,
    ),
    parser(
        "podresources", _refusing(_podresources, message.DecodeError),
        ["device_plugin.kubelet.podresources:PodResources._read"], _LISTED.SerializeToString(),
    ),
    parser("CDI file in JSON", _refusing(_cdi("json")), ["device_plugin.delivery.host_cdi"], json.dumps(_CDI)),
    parser("CDI file in YAML", _refusing(_cdi("yaml")), ["device_plugin.delivery.host_cdi"], yaml.safe_dump(_CDI)),
    parser(
        "file of nodes", _refusing(_file("nodes.json", _node_entry), errors.SettingsError),
        ["device_plugin.settings:for_node"], json.dumps(_NODE_FILE),
    ),
    parser(
        "unhealthy GPUs of the last boot", _refusing(lambda data: inventory.unhealthy_in_boot(_text(data), "b1", 5.0)),
        ["device_plugin.node.inventory:unhealthy_in_boot", "gpu_sharing.core.health:from_facts"], _HEALTH,
    ),
    parser(
        "boot id", _refusing(_file("boot_id", startup.boot_id), errors.SettingsError),
        ["device_plugin.node.startup:boot_id"], f"{_UID}\n",
    ),
    _texts("cgroup", cgroups.parse, f"0::/kubepods/pod{_UID}/{'a' * 64}\n",
           f"0::/kubepods.slice/kubepods-pod{_UID.replace('-', '_')}.slice/cri-containerd-{'b' * 64}.scope\n"),
    parser("status in /proc", _refusing(_file("proc/self/status", _proc)),
           ["device_plugin.driver.pid_namespace", "device_plugin.delivery.host_cdi:capabilities"],
           "Name:\tx\nNSpid:\t4711\t5\n"),
    parser("environment in /proc", _refusing(_file("proc/5/environ", _environ)),
           ["device_plugin.allocation.cdi_applied"], "A=b\0HAMI=1\0", f"0::/kubepods/pod1/{'a' * 64}\n"),
    parser(
        "shared region of HAMi-core", _refusing(_shared_region, shared_region.InvalidRegion),
        ["device_plugin.monitor.shared_region", "gpu_sharing.core.hami_core_region"], _REGION[:4096],
    ),
    parser("library of HAMi-core", _refusing(_file("lib.so", hami_core._unloadable)),
           ["device_plugin.isolation.hami_core:_unloadable"], b"\x7fELF\x02\x01" + bytes(14) + b"\x03\x00\x3e\x00"),
    parser("modes before MPS", _refusing(_file("modes.json", mps_daemon._modes)), ["device_plugin.mps_daemon:_modes"],
           json.dumps({UUIDS[0]: 3})),
    parser(
        "agent's result",
        _refusing(lambda data: node_agent.result_of(node_agent.ConfigMap(data={"f1": _text(data)}), "f1")),
        ["fault_injector.backends.node_agent:result_of"], json.dumps({"state": "injected", "cause": ""}),
    ),
    parser("path of the fault injection API", _refusing(fault_server.route_of),
           ["fault_injector.server:route_of"], "/api/v1/faults/gpu/xid-79", "/api/v1/faults/f1/recover",
           "/api/v1/metrics/gpu", "/api/v1/faults/network/inject"),
    parser("file of faults", _refusing(_file("faults.json", lambda path: tracker.FileKeep(path)._load()), OSError),
           ["fault_injector.tracker:FileKeep._load", "fault_injector.tracker:FileKeep.load"], '{"faults": []}'),
)  # fmt: skip


# What hamictl, the lab and the scenarios read


def _doctor_of_node(path: pathlib.Path) -> object:
    return list(node_checks._other_plugins(path.parent))


def _trace(file_name: str) -> Callable[[bytes], object]:
    """Return the reader of a trace with the input as one of its two files."""
    folder = _folder / f"trace-{file_name}"

    def whole(data: bytes) -> object:
        folder.mkdir(exist_ok=True)
        for name, text in _TRACE.items():
            (folder / name).write_text(text)
        (folder / file_name).write_bytes(data)
        return traces.read(folder)

    return whole


_TRACE = {
    "openb_node_list_gpu_node.csv": "sn,cpu_milli,memory_mib,gpu,model\nn1,64000,262144,2,T4\n",
    "openb_pod_list_default.csv": (
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time\n"
        "p1,1000,1024,1,500,T4|A10,LS,Running,5\np2,1000,1024,2,1000,,BE,Running,7\n"
    ),
}
_DEPLOYMENT = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n"},
    "spec": {"replicas": 3, "template": {"metadata": {"labels": {"a": "b"}}, "spec": _POD["spec"]}},
}  # fmt: skip
_DAEMONS = {**_DEPLOYMENT, "kind": "DaemonSet"}
_LWS = {
    "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": {"name": "l"},
    "spec": {"replicas": 2, "leaderWorkerTemplate": {"size": 4, "workerTemplate": {"spec": _POD["spec"]}}},
}  # fmt: skip
_STATE = {
    "version": snapshot.VERSION, "taken_at": "2026-01-01T00:00:00+00:00", "nodes": [_NODE], "pods": [_POD],
    "quotas": [{"metadata": {"name": "q"}, "spec": {"hard": {"limits.nvidia.com/gpu": "4"}}}],
}  # fmt: skip
_SCENARIO = """
title = "A fault"
replicas = 1
steady_seconds = 5
fault_seconds = 10
[[faults]]
kind = "extender-killed"
after_seconds = 1
[expect]
bound_percent = 99
"""


def _manifest(data: bytes) -> object:
    node = msgspec.convert(_NODE, objects.Node)
    return manifests.read(pathlib.Path("x.yaml"), _text(data), None, [node])


def _backup(data: bytes) -> object:
    """The input as it is, and with the checksum of its content, behind which a changed one never comes."""
    fields: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(data)
    if isinstance(fields, dict):
        fields.pop("checksum", None)
        return backup_file.decode(json.dumps({**fields, "checksum": backup_file._checksum(fields)}).encode())
    return backup_file.decode(data)


def _release(data: bytes) -> object:
    """The input is the release's JSON, packed as Helm does it, or else the Secret's value."""
    secret = cluster_state._Secret
    packed = base64.b64encode(base64.b64encode(gzip.compress(data))).decode()
    values = [cluster_state._values_of(secret(data={"release": text})) for text in (packed, _text(data))]
    return values[0]


_BACKUP = backup_file.Backup(
    kind=backup_file.KIND, version=backup_file.VERSION, at="2026-01-01T00:00:00+00:00", program="1", cluster_uid="u",
    namespace="n", content=backup_file.Content(), left_out=[],
)  # fmt: skip
_PROGRAMS = (
    parser("backup", _refusing(_backup, failures.CommandFailed), ["hamictl.operations.backup_file:decode"],
           backup_file.encode(_BACKUP)),
    parser("Helm values", _refusing(_file("values.json", backup._values), failures.CommandFailed),
           ["hamictl.operations.backup:_values"], '{"scheduler": {"replicas": 2}}'),
    parser("Helm release", _refusing(_release), ["hamictl.operations.cluster_state:_values_of"],
           '{"config": {"scheduler": {}}}'),
    _texts("reference of an image", images.parse, "ghcr.io/x/hami-py:0.1.0", f"x@sha256:{'a' * 64}",
           refusals=[failures.CommandFailed]),
    parser(
        "manifest", _refusing(_manifest, failures.CommandFailed), ["hamictl.manifests:read", "hamictl.manifests:_add"],
        json.dumps({**_POD, "kind": "Pod"}), json.dumps(_DEPLOYMENT), json.dumps(_DAEMONS), json.dumps(_LWS),
        yaml.safe_dump_all([{**_POD, "kind": "Pod"}, _DEPLOYMENT]),
        json.dumps({"kind": "List", "items": [{**_POD, "kind": "Pod"}]}),
        json.dumps({"kind": "PodGroup", "metadata": {"name": "g"}, "spec": {"minMember": 2}}),
    ),
    parser(
        "snapshot", _refusing(_file("snapshot.json", snapshot.load), failures.CommandFailed), ["hamictl.snapshot:load"],
        json.dumps(_STATE),
    ),
    parser("checkpoint by doctor", _refusing(_file(f"doctor/{node_checks._CHECKPOINT}", _doctor_of_node)),
           ["hamictl.node_checks:_other_plugins"], _CHECKPOINT),
    parser("configuration of containerd", _refusing(_file("config.toml", node_checks._toml)),
           ["hamictl.node_checks:_toml"], '[plugins."io.containerd.cri.v1.runtime"]\nenable_cdi = true\n'),
    parser("authority of a webhook", _refusing(lambda data: cluster_reading._ends_at(_text(data))),
           ["hamictl.cluster_reading:_ends_at"], base64.b64encode(_CERTIFICATE.encode()).decode()),
    *(
        parser(f"trace: {name.split('_')[1]} list", _refusing(_trace(name), traces.BadTrace), ["lab.traces"], text)
        for name, text in _TRACE.items()
    ),
    parser(
        "scenario",
        _refusing(
            _file("scenario.toml", lambda path: scenario.read(path, chaos_faults.OPTIONS)),
            scenario.BadScenario,
        ),
        ["chaos.scenario"], _SCENARIO,
    ),
)  # fmt: skip

PARSERS: tuple[Target, ...] = (*_CORE, *_CANARIES, *_SERVICES, *_NODES, *_PROGRAMS)
