"""The pages: how full the cluster is, which pod holds which GPU, why a pod is pending, which GPU is unhealthy."""
