"""The kubelet's sockets and files: its messages as values, and values as its messages. Decides nothing about GPUs."""
