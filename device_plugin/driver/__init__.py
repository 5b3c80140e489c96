"""NVIDIA's driver: its calls as values, each with a deadline.

Only `nvml` loads the bindings; nothing here knows pods or the kubelet.
"""
