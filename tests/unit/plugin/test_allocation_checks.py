import dataclasses
from typing import Any

import msgspec
import pytest

from device_plugin.allocation import checks, matching
from device_plugin.driver import gpu_source
from device_plugin.kubelet import checkpoint, podresources
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.node import api_objects, pods
from gpu_sharing.core import error_codes, gpus, identifiers, records, requests

NAMES = requests.ResourceNames()
A = identifiers.GpuUuid("GPU-a")
LIMITS = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"}


def pod(name: str = "p", uid: str = "u", record: str | None = "GPU-a,NVIDIA,100,30:;", **spec: Any) -> api_objects.Pod:
    annotations = {records.NODE: "n", records.TIME: "10"} | ({records.ALLOCATED: record} if record else {})
    body = {
        "metadata": {"name": name, "namespace": "d", "uid": uid, "annotations": annotations},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "resources": {"limits": LIMITS}}], **spec},
    }
    return msgspec.convert(body, api_objects.Pod)


def entry(uid: str = "u", container: str = "c", *tokens: str) -> checkpoint.Entry:
    return checkpoint.Entry(identifiers.PodUid(uid), container, frozenset(tokens or ("slot-0001",)), b"")


def doubt(code: error_codes.Code, *, retryable: bool = False) -> Any:
    return pytest.raises(StartRefused, check=lambda raised: raised.code == code and raised.retryable is retryable)


TOKENS = frozenset(["slot-0001"])


def test_an_init_container_and_the_app_container_that_reuses_its_ids_are_both_meant() -> None:
    found = checks.entries_with([entry("u", "i"), entry("u", "c"), entry("v", "c", "slot-0002")], TOKENS)

    assert [one.container for one in found] == ["i", "c"]


def test_ids_of_nobody_or_of_two_pods_are_doubted_for_now() -> None:
    with doubt(error_codes.ALLOC_OWNER_UNKNOWN, retryable=True):
        checks.entries_with([], TOKENS)
    with doubt(error_codes.ALLOC_OWNER_UNKNOWN, retryable=True):
        checks.entries_with([entry("u"), entry("v")], TOKENS)


def test_checkpoint_and_podresources_must_agree() -> None:
    mine = podresources.ListedContainer("d", "p", "c", TOKENS)
    other = dataclasses.replace(mine, pod="q")

    checks.compare_with_podresources(pod(), [entry()], TOKENS, [mine])
    with doubt(error_codes.ALLOC_OWNER_CONFLICT):
        checks.compare_with_podresources(pod(), [entry()], TOKENS, [other])
    with doubt(error_codes.ALLOC_OWNER_UNKNOWN, retryable=True):
        checks.compare_with_podresources(pod(), [entry()], TOKENS, [])


def test_podresources_never_lists_plain_init_containers() -> None:
    """An init-only request appears nowhere there; a sidecar does."""
    init = {"name": "i", "resources": {"limits": LIMITS}}
    plain = pod(initContainers=[init])
    sidecar = pod(initContainers=[{**init, "restartPolicy": "Always"}])

    checks.compare_with_podresources(plain, [entry("u", "i")], TOKENS, [])
    with doubt(error_codes.ALLOC_OWNER_UNKNOWN, retryable=True):
        checks.compare_with_podresources(sidecar, [entry("u", "i")], TOKENS, [])


def test_a_containers_own_shares() -> None:
    assert checks.recorded_shares(pod(), "c", 1, "n", names=NAMES)[0].memory_mib == 100


@pytest.mark.parametrize(
    ("body", "container", "count", "node", "code"),
    [
        (pod(record=None), "c", 1, "n", error_codes.ALLOC_NO_RECORD),
        (pod(record="garbage"), "c", 1, "n", error_codes.ALLOC_CORRUPT_RECORD),
        (pod(record="GPU-a,NVIDIA,1,1:;GPU-a,NVIDIA,1,1:;"), "c", 1, "n", error_codes.ALLOC_CORRUPT_RECORD),
        (pod(), "c", 2, "n", error_codes.ALLOC_CORRUPT_RECORD),
        (pod(), "x", 1, "n", error_codes.ALLOC_CORRUPT_RECORD),
        (pod(), "c", 1, "m", error_codes.ALLOC_WRONG_NODE),
    ],
)
def test_records_that_are_missing_forged_or_of_another_place_start_nothing(
    body: api_objects.Pod, container: str, count: int, node: str, code: error_codes.Code
) -> None:
    with doubt(code):
        checks.recorded_shares(body, container, count, node, names=NAMES)


def test_a_gpu_that_is_not_here_starts_nothing() -> None:
    device = gpu_source.Device(identifiers.GpuUuid("GPU-b"), 0, "T", 1, 0)

    with doubt(error_codes.ALLOC_WRONG_NODE):
        checks.recorded_devices(pod(), checks.recorded_shares(pod(), "c", 1, "n", names=NAMES), {device.uuid: device})


