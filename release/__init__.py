"""The checks of a release; nothing is published."""
