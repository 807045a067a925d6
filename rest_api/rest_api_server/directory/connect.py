"""``DIRECTORY_URL``: which directory it names."""

from __future__ import annotations

from pathlib import Path

from rest_api.rest_api_server.directory.model import Directory, DirectoryError
from rest_api.rest_api_server.directory.sqlite import SqliteDirectory

SQLITE = "sqlite:"
MONGO = ("mongodb://", "mongodb+srv://")


def check_url(text: str) -> str:
    """Raises: ValueError"""
    if text.startswith(MONGO) or (text.startswith(SQLITE) and text != SQLITE):
        return text
    raise ValueError("must be sqlite:PATH or mongodb://host/database")


def open_directory(url: str) -> Directory:
    """The directory that the URL names.

    Raises:
        DirectoryError: a file that cannot be used, a URL that is none, a driver that is missing.
    """
    if url.startswith(SQLITE):
        return SqliteDirectory(Path(url.removeprefix(SQLITE)))
    try:
        from rest_api.rest_api_server.directory.mongo import MongoDirectory
    except ImportError:
        raise DirectoryError("DIRECTORY_URL names a MongoDB: pip install 'metroculus[mongo]'") from None
    return MongoDirectory(url)
