"""Values for tests, by hand and by hypothesis: small enough to collide often."""

import itertools

from hypothesis import strategies as st

from gpu_sharing.core import allocations, gpus, identifiers, placement, policies, requests, topology
from gpu_sharing.core.rejections import Reason

KIND = allocations.Kind
TYPES = ("NVIDIA A100-SXM4-80GB", "NVIDIA-Tesla T4", "NVIDIA L40S")


def gpu(node: str, index: int, **changes: object) -> gpus.Gpu:
    facts: dict[str, object] = {
        "uuid": identifiers.GpuUuid(f"GPU-{node}-{index}"),
        "index": index,
        "memory_mib": 16_000,
        "cores_percent": 100,
        "slots": 10,
        "type": TYPES[0],
    }
    return gpus.Gpu(**{**facts, **changes})  # type: ignore[arg-type]


def pod_request(*asks: requests.GpuRequest | None, **more: object) -> requests.PodRequest:
    """A pod of app containers."""
    return requests.PodRequest(kinds=(KIND.APP,) * len(asks), containers=asks, **more)  # type: ignore[arg-type]


def share_of(memory_mib: int, cores_percent: int = 0, gpus: int = 1) -> requests.GpuRequest:
    return requests.GpuRequest(gpus, memory_mib, 0, cores_percent)


allocated = st.one_of(
    st.just(allocations.NOTHING),
    st.builds(
        allocations.Allocation,
        st.integers(1, 4),
        st.sampled_from([0, 2_000, 8_000, 15_000, 16_000]),
        st.sampled_from([0, 30, 70, 100]),
        st.sampled_from([0, 0, 0, 1]),
    ),
)


@st.composite
def gpu_states(draw: st.DrawFn, node: str, index: int) -> gpus.GpuState:
    one = gpu(
        node,
        index,
        memory_mib=draw(st.sampled_from([16_000, 16_001, 24_000])),
        cores_percent=draw(st.sampled_from([100, 100, 150])),
        slots=draw(st.sampled_from([4, 10])),
        type=draw(st.sampled_from(TYPES)),
        mode=draw(st.sampled_from(["", "", "hami-core", "mig"])),
        healthy=draw(st.sampled_from([True, True, True, False])),
        numa=draw(st.sampled_from([-1, 0, 0, 1])),
    )
    rare = st.sampled_from([False] * 5 + [True])
    return gpus.GpuState(one, draw(allocated), draw(rare), draw(rare))


@st.composite
def link_matrices(draw: st.DrawFn, count: int) -> topology.Links:
    scores = {
        frozenset(pair): draw(st.sampled_from([0, 10, 50, 100, 1200]))
        for pair in itertools.combinations(range(count), 2)
    }
    return tuple(tuple(scores.get(frozenset((one, other)), 0) for other in range(count)) for one in range(count))


@st.composite
def node_states(draw: st.DrawFn, name: str) -> placement.NodeState:
    count = draw(st.integers(0, 4))
    links = draw(st.one_of(st.just(()), link_matrices(count)))
    return placement.NodeState(
        identifiers.NodeName(name),
        tuple(draw(gpu_states(name, index)) for index in range(count)),
        draw(st.sampled_from([0, 0, 0, 3])),
        draw(st.sampled_from([Reason.NONE] * 6 + [Reason.FOREIGN_AGENT])),
        links,
    )


@st.composite
def gpu_requests(draw: st.DrawFn) -> requests.GpuRequest:
    by_percent = draw(st.booleans())
    return requests.GpuRequest(
        draw(st.sampled_from([1, 1, 1, 2, 3])),
        0 if by_percent else draw(st.sampled_from([1, 4_000, 8_000, 16_000, 20_000])),
        draw(st.sampled_from([33, 50, 100])) if by_percent else 0,
        draw(st.sampled_from([0, 0, 30, 60, 100])),
    )


selectors = st.builds(
    requests.Selectors,
    use_types=st.sampled_from([(), (), ("a100",), ("t4", "l40s")]),
    nouse_types=st.sampled_from([(), (), ("t4",)]),
    use_uuids=st.sampled_from([(), (), ("GPU-a-0", "GPU-b-1")]),
    nouse_uuids=st.sampled_from([(), (), ("GPU-a-1",)]),
    mode=st.sampled_from(["", "", "hami-core"]),
)


@st.composite
def pod_requests(draw: st.DrawFn) -> requests.PodRequest:
    kinds = (
        *draw(st.lists(st.sampled_from([KIND.INIT, KIND.SIDECAR]), max_size=2)),
        *draw(st.lists(st.just(KIND.APP), min_size=1, max_size=3)),
    )
    asks = [draw(st.one_of(st.none(), gpu_requests())) for _ in kinds]
    if not any(asks):
        asks[-1] = draw(gpu_requests())
    return requests.PodRequest(
        kinds=kinds,
        containers=tuple(asks),
        selectors=draw(st.one_of(st.just(requests.Selectors()), selectors)),
        numa_bind=draw(st.sampled_from([False, False, True])),
    )


weights = st.sampled_from([policies.Weights(), policies.Weights(1, 0, 3), policies.Weights(0, 5, 0)])
node_policies = st.sampled_from(sorted(policies.NODE_POLICIES.values(), key=lambda policy: policy.name))
gpu_policies = st.builds(
    policies.GpuPolicy,
    st.just("any"),
    st.lists(st.sampled_from(sorted(policies.ORDERS)), min_size=1, max_size=2, unique=True).map(tuple),
    st.sampled_from([False, False, True]),
    weights,
    st.booleans(),
)
