"""The kubelet API for device plugins."""
