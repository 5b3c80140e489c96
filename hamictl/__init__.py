"""The command line of GPU sharing: one module a command."""
