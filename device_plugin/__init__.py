"""The services of a GPU node: the device plugin, which allocates shares of GPUs to containers, and the monitor."""
