"""Serving an application on an address, over TLS where there is a certificate, and stopping without cutting anybody."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from tornado.ioloop import PeriodicCallback
from tornado.netutil import bind_sockets
from tornado.web import Application

from tools.tornado_service.limits import PARSED_BYTES, UPLOADS, LimitedServer
from tools.tornado_service.ready import READY_ANSWERS
from tools.tornado_service.service import Service

log = logging.getLogger("service")

GRACE_SECONDS = 35.0
QUIET_SECONDS = 0.1
"""So long nothing may be in flight before idle connections are closed: what is on its way to us is still served."""
BODY_SECONDS = 30.0
IDLE_SECONDS = 75.0
"""For a header to come whole, and between requests of one connection."""
MAX_READ_BYTES = 1 << 40
"""No limit of the parser's own: ours come first and are told."""
GC_THRESHOLDS = (5_000, 10, 100)
"""Of Python's three generations. A collection of the oldest stops the event loop for 40 ms: by default one comes with
every large answer, with these it comes after about five million allocations."""
CERTIFICATE_SECONDS = 60.0
MOST_DESCRIPTORS = 65_536
CONNECTIONS_SHARE = 4
"""A listener's connections take this part of the descriptors at most: files, upstreams, other listeners need theirs."""
MOST_CONNECTIONS = 2048
"""Each may hold a header that never ends: together they must fit into what a small container has."""


@dataclass
class Listener:
    """A server on its address; ``stop`` finishes what is in flight."""

    server: LimitedServer
    service: Service
    address: str
    port: int
    certificate: Certificate | None

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"

    async def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Take no new connections, let requests in flight finish, then close."""
        self.service.stopping = True
        if self.certificate is not None:
            self.certificate.stop()
        self.server.stop()
        end = time.monotonic() + seconds
        quiet_since = time.monotonic()
        while time.monotonic() < end and time.monotonic() - quiet_since < QUIET_SECONDS:
            await asyncio.sleep(0.01)  # a drain is rare, and bounded
            if self.service.in_flight:
                quiet_since = time.monotonic()
        await self.server.close_all_connections()
        if self.service.audit is not None:
            self.service.audit.flush()


class Certificate:
    """A certificate and its key, read again when the files change, so that a renewed one needs no restart.

    Raises:
        OSError, ssl.SSLError: files that cannot be used.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._files = (Path(certificate), Path(key))
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_cert_chain(*self._files)
        self._read = self._changed_at()
        self._watch = PeriodicCallback(self.refresh, CERTIFICATE_SECONDS * 1000)
        self._watch.start()

    def _changed_at(self) -> tuple[float, ...]:
        return tuple(file.stat().st_mtime for file in self._files)

    def refresh(self) -> None:
        """Take new files; ones that cannot be used (half written, of different pairs) leave the old in place."""
        try:
            changed = self._changed_at()
            if changed != self._read:
                self.context.load_cert_chain(*self._files)
                self._read = changed
        except (OSError, ssl.SSLError) as problem:
            log.warning("the certificate could not be read again: %s", problem)

    def stop(self) -> None:
        self._watch.stop()


def _descriptors() -> int:
    """How many to reckon with: as many as this process may allow itself, up to a bound."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, MOST_DESCRIPTORS)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted


def listen(
    application: Application, service: Service, address: str, port: int, tls: tuple[str, str] | None = None
) -> Listener:
    """Serve an application; port 0 takes a free one.

    Raises:
        OSError: naming the address that is taken or not this machine's, or the certificate that cannot be used.
    """
    try:
        certificate = Certificate(*tls) if tls else None
    except OSError as problem:  # an SSLError is one
        raise OSError(f"TLS_CERT and TLS_KEY cannot be used: {problem.strerror or problem}") from None
    server = LimitedServer(
        application,
        ssl_options=certificate.context if certificate else None,
        max_body_size=MAX_READ_BYTES,
        max_header_size=PARSED_BYTES,
        idle_connection_timeout=IDLE_SECONDS,
        body_timeout=BODY_SECONDS,
        max_connections=min(MOST_CONNECTIONS, _descriptors() // CONNECTIONS_SHARE),
        answers=application.settings[READY_ANSWERS],
        uploads=application.settings[UPLOADS],
    )
    try:
        sockets = bind_sockets(port, address)
    except OSError as problem:
        raise OSError(f"cannot listen on {address}:{port}: {problem.strerror or problem}") from None
    server.add_sockets(sockets)
    # What a service is made of stays for good: collecting garbage need not look at it again, which held the loop.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    return Listener(server, service, address, sockets[0].getsockname()[1], certificate)


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT from now on; call it before anyone is told that the service is up."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped
