"""The monitor: what the node's GPUs do and what each container uses of its slice, for Prometheus."""
