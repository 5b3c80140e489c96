"""The kubelet API that says which container holds which devices."""
