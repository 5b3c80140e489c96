"""The answers of drivers by kind of machine: files in `personalities/`, from NVIDIA's sources and reports.

A file has its GPUs, and each refused call with the source of that answer: `seen` on such a machine,
`read` in the named source, or a `guess`. Where a real machine differs, the file is wrong: `lab.gpu_check` shows it.
"""

import pathlib
import tomllib
from dataclasses import dataclass
from typing import Any

from lab import fake_driver, gpus
from lab.fake_driver import calls

_FOLDER = pathlib.Path(__file__).with_name("personalities")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that is refused."""

    call: str
    """Function of the library, or `*` for every one."""
    answer: str
    """Name of NVML's error without its prefix, such as `NOT_SUPPORTED`."""
    source: str
    """`seen`, `read` or `guess`, and the place."""
    gpu: int = -1
    """Position of the GPU; -1 for all of them."""
    whole: bool = False
    """Whether the GPU's MIG instances answer."""

    def rule(self) -> str:
        """Its line in the state file of the fake driver."""
        return f"fail {self.call} {calls.error_number(self.answer)} {self.gpu}{' whole' if self.whole else ''}"


@dataclass(frozen=True, slots=True)
class Personality:
    """One kind of machine."""

    name: str
    about: str
    driver: str
    """Version of the driver."""
    gpus: int
    """The number of its GPUs."""
    gpu: dict[str, Any]
    """The fields of each GPU, as in `fake_driver.Gpu`."""
    refusals: tuple[Refusal, ...]
    mig: tuple[int, ...]
    """Positions of the GPUs in MIG mode."""
    model: bool
    """Whether it describes a model of GPU; otherwise it describes a circumstance."""
    lines: dict[str, list[str]]
    """`words`, `processes`, `links` and `migs` of the fake driver."""

    def refusal(self, call: str) -> str:
        """Return the error with which GPU 0 refuses a function of the library; empty where it answers."""
        unsupported = {
            "nvmlDeviceGetMigMode": "mig_mode",
            "nvmlDeviceGetTotalEccErrors": "uncorrected_errors",
            "nvmlDeviceGetFieldValues": "recovery_action",
        }
        fitting = [one.answer for one in self.refusals if one.call in (call, "*") and one.gpu in (-1, 0)]
        if not fitting and self.gpu.get(unsupported.get(call, ""), 0) < 0:
            return "NOT_SUPPORTED"
        return fitting[0] if fitting else ""

    def make(self, folder: pathlib.Path, node: str = "n") -> fake_driver.FakeDriver:
        """Return a written fake driver with these answers."""
        made = [
            fake_driver.Gpu(
                uuid=gpus.gpu_uuid(node, index),
                bus_id=f"00000000:{0x10 + index:02X}:00.0",
                minor=index,
                **(self.gpu | ({"mig_mode": 1} if index in self.mig else {})),
            )
            for index in range(self.gpus)
        ]
        driver = fake_driver.FakeDriver(
            path=folder / "gpus.txt",
            gpus=made,
            rules=[refusal.rule() for refusal in self.refusals],
            processes=list(self.lines["processes"]),
            links=list(self.lines["links"]),
            migs=list(self.lines["migs"]),
            words=[f"version={self.driver}", *self.lines["words"]],
        )
        driver.write()
        return driver


def names() -> tuple[str, ...]:
    """Return every personality by its name."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def read(name: str) -> Personality:
    """Return the personality of that name."""
    found = tomllib.loads((_FOLDER / f"{name}.toml").read_text())
    return Personality(
        name,
        found["about"],
        found["driver"],
        found["gpus"],
        found["gpu"] | {"compute_capability": tuple(found["gpu"]["compute_capability"])},
        tuple(Refusal(**one) for one in found.get("refuse", ())),
        tuple(found.get("mig", ())),
        found.get("model", False),
        {key: found.get(key, []) for key in ("words", "processes", "links", "migs")},
    )
