"""What every part of the system shares: the pure domain core, and the adapters to Kubernetes."""
