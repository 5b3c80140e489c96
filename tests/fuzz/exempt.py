"""Readers without a target of `make fuzz`, each with the reason. `tests/architecture/test_fuzz_targets.py` reads it."""

_THE_HELPER = "every target that reads JSON or YAML calls it"

REASONS = {
    "device_plugin.main:_connect": "loads the driver's library, whose bytes are code and not data",
    "fault_injector.injector:Injector._adopt": "reads by `faults.decode`, which is the target of the record of faults",
    "fault_injector.injector:Injector.start": "reads by `faults.decode`, which is the target of the record of faults",
    "gpu_sharing.adapters.decoding": _THE_HELPER,
    "gpu_sharing.adapters.listeners:listener": "loads a class of uvicorn by its name",
    "gpu_sharing.core.json_text": _THE_HELPER,
    "gpu_sharing.core.records:_json_items": "is called by `decode_inventory`, the target of the inventory record",
    "hamictl.node_driver:read": "calls the driver's library, whose bytes are code and not data",
    "hamictl.operations.cleanup:_failed": "reads pods of the API server, as `hamictl.snapshot:list_all` does, a target",
    "hamictl.operations.image_check:check": "reads the pod that the API server has just made of our own body",
    "hamictl.simulate:_origin": "reads by `snapshot.load` and `traces.read`, which are targets",
}
