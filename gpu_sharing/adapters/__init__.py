"""The world that the services share: the Kubernetes API, logs, health and metrics endpoints."""
