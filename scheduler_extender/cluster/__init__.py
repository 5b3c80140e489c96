"""What is known of the cluster: API objects as values, the mirror that follows them, and the pending pods."""
