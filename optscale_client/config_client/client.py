"""Where settings live: etcd, read with a deadline and watched; etcd3 is needed for nothing else.

``CONFIG_URL`` is ``env:`` (the environment and a file are all there is) or ``etcd://host:port``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger("config")

TIMEOUT_SECONDS = 3
REREAD_SECONDS = 5.0
SECRET_KEY = "/secret/cluster"  # nosec B105  (where it is kept)


class ConfigError(Exception):
    """etcd could not be asked."""


class EtcdConfig:
    """Keys of one etcd.

    Raises:
        ConfigError: from every method, when etcd does not answer in three seconds.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "etcd" or not parts.hostname:
            raise ConfigError("CONFIG_URL must be env: or etcd://host:port")
        self._host, self._port = parts.hostname, parts.port or 2379
        self._client: Any = None
        self._stopping = threading.Event()

    def get(self, key: str) -> str | None:
        """A key's value, None where it is not set."""
        try:
            if self._client is None:
                self._client = self.client()
            value, _ = self._client.get(key)
        except ConfigError:
            raise
        except Exception as problem:  # noqa: BLE001  (etcd3 raises grpc's own, its own and plain ones alike)
            self._client = None
            raise ConfigError(f"etcd at {self._host}:{self._port}: {type(problem).__name__}") from None
        return None if value is None else value.decode("utf-8")

    def client(self) -> Any:
        """A new ``etcd3`` client of this etcd, for whoever needs more than keys; the caller closes it."""
        try:
            import etcd3
        except ImportError as problem:
            raise ConfigError(f"CONFIG_URL names an etcd: pip install 'metroculus[etcd]' ({problem.name})") from None
        return etcd3.client(host=self._host, port=self._port, timeout=TIMEOUT_SECONDS)

    def cluster_secret(self) -> str | None:
        return self.get(SECRET_KEY)

    def thanos_query_url(self) -> str | None:
        """``/thanos_query/{proto,host,port}`` as one URL."""
        host = self.get("/thanos_query/host")
        if not host:
            return None
        return f"{self.get('/thanos_query/proto') or 'http'}://{host}:{self.get('/thanos_query/port') or '10902'}"

    def watch(self, key: str, changed: Callable[[str], None], reread_seconds: float = REREAD_SECONDS) -> None:
        """Call ``changed`` with each new value, from a thread, until ``stop``.

        A watch of etcd3 dies unseen with the server: it only wakes this thread earlier; the key itself is read again
        every few seconds, by a new connection where the old one failed.
        """
        wake = threading.Event()

        def follow() -> None:
            seen: str | None = None
            watching: Any = None
            while not self._stopping.is_set():
                try:
                    value = self.get(key)
                    if self._client is not watching:
                        watching = self._client
                        watching.add_watch_callback(key, lambda _: wake.set())
                except Exception as problem:  # noqa: BLE001  (a blip of etcd is no reason to stop following)
                    log.warning("cannot follow %s: %s", key, problem)
                else:
                    if value is not None and value != seen:
                        seen = value
                        changed(value)
                wake.wait(reread_seconds)
                wake.clear()

        threading.Thread(target=follow, name=f"etcd {key}", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()
        if self._client is not None:
            self._client.close()
