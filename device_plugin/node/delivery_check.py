"""Whether each GPU can be brought into containers, as problems of the node and GPUs to withdraw."""

from collections.abc import Mapping, Sequence

from device_plugin.delivery import edits, methods
from device_plugin.driver import gpu_source
from device_plugin.node.local_node import LocalNode
from device_plugin.node.problems import Problems
from gpu_sharing.core import error_codes, identifiers

_CODES = (error_codes.PLUGIN_DELIVERY, error_codes.PLUGIN_CDI_CONFLICT, error_codes.PLUGIN_CDI_STALE)


class DeliveryCheck:
    """Chooses the delivery method of each GPU.

    Attributes:
        methods: The name of each GPU's delivery method; empty for a GPU that cannot be delivered.
        refusals: Why GPUs cannot be delivered.
    """

    def __init__(self, node: LocalNode, problems: Problems) -> None:
        self._node = node
        self._problems = problems
        self.methods: Mapping[identifiers.GpuUuid, str] = {}
        self.refusals: Mapping[identifiers.GpuUuid, str] = {}

    @property
    def can_deliver(self) -> bool:
        """Whether any offered GPU can be delivered, even if it is withdrawn for another reason."""
        return any(self.methods.get(uuid) for uuid in self._node.inventory)

    def needs_runtime(self, uuid: identifiers.GpuUuid) -> bool:
        """Return whether NVIDIA's container runtime has to bring a GPU."""
        return self.methods.get(uuid) in methods.BY_RUNTIME

    def check(self, devices: Sequence[gpu_source.Device]) -> Mapping[identifiers.GpuUuid, str]:
        """Report the node's problems with delivery. Returns the GPUs to withdraw, each with the reason."""
        node = self._node
        chosen = {
            device.uuid: node.delivery_method(device, by_cdi=node.by_cdi)
            for device in devices
            if not node.sharing.hides(device.uuid, device.index)
        }
        for code in _CODES:
            refused = {
                uuid: method.refusal for uuid, method in chosen.items() if not method.name and method.code == code
            }
            self._problems.replace(code, refused)
        self.refusals = {uuid: f"{method.code}: {method.refusal}" for uuid, method in chosen.items() if not method.name}
        self.methods = {uuid: method.name for uuid, method in chosen.items()}
        self._report_specifications(list(chosen.values()))
        if methods.BY_RUNTIME.isdisjoint(self.methods.values()):
            self._problems.clear(error_codes.PLUGIN_RUNTIME_CLASS)
        return self.refusals

    def _report_specifications(self, chosen: Sequence[methods.Method]) -> None:
        """Report GPUs that two CDI specifications define, and hooks that Allocate's answer cannot carry."""
        twice = (
            f"{method.lookup.spec.path} counts, {method.lookup.replaced[0]} does not"
            for method in chosen
            if method.lookup.spec and method.lookup.replaced
        )
        self._problems.report_or_clear(error_codes.PLUGIN_CDI_TWICE, next(twice, ""))
        hooks = (
            f"hooks of {method.lookup.spec.path}"
            for method in chosen
            if method.name == methods.COPIED and method.lookup.spec and edits.has_hooks(method.lookup.copied)
        )
        self._problems.report_or_clear(error_codes.PLUGIN_DELIVERY_WITHOUT_HOOKS, next(hooks, ""))
