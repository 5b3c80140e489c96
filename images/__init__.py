"""The two container images, and their build without a Docker engine."""
