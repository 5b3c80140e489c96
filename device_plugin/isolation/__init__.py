"""How containers that share a GPU are kept apart: one module for each backend, which `table` names.

Knows shares and GPUs, and neither pods nor the kubelet.
"""
