"""Where settings live: etcd, read with a deadline and watched; etcd3 is needed for nothing else.

``CONFIG_URL`` is ``env:`` (the environment and a file are all there is) or ``etcd://host:port``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger("config")

TIMEOUT_SECONDS = 3
REREAD_SECONDS = 5.0
SECRET_KEY = "/secret/cluster"  # nosec B105  (where it is kept)


class ConfigError(Exception):
    """etcd could not be asked."""


def host_and_port(url: str) -> tuple[str, int]:
    """Where an ``etcd://host:port`` is.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError("an etcd is etcd://host:port") from None
    if parts.scheme != "etcd" or not parts.hostname:
        raise ConfigError("an etcd is etcd://host:port")
    return parts.hostname, port or 2379


class EtcdConfig:
    """Keys of one etcd.

    Raises:
        ConfigError: from every method, when etcd does not answer in three seconds.
    """

    def __init__(self, url: str) -> None:
        self._host, self._port = host_and_port(url)
        self._client: Any = None
        self._stopping = threading.Event()

    def get(self, key: str) -> str | None:
        """A key's value, None where it is not set."""
        client = self._client
        if client is None:
            client = self._client = self.client()
        return self._read(client, key)[0]

    def _read(self, client: Any, key: str) -> tuple[str | None, int]:
        """A key's value, and the revision that was read; a client that failed is closed and not used again."""
        try:
            answer = client.get_response(key)
            return (answer.kvs[0].value.decode() if answer.kvs else None), answer.header.revision
        except Exception as problem:  # noqa: BLE001  (etcd3 raises grpc's own, its own and plain ones alike)
            if self._client is client:
                self._client = None
            client.close()
            raise ConfigError(f"etcd at {self._host}:{self._port}: {type(problem).__name__}") from None

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

        The key is read again whenever etcd tells of a change, and every few seconds in any case.
        """

        def follow() -> None:
            seen: str | None = None
            while not self._stopping.is_set():
                try:
                    with self.client() as client:
                        while not self._stopping.is_set():
                            value, revision = self._read(client, key)
                            if value is not None and value != seen:
                                changed(value)
                                seen = value
                            self.wait_for_change(client, key, revision + 1, reread_seconds)
                except Exception as problem:  # noqa: BLE001  (a blip of etcd is no reason to stop following)
                    log.warning("cannot follow %s: %s", key, problem)
                    self._stopping.wait(reread_seconds)

        threading.Thread(target=follow, name=f"etcd {key}", daemon=True).start()

    def wait_for_change(self, client: Any, prefix: str, revision: int, seconds: float) -> None:
        """Until a key with this prefix changes at this revision or later, at most so many seconds.

        One stream a call, and it ends here: etcd3's own watcher asks again without a pause while etcd is away, a whole
        core of it, from a thread that nothing ends.
        """
        import grpc
        from etcd3 import etcdrpc
        from etcd3.utils import increment_last_byte

        first, ends = prefix.encode(), time.monotonic() + seconds
        create = etcdrpc.WatchCreateRequest(key=first, range_end=increment_last_byte(first), start_revision=revision)
        answers = etcdrpc.WatchStub(client.channel).Watch(
            iter([etcdrpc.WatchRequest(create_request=create)]), timeout=seconds
        )
        try:
            for answer in answers:
                if answer.events:
                    return
                if answer.canceled:
                    raise ConfigError(f"the watch was cancelled: {answer.cancel_reason}")
        except grpc.RpcError as problem:
            # etcd's own word for the end of the time may come before gRPC's, and is UNKNOWN.
            if problem.code() is not grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() < ends - 0.1:
                raise ConfigError(f"the watch ended: {problem.code().name}") from None
        finally:
            answers.cancel()

    def stop(self) -> None:
        """No value is told any more; the threads end within the seconds of a reading."""
        self._stopping.set()
        if self._client is not None:
            self._client.close()
