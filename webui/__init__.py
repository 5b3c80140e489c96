"""The pages: how full is the cluster, who holds which GPU, why does a pod wait, which GPU is unhealthy."""
