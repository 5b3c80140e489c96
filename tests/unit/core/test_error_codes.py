"""The registry of codes."""

import re

from gpu_sharing.core import error_codes, errors


def test_every_code_says_what_happened_and_what_to_do() -> None:
    """Nobody is left with a code alone."""
    for code, entry in error_codes.REGISTRY.items():
        assert code == entry.code
        assert re.fullmatch(
            r"(SCHED|ALLOC|HEALTH|PLUGIN|MONITOR|DOCTOR|WEBUI|LISTENER|FAULT|OPS|CANARY|WORKLOAD)_[A-Z_]+", code
        )
        assert entry.meaning.endswith(".")
        assert entry.remedy.endswith(".")


def test_errors_of_the_api_server_carry_its_status() -> None:
    """0 means that there was no answer."""
    assert (errors.Conflict("taken", 409).status, errors.Unavailable("silence").status) == (409, 0)


def test_a_pods_owner_is_not_advised_to_change_nodes() -> None:
    """Most users may not write a node: they are told whom to ask, and what for."""
    for entry in error_codes.REGISTRY.values():
        if entry.code.startswith("SCHED_") and ("uncordon" in entry.remedy or "annotation hami.io/" in entry.remedy):
            assert entry.operator or "pod" in entry.remedy.lower(), entry.code
    cordoned = error_codes.REGISTRY[error_codes.NODE_CORDONED]
    assert cordoned.advice == f"Ask an operator of the cluster: {cordoned.remedy}"
    memory = error_codes.REGISTRY[error_codes.INSUFFICIENT_GPU_MEMORY]
    assert memory.advice == memory.remedy
