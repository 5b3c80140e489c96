"""A whole cluster in one process, for the demo, the tests and the benchmarks; no service imports it."""
