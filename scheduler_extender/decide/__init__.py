"""Values in, values out: which node and GPUs a pod gets, and why not. No write, no event."""
