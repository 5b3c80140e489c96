"""The chart: what it renders, what it refuses, and whether a real cluster takes it."""
