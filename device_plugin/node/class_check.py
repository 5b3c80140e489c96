"""Whether pods that have started may lack their GPU, because no RuntimeClass selects NVIDIA's runtime."""

from device_plugin.node.api_objects import Pod
from device_plugin.node.delivery_check import DeliveryCheck
from device_plugin.node.node_events import NodeEvents
from device_plugin.node.problems import Problems
from gpu_sharing.core import error_codes, requests


class RuntimeClassCheck:
    """Warns of pods without RuntimeClass on nodes where NVIDIA's runtime has to bring the GPU.

    Args:
        delivery: The delivery methods of the GPUs.
        problems: Of the node.
        events: Of its pods.
        names: The resource names under which containers request GPUs.
        warns: Whether to warn; otherwise nothing is done.
    """

    def __init__(
        self,
        *,
        delivery: DeliveryCheck,
        problems: Problems,
        events: NodeEvents,
        names: requests.ResourceNames,
        warns: bool,
    ) -> None:
        self._delivery = delivery
        self._problems = problems
        self._events = events
        self._names = names
        self._warns = warns

    def started(self, pod: Pod) -> None:
        """Warn of a pod that may have started without its GPU."""
        if not self._warns or pod.spec.runtime_class_name:
            return
        if any(self._delivery.needs_runtime(uuid) for uuid in pod.allocated(self._names)):
            # Without names, and until the node is set up differently: pods come and go, and each change is a write.
            self._problems.report(error_codes.PLUGIN_RUNTIME_CLASS, "a pod without runtimeClassName was started")
            self._events.uncertain(pod)
