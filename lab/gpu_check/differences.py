"""Differences between a machine's answers and the fake driver's personality of its model. Pure."""

import re
from collections.abc import Iterable, Sequence

from lab.fake_driver import calls, personalities
from lab.gpu_check import answers

_MODEL = re.compile(r"GeForce|\b[A-Z]{1,2}\d{1,3}\b|\bOrin\b")


def personality_of(name: str) -> personalities.Personality | None:
    """Return the personality of a model: by the same name, else by the same chip in the name."""
    models = [one for one in map(personalities.read, personalities.names()) if one.model]
    chip = _MODEL.search(name)
    return next(
        (one for one in models if one.gpu["name"] == name),
        next((one for one in models if chip and _chip(one.gpu["name"]) == chip[0]), None),
    )


def _chip(name: str) -> str:
    found = _MODEL.search(name)
    return found[0] if found else name


def compare(found: Iterable[answers.Answer], personality: personalities.Personality) -> Sequence[str]:
    """Return one sentence for each call and each fact that differs."""
    told = list(found)
    return [
        *(
            f"GPU {one.gpu}: {one.call} answers {one.error or 'a value'} here, and "
            f"{_refusal(personality, one.call) or 'a value'} in {personality.name}.toml"
            for one in told
            if one.gpu is not None
            and one.call not in answers.CONDITIONAL
            and one.error != _refusal(personality, one.call)
        ),
        *_facts(told, personality),
    ]


def _refusal(personality: personalities.Personality, call: str) -> str:
    """Return the error with which a model refuses a function of the bindings."""
    # To find a GPU by its bus, the check reads the bus first.
    asked = [call, "nvmlDeviceGetPciInfo"] if call == "nvmlDeviceGetHandleByPciBusId" else [call]
    return next(filter(None, (personality.refusal(calls.library_name(one)) for one in asked)), "")


def _facts(told: Sequence[answers.Answer], personality: personalities.Personality) -> Iterable[str]:
    if not any(one.call == "nvmlDeviceGetName" and one.value == personality.gpu["name"] for one in told):
        return  # Variants of a model have different numbers.
    capability = str(personality.gpu["compute_capability"])
    for one in told:
        if one.call == "nvmlDeviceGetCudaComputeCapability" and one.value not in ("", capability):
            yield f"GPU {one.gpu}: compute capability {one.value} here, and {capability} in {personality.name}.toml"
        if one.call == "nvmlDeviceGetMemoryInfo" and one.value:
            mib = int(one.value.split()[1].rstrip(",")) >> 20
            if mib != personality.gpu["memory_mib"]:
                known = personality.gpu["memory_mib"]
                yield f"GPU {one.gpu}: {mib} MiB of memory here, and {known} MiB in {personality.name}.toml"
