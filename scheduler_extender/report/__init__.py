"""What was decided, as events, log lines and metrics. Changes nothing that is decided."""
