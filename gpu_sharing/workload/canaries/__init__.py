"""Canaries: the smallest request of each kind of model server, so that "ready" means that it generates a token.

One class an engine, with one interface: `Canary` in `canary.py`. `engines.ENGINES` has them by name, `http_calls` sends
what they build, and `settings` reads what the environment overrides. Standard library only.
"""
