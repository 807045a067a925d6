"""Files that pages need, from this host alone."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from msgspec import Struct

from rest_api.rest_api_server.errors import NOT_FOUND
from rest_api.rest_api_server.pages.base import WebHandler
from tools.tornado_service.application import OpenHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Text
from tools.tornado_service.prepared import Prepared

KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


class FileName(Text):
    pattern = r"[a-z0-9-]{1,32}\.[a-z]{1,5}"
    what = "the name of a file"


class StaticQuery(Struct, frozen=True, kw_only=True):
    name: FileName
    v: str = ""


@cache
def _files() -> dict[str, Prepared]:
    """All there are, by name: what is asked for chooses among them, and adds nothing."""
    found = (one for one in (files("rest_api.rest_api_server.pages") / "static").iterdir() if one.is_file())
    return {one.name: Prepared.of(one.read_bytes()) for one in found}


class Static(WebHandler, OpenHandler):
    """A style sheet, the script, or the icon."""

    @operation(
        needs=None,
        query=StaticQuery,
        answer=str,
        content="text/css",
        files=("image/svg+xml", "text/javascript"),
        also=(404,),
    )
    async def get(self, query: StaticQuery) -> Prepared:
        found = _files().get(query.name)
        kind = KINDS.get(query.name.rpartition(".")[2])
        if found is None or kind is None:
            raise ApiError(NOT_FOUND)
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", "public, max-age=86400")
        return found
