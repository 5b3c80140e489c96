"""The floor that pages are measured against: files of the same sizes, served by the same framework and server."""

import flask


def create(folder: str) -> flask.Flask:
    """An application that serves a folder and does nothing else."""
    return flask.Flask(__name__, static_folder=folder, static_url_path="/static")
