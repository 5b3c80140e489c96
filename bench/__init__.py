"""Benchmarks: one module a question, each a ratio in one run. All figures in the documents come from here."""
