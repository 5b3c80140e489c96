"""The monitor: use of the node's GPUs, in total and by container, for Prometheus. It only reads."""
