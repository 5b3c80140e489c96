"""What tests of several folders build on: worlds to act in, and accounts of what came out."""
