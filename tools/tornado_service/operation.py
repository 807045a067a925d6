"""What a handler's method needs, takes and answers, said in one decorator above it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import msgspec
from msgspec import Struct

from tools.tornado_service.errors import ApiError
from tools.tornado_service.params import read_query


class NoQuery(Struct, frozen=True):
    """Nothing may be given."""


@dataclass(frozen=True)
class Operation:
    """One method of one route.

    ``needs`` is checked before anything is read; what it can be is the service's own affair.
    """

    needs: Any
    query: type[Struct]
    body: type[Struct] | None
    answer: Any
    status: int
    also: tuple[int, ...] = ()
    """Other statuses that carry the same answer."""
    content: str = "application/json"
    raw_body: bool = False
    """Whether the method takes the body as it came, of an ``UploadHandler``."""
    form: type[Struct] | None = None
    """What a page's form sends, as ``application/x-www-form-urlencoded``."""
    files: tuple[str, ...] = ()
    """Other media types that the same answer is had in, as a ``StreamedFile``."""


def operation(
    *,
    needs: Any,
    answer: Any,
    query: type[Struct] = NoQuery,
    body: type[Struct] | None = None,
    status: int = 200,
    also: tuple[int, ...] = (),
    content: str = "application/json",
    raw_body: bool = False,
    files: tuple[str, ...] = (),
    form: type[Struct] | None = None,
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[None]]]:
    """Declare a handler's method: ``async def get(self, query)``, with a ``body`` behind it where one is declared."""
    declared = Operation(needs, query, body, answer, status, also, content, raw_body, form, files)
    decoder: msgspec.json.Decoder[Any] | None = msgspec.json.Decoder(body) if body is not None else None

    def decorate(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[None]]:
        @wraps(method)
        async def run(self: Any, **path: str) -> None:
            await self.admit(declared, path)
            read: list[Any] = [read_query(query, self.request.query_arguments, path, self.codes)]
            if raw_body:
                read.append(self.raw_body)
            elif decoder is not None:
                read.append(_read_body(self, decoder))
            elif form is not None:
                read.append(read_query(form, self.request.body_arguments, {}, self.codes))
            elif self.request.body:
                raise ApiError(self.codes.invalid_parameter, "this request takes no body", ["body"])
            self.set_status(declared.status)
            answer = await method(self, *read)
            if self._finished:
                return
            if self.request.method == "GET":
                self.remember(declared, read[0], path)
            await self.send(answer)

        run.operation = declared  # type: ignore[attr-defined]
        return run

    return decorate


def _read_body(handler: Any, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(handler.request.body)
    except msgspec.ValidationError as problem:
        named = re.search(r"`\$\.([A-Za-z_]+)|field `([A-Za-z_0-9]{1,64})`", str(problem))
        name = (named[1] or named[2]) if named else "body"
        code = (
            handler.codes.missing_parameter if "missing required" in str(problem) else handler.codes.invalid_parameter
        )
        if "unknown field" in str(problem):
            code = handler.codes.unknown_parameter
        raise ApiError(code, f"{name}: {str(problem).split(' - at')[0]}", [name]) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ApiError(handler.codes.invalid_parameter, "the body must be JSON", ["body"]) from None
