"""Benchmarks: one module a question, each a ratio in one run. Every figure in the documents comes from here."""
