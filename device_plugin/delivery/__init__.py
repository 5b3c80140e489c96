"""What brings a GPU into a container: device nodes, mounts and variables, by CDI or in the kubelet's answer.

Knows the driver's values, and no pods.
"""