@pytest.mark.parametrize(
    ("gpu", "refuses"),
    [
        (gpus.Gpu(A, 0, 200, 100, 10, "T"), False),
        (gpus.Gpu(A, 0, 199, 100, 10, "T"), True),
        (gpus.Gpu(A, 0, 200, 59, 10, "T"), True),
        (gpus.Gpu(A, 0, 200, 100, 1, "T"), True),
    ],
)
def test_of_two_records_that_promise_too_much_the_newest_is_refused(gpu: gpus.Gpu, refuses: bool) -> None:
    older, newer = pod("p", "u"), pod("q", "v")
    newer.annotations[records.TIME] = "11"
    shares = checks.recorded_shares(newer, "c", 1, "n", names=NAMES)

    here = pods.Pods(NAMES, lambda: None)
    list(here.replaced([older, newer], 0.0))

    checks.refuse_oversubscription(older, shares, here.holders, {A: gpu})
    if refuses:
        with doubt(error_codes.ALLOC_OVERSUBSCRIBED):
            checks.refuse_oversubscription(newer, shares, here.holders, {A: gpu})
    else:
        checks.refuse_oversubscription(newer, shares, here.holders, {A: gpu})


def test_a_pod_beside_one_that_holds_the_gpu_for_itself_is_refused_whichever_came_later() -> None:
    """A pod that was promised a GPU of its own must not share it, although memory and cores would be enough."""
    alone, shared = pod("alone", "a", "GPU-a,NVIDIA,50,100:;"), pod("shared", "b", "GPU-a,NVIDIA,50,0:;")

    for older, newer in ((alone, shared), (shared, alone)):
        older.annotations[records.TIME], newer.annotations[records.TIME] = "10", "11"
        assert_starts(older, newer, starts=[older])


def test_two_pods_on_the_same_mig_slices_do_not_both_start() -> None:
    """The second would get the instance of the first."""
    text = '[{"containerIndex":0,"deviceIndex":0,"gpuUUID":"GPU-a","profile":"1g","placement":{"start":%d,"size":2}}]'
    first, same, beside = (pod(name, name, "GPU-a,NVIDIA,50,10:;") for name in ("p", "q", "r"))
    for time, (one, start) in enumerate(((first, 0), (same, 1), (beside, 2))):
        one.annotations.update({records.TIME: str(time), records.MIG_ALLOCATIONS: text % start})

    assert_starts(first, same, beside, starts=[first, beside])


def test_each_record_that_does_not_fit_is_refused_and_not_the_newest_alone() -> None:
    """Of three pods of 100 on 150 one starts: the second must not, only because there is a third."""
    three = [pod(name, name) for name in ("p", "q", "r")]
    for time, one in enumerate(three):
        one.annotations[records.TIME] = str(time)

    assert_starts(*three, starts=three[:1], memory_mib=150)


def assert_starts(*everybody: api_objects.Pod, starts: list[api_objects.Pod], memory_mib: int = 1_000) -> None:
    """Of pods on one GPU just those may start."""
    here = pods.Pods(NAMES, lambda: None)
    list(here.replaced(list(everybody), 0.0))
    inventory = {A: gpus.Gpu(A, 0, memory_mib, 100, 10, "T")}
    for one in everybody:
        shares = checks.recorded_shares(one, "c", 1, "n", names=NAMES)
        if one in starts:
            checks.refuse_oversubscription(one, shares, here.holders, inventory)
        else:
            with doubt(error_codes.ALLOC_OVERSUBSCRIBED):
                checks.refuse_oversubscription(one, shares, here.holders, inventory)


def candidates(
    here: list[api_objects.Pod],
    entries: list[checkpoint.Entry],
    answered: frozenset[matching.ContainerKey] = frozenset(),
) -> list[matching.Candidate]:
    return matching.candidates(
        here,
        entries,
        lambda one, name: checks.recorded_shares(one, name, 1, "n", names=NAMES),
        lambda container: requests.asks_for_gpu((container,), NAMES),
        answered=answered,
    )


def test_without_cdi_the_first_container_of_each_pod_that_has_nothing_may_be_asking() -> None:
    two = pod(
        "q", "v", record="GPU-a,NVIDIA,1,1:;GPU-a,NVIDIA,2,2:;",
        initContainers=[{"name": "i", "resources": {"limits": LIMITS}}],
    )  # fmt: skip
    none = pod("r", "w", record=None)

    found = candidates([pod(), two, none], [entry("u", "c")])
    then = candidates([pod(), two, none], [entry("u", "c"), entry("v", "i")])

    assert [(one.metadata.name, name) for one, name, _ in found] == [("q", "i")]
    assert [(one.metadata.name, name, shares[0].memory_mib) for one, name, shares in then] == [("q", "c", 2)]
    answered = frozenset([(identifiers.PodUid("v"), "i")])
    assert [name for _, name, _ in candidates([two], [], answered)] == ["c"]
