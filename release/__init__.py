"""What a release needs, checked by a script that publishes nothing."""
