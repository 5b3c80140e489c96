"""The cluster's GPUs as arrays, and every decision over them. Pure: no I/O and no clock of its own."""
