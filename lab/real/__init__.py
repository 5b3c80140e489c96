"""Real control-plane components on one machine: built once into a cache, started and stopped in seconds."""
