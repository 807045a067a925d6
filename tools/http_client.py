"""Tornado's own HTTP client, which hears of a connection that is reset half way."""

from __future__ import annotations

from tornado.simple_httpclient import HTTPStreamClosedError, SimpleAsyncHTTPClient, _HTTPConnection


class _Connection(_HTTPConnection):
    """Tornado's own waits for its timeout where a connection is reset half way: it raises where nobody catches it."""

    def on_connection_close(self) -> None:
        self._handle_exception(HTTPStreamClosedError, HTTPStreamClosedError("Connection closed"), None)


class HttpClient(SimpleAsyncHTTPClient):
    """A client of a service's own: make it with ``force_instance=True``, and close it."""

    def _connection_class(self) -> type:
        return _Connection
