"""The fault injection service: breaks parts of a cluster on purpose, records what is in effect, and recovers it.

`injector` has the order of steps; `tracker` the record that survives a crash; `backends` one module for each way to
inject; `server` the HTTP API. The kinds of faults and their states are values in `gpu_sharing.core.faults`.
"""
