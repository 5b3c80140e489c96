"""The documents, and what writes those of them that come from code."""
