"""Faults on purpose, on a real control plane: scenarios, what they measure, and what must hold after each.

`python -m chaos` runs them. Nothing here is installed; no service imports it.
"""
