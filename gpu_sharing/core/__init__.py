"""The domain of GPU sharing: values in, values out. No clock, network, log, environment or randomness."""
