"""Why a node's free GPUs are of no use now, although its record offers them: for people and gauges, not for placing.

kube-scheduler keeps pods from such nodes by itself, and some pods tolerate them, so that filter does not judge it.
"""

import collections

import numpy as np

from gpu_sharing.core import identifiers
from scheduler_extender.fleet import arrays, ledger


def conditions(books: ledger.Ledger) -> dict[identifiers.NodeName, str]:
    """Return the nodes that are not ready, cordoned, or whose GPUs another usable node has too, each with the words."""
    facts = [found for name in sorted(books.node_names()) if (found := books.node_facts(name))]
    words = {one.name: one.condition for one in facts if one.condition}
    owners: dict[identifiers.GpuUuid, list[identifiers.NodeName]] = collections.defaultdict(list)
    for one in facts:
        for gpu in one.inventory if not one.condition else ():
            owners[gpu.uuid].append(one.name)
    for names in owners.values():
        for name in names if len(names) > 1 else ():
            other = next(one for one in names if one != name)
            words[name] = f"has the GPUs of {other}"
    return words


def columns(books: ledger.Ledger, fleet: arrays.Arrays) -> arrays.Bools:
    """Return which columns of the arrays are those nodes: `[columns]`."""
    out = np.zeros(fleet.columns, np.bool_)
    for name in conditions(books):
        if name in fleet.column_of:
            out[fleet.column_of[name]] = True
    return out
