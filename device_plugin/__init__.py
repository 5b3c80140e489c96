"""The node's side: gives each container exactly its slice of a GPU, and says how the GPUs are."""
