"""Records that do not agree with what is there."""

import pytest

from gpu_sharing.core import identifiers, reconciliation
from gpu_sharing.core.reconciliation import Drift

ONE, TWO = identifiers.GpuUuid("GPU-1"), identifiers.GpuUuid("GPU-2")


@pytest.mark.parametrize(
    ("recorded", "uuids", "known", "drift"),
    [
        ("a", [ONE], {ONE, TWO}, None),
        ("", [ONE], {ONE}, None),
        ("", [], {ONE}, None),
        ("b", [ONE], {ONE}, Drift.OTHER_NODE),
        ("a", [ONE, TWO], {ONE}, Drift.UNKNOWN_GPU),
        ("a", [ONE], None, Drift.NODE_GONE),
        ("a", [], None, None),
    ],
)
def test_a_record_is_compared_with_its_node(
    recorded: str, uuids: list[identifiers.GpuUuid], known: set[identifiers.GpuUuid] | None, drift: Drift | None
) -> None:
    """A GPU that was replaced, a copied record and a node that is gone each leave GPUs allocated to a pod."""
    assert reconciliation.record_drift(recorded, "a", uuids, known) is drift
