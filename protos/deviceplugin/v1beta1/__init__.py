"""Generated; see the `.proto` file."""
