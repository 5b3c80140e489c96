"""A whole cluster in one process, for the demo, the tests and the benchmarks; no service imports it."""

import os

# Read by grpc when it is loaded. Its own lines about connections that end belong to no output of the lab.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
