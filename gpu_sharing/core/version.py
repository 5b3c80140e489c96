"""Which version of the project this is; `pyproject.toml` reads it here."""

VERSION = "0.1.0"
