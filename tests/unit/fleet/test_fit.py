"""The array engine is the scalar specification, only faster."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.core import gpus, identifiers, placement, policies, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import arrays, fit
from tests.support import searching
from tests.unit import builders


def table(nodes: list[placement.NodeState]) -> arrays.Arrays:
    made = arrays.Arrays()
    for node in nodes:
        made.write(made.column(node.name), node, inventory_changed=True)
    return made


@settings(max_examples=searching.examples(150))
@given(
    st.tuples(*(builders.node_states(name) for name in "abc")),
    builders.pod_requests(),
    builders.gpu_policies,
    builders.node_policies,
)
def test_arrays_answer_as_the_specification_does(
    nodes: tuple[placement.NodeState, ...],
    request: requests.PodRequest,
    gpu_policy: policies.GpuPolicy,
    node_policy: policies.NodePolicy,
) -> None:
    """A pod is never refused or scored otherwise at scale than the rules say."""
    specified = [placement.fit(request, node, gpu_policy) for node in nodes]

    fitting = fit.fit_all(table(list(nodes)), request, gpu_policy)
    scores = fit.scores(table(list(nodes)), request, fitting, node_policy)

    expected = [Reason.NONE if isinstance(answer, placement.Placement) else answer.reason for answer in specified]
    assert [Reason(code) for code in fitting.reasons] == expected
    assert list(fitting.fits) == [reason is Reason.NONE for reason in expected]
    for column, (node, answer) in enumerate(zip(nodes, specified, strict=True)):
        if isinstance(answer, placement.Placement):
            assert scores[column] == placement.node_score(request, node, answer, node_policy)


def test_the_first_name_wins_between_equal_nodes() -> None:
    """Every replica, and every run, gives the same answer."""
    nodes = [
        placement.NodeState(identifiers.NodeName(name), (gpus.GpuState(builders.gpu(name, 0)),))
        for name in ("n3", "n1", "n2")
    ]
    made = table(nodes)

    best = fit.best(made, np.zeros(3), np.arange(3))

    assert made.names[best] == "n1"


def test_a_column_is_used_again_after_its_node_went() -> None:
    """A cluster that scales up and down for months does not grow the arrays."""
    made = table([placement.NodeState(identifiers.NodeName(name)) for name in ("a", "b")])

    made.release(identifiers.NodeName("a"))
    column = made.column(identifiers.NodeName("c"))

    assert (column, made.columns, made.live) == (0, 2, 2)


def test_arrays_grow_with_nodes_and_with_gpus_per_node() -> None:
    """Neither the thousandth node nor a node of sixteen GPUs loses what was there."""
    small = placement.NodeState(identifiers.NodeName("small"), (gpus.GpuState(builders.gpu("small", 0)),))
    large = placement.NodeState(
        identifiers.NodeName("large"),
        tuple(gpus.GpuState(builders.gpu("large", index)) for index in range(16)),
    )
    made = table([small, *(placement.NodeState(identifiers.NodeName(f"n{i}")) for i in range(100)), large])
    wide = builders.pod_request(builders.share_of(1000, gpus=16))

    fitting = fit.fit_all(made, wide, policies.BINPACK)

    assert [made.names[column] for column in np.flatnonzero(fitting.fits)] == ["large"]
    assert fitting.reasons[0] == Reason.TOO_FEW_GPUS


@settings(max_examples=searching.examples(50))
@given(builders.node_states("a"), st.sampled_from(sorted(policies.ORDERS)), builders.weights)
def test_every_order_of_the_specification_is_one_of_the_array_engine(
    node: placement.NodeState, name: str, weights: policies.Weights
) -> None:
    """A policy that only one of them knew would place pods otherwise than it explains them."""
    made = table([node])

    values = fit.ORDERS[name](made, fit._now(made), weights)

    expected = [policies.ORDERS[name](state, weights) for state in node.states]
    assert [pytest.approx(value) for value in expected] == values[: len(expected), 0].tolist()


def test_both_engines_have_the_same_orders() -> None:
    """One that only the specification had fell through to `spread`, and no test noticed."""
    assert set(fit.ORDERS) == set(policies.ORDERS)
