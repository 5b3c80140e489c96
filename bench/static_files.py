"""The floor for pages: files of the same sizes, served by the same framework and server."""

import flask


def create(folder: str) -> flask.Flask:
    """Return an application that only serves a folder."""
    return flask.Flask(__name__, static_folder=folder, static_url_path="/static")
