"""The agent on a node: acts on the faults of its own node in the controller's record, and writes what it has done.

It writes that it begins before it acts, so that after a crash it knows what may be in effect. The node's label of
consent is read before each injection, so that a label that was removed counts at once.
"""

import asyncio
from collections.abc import Sequence

import orjson
import structlog

from fault_injector.backends import Backend, BackendFailed
from fault_injector.backends.node_agent import ConfigMap, Result, result_of
from fault_injector.consent import Consent
from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import errors, faults

_POLL_SECONDS = 1.0
_KEY = "faults"

log = structlog.get_logger("agent")


class Agent:
    """Works on the faults of one node.

    Attributes:
        problem: Why the record cannot be read; empty while it can.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        node: str,
        backends: Sequence[Backend],
        consent: Consent,
        config_maps: tuple[str, str],
    ) -> None:
        """Make an agent.

        Args:
            client: Of the API server.
            node: The name of its node.
            backends: The ways to inject on this machine.
            consent: Knows whether the node permits faults.
            config_maps: The paths of the record and of the results.
        """
        self._client = client
        self._node = node
        self._backends = {backend.name: backend for backend in backends}
        self._consent = consent
        self._record, self._results = config_maps
        self._injected_here: set[str] = set()
        self.problem = "not read yet"

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self.turn()
                self.problem = ""
            except (errors.KubernetesError, errors.CorruptRecord) as cause:
                self.problem = str(cause)
                log.warning("record not read", cause=self.problem)
            await asyncio.sleep(_POLL_SECONDS)

    async def turn(self) -> None:
        """Read the record and the results once, and do what is to be done.

        Raises:
            KubernetesError: The API server does not answer.
            CorruptRecord: The record is damaged.
        """
        try:
            record = await self._client.get(self._record, ConfigMap)
        except errors.NotFound:
            return  # No fault was ever injected.
        results = await self._client.get(self._results, ConfigMap)
        for fault in faults.decode((record.data or {}).get(_KEY, '{"faults": []}')).faults:
            if fault.values.get("node") == self._node and fault.backend in self._backends:
                await self._work(fault, result_of(results, fault.id))

    async def _work(self, fault: faults.Fault, result: Result | None) -> None:
        backend = self._backends[fault.backend]
        if fault.state is faults.State.INJECTING and result is None:
            await self._inject(fault, backend)
        elif fault.state is faults.State.INJECTING and result is not None and result.state == "injecting":
            await self._undo(fault, backend, "the agent ended while it injected")
        elif fault.state is faults.State.RECOVERING and (result is None or result.state != "recovered"):
            cause = await _attempt(backend.recover(fault))
            self._injected_here.discard(fault.id)
            if not cause:
                await self._write(fault, "recovered")
        elif fault.state is faults.State.INJECTED and not backend.outlives_process:
            await self._inject_again(fault, backend)

    async def _inject(self, fault: faults.Fault, backend: Backend) -> None:
        try:
            await self._consent.demand(self._node)
        except errors.FaultRefused as refused:
            await self._write(fault, "failed", f"{refused.code}: {refused}")
            return
        await self._write(fault, "injecting")
        cause = await _attempt(backend.inject(fault))
        if cause:
            await self._undo(fault, backend, cause)
        else:
            self._injected_here.add(fault.id)
            await self._write(fault, "injected")

    async def _inject_again(self, fault: faults.Fault, backend: Backend) -> None:
        """Inject again what ended with an earlier process of this agent."""
        if fault.id not in self._injected_here and not await _attempt(backend.inject(fault)):
            self._injected_here.add(fault.id)

    async def _undo(self, fault: faults.Fault, backend: Backend, cause: str) -> None:
        left = await _attempt(backend.recover(fault))
        await self._write(fault, "failed", f"{cause}; and it could not be undone: {left}" if left else cause)

    async def _write(self, fault: faults.Fault, state: str, cause: str = "") -> None:
        log.info("fault", fault=fault.id, kind=fault.kind.name, state=state, cause=cause)
        result = orjson.dumps({"state": state, "cause": cause[:500]}).decode()
        await self._client.patch(self._results, orjson.dumps({"data": {fault.id: result}}))


async def _attempt(act: object) -> str:
    """Await a backend's act. Return why it failed; empty if it did not."""
    try:
        await act  # type: ignore[misc]
    except (BackendFailed, OSError) as cause:
        return str(cause) or type(cause).__name__
    return ""
