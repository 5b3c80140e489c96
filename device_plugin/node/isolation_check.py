"""Whether each GPU's containers are kept apart as they should be, as problems of the node and GPUs to withdraw."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from device_plugin.driver import gpu_source
from device_plugin.isolation import table
from device_plugin.isolation.assignment import Assignment
from device_plugin.node.local_node import LocalNode
from device_plugin.node.problems import Problems
from gpu_sharing.core import error_codes, identifiers


class IsolationCheck:
    """Chooses the isolation backend of each GPU.

    Args:
        node: This node.
        problems: Its problems.
        holders_of: Returns what containers on a GPU hold by their records.

    Attributes:
        modes: The name of each GPU's backend.
    """

    def __init__(
        self,
        node: LocalNode,
        problems: Problems,
        holders_of: Callable[[identifiers.GpuUuid], Iterable[Assignment]],
    ) -> None:
        self._node = node
        self._problems = problems
        self._holders_of = holders_of
        self._limited: set[identifiers.GpuUuid] = set()
        self.modes: Mapping[identifiers.GpuUuid, str] = {}

    def remember(self, limited: Iterable[identifiers.GpuUuid]) -> None:
        """Set the GPUs that `auto` limited before this process started."""
        self._limited = set(limited)

    def check(self, devices: Sequence[gpu_source.Device]) -> Mapping[identifiers.GpuUuid, str]:
        """Report the node's problems with isolation. Returns the GPUs to withdraw, each with the reason."""
        choice, backends = self._node.sharing.isolation, self._node.backends
        unavailable = {name: backend.problem() for name, backend in backends.items()}
        self.modes = {device.uuid: table.mode_of(device, choice, unavailable) for device in devices}
        by_mode: dict[str, list[identifiers.GpuUuid]] = {name: [] for name in backends}
        for uuid, mode in self.modes.items():
            by_mode[mode].append(uuid)
        self._check_auto(by_mode, unavailable[table.AUTO_CHOICE])
        withdrawn: dict[identifiers.GpuUuid, str] = {}
        for name, backend in backends.items():
            code, cause = backend.unavailable_code, unavailable[name]
            if code is not None:
                self._report(code, by_mode[name], cause)
                withdrawn |= {uuid: f"{code}: {cause}" for uuid in by_mode[name] if cause}
            if backend.conflict_code is not None:
                conflicts = {uuid: backend.conflict(self._holders_of(uuid)) for uuid in by_mode[name]}
                self._problems.replace(backend.conflict_code, {uuid: text for uuid, text in conflicts.items() if text})
        return withdrawn

    def _check_auto(self, by_mode: Mapping[str, Sequence[identifiers.GpuUuid]], cause: str) -> None:
        """Report GPUs that `auto` does not limit, and those among them that it limited before."""
        unlimited = by_mode[table.NONE]
        lost = [uuid for uuid in unlimited if uuid in self._limited]
        if not cause:
            self._limited |= set(by_mode[table.AUTO_CHOICE])
        if self._node.sharing.isolation != table.AUTO:
            self._limited -= set(unlimited)
            unlimited, lost = [], []
        self._report(error_codes.PLUGIN_MEMORY_NOT_LIMITED, unlimited, cause)
        self._report(error_codes.PLUGIN_ISOLATION_LOST, lost, cause)

    def _report(self, code: error_codes.Code, uuids: Sequence[identifiers.GpuUuid], cause: str) -> None:
        sentence = f"{len(uuids)} of {len(self.modes)} GPUs: {cause}" if uuids and cause else ""
        self._problems.report_or_clear(code, sentence)
