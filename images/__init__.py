"""The two container images, and how they are made without a Docker engine."""
