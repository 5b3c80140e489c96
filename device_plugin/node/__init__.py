"""This node as the API server has it: its pods, its GPUs as annotations, its problems and events.

Knows nothing of the kubelet.
"""
