"""An explanation of the extender's code in the form of its read API, which `views` prints."""

from gpu_sharing.adapters import read_api_types
from scheduler_extender.decide import explaining
from scheduler_extender.report import event_notes


def of(key: str, answer: explaining.Explanation) -> read_api_types.Explanation:
    """Return the explanation of a pending pod.

    Args:
        key: Of the pod, as `namespace/name`.
        answer: Of the extender's code.
    """
    return read_api_types.Explanation(
        pod=key,
        phase="pending",
        node=None,
        summary=event_notes.rejected(answer.rejection),
        remedy=answer.remedy,
        nearest=answer.nearest,
        gates=list(answer.gates),
        nodes=[
            read_api_types.NodeExplanation(
                node=node.node,
                fits=node.code is None,
                code=node.code or "",
                message=node.message,
                curable=node.curable,
                advice=node.advice,
                waits_for=list(node.waits_for),
                evictable=list(node.evictable),
                examined=node.examined,
            )
            for node in answer.nodes
        ],
    )
