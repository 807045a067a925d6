"""Which addresses a tenant's URL may reach: none but those that the operator allows (``UPSTREAM_ALLOW``)."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tornado.netutil import Resolver

from metroculus.sources.errors import AddressRefused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_LENGTH = 255
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

NEVER_BY_NAME: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "192.0.0.0/24", "224.0.0.0/4",
        "255.255.255.255/32", "::/128", "::1/128", "fe80::/10", "fd00:ec2::/32", "ff00::/8",
    )
)  # fmt: skip
"""Loopback, link-local, cloud metadata, multicast: only a network in ``UPSTREAM_ALLOW`` opens them, never a name."""


class AllowedAddresses:
    """The networks and host suffixes of ``UPSTREAM_ALLOW``; empty allows nothing.

    Raises:
        ValueError: naming the entry that is neither a network nor a host suffix.
    """

    def __init__(self, entries: Sequence[str] = ()) -> None:
        networks: list[Network] = []
        suffixes: list[str] = []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if not re.fullmatch(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", entry) or re.fullmatch(r"[0-9.]+", entry):
                    raise ValueError(f"UPSTREAM_ALLOW: {entry!r} is neither a network nor a host suffix") from None
                suffixes.append(entry.lower().lstrip("."))
        self.networks = tuple(networks)
        self.suffixes = tuple(suffixes)

    def permits(self, host: str, address: str) -> bool:
        """Whether ``host``, which resolved to ``address``, may be connected to."""
        plain = unwrap(ipaddress.ip_address(address.split("%")[0]))
        if any(plain in network for network in self.networks):
            return True
        name = host.lower().rstrip(".")
        named = any(name == suffix or name.endswith("." + suffix) for suffix in self.suffixes)
        return named and not any(plain in network for network in NEVER_BY_NAME)


def unwrap(address: Address) -> Address:
    """The IPv4 address inside a mapped, NAT64 or 6to4 one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.sixtofour:
            return address.sixtofour
    return address


@dataclass(frozen=True)
class UpstreamUrl:
    """A checked base URL: ``http`` or ``https``, a host, perhaps a port and a path; nothing else."""

    text: str
    host: str
    port: int


def parse_upstream_url(text: str) -> UpstreamUrl:
    """Check the form of a base URL.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if len(text) > MAX_URL_LENGTH:
        raise ValueError(f"a URL is at most {MAX_URL_LENGTH} characters long")
    if not text.isascii() or not text.isprintable() or any(mark in text for mark in '\\@#? %"'):
        raise ValueError("a URL is plain: no user, query, fragment, escape or backslash")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("the URL cannot be read") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("a URL begins with http:// or https://")
    host = parts.netloc.rsplit(":", 1)[0] if port is not None else parts.netloc
    if not _HOST.fullmatch(host) or not parts.hostname or not _PATH.fullmatch(parts.path):
        raise ValueError("the URL has no host, or characters that do not belong into one")
    return UpstreamUrl(text.rstrip("/"), parts.hostname, port or (443 if parts.scheme == "https" else 80))


async def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """``(family, socket address)`` of each address of a host."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


class GuardedResolver(Resolver):
    """Resolves and checks in one step, so that what was checked is what is connected to.

    One address that is not allowed refuses the name whole: a name with a public and a private address is an attack,
    or a mistake.
    """

    def initialize(self, allowed: AllowedAddresses) -> None:
        self.allowed = allowed

    async def resolve(self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC) -> Any:
        found = await resolve(host, port)
        if not found or not all(self.allowed.permits(host, str(address[0])) for _, address in found):
            raise AddressRefused("the upstream's address is not allowed")
        return found


async def check_allowed(url: UpstreamUrl, allowed: AllowedAddresses) -> None:
    """Refuse a URL when it is written, with the same rule as when it is used.

    Raises:
        AddressRefused: where it does not resolve, or to an address that is not allowed.
    """
    try:
        found = await resolve(url.host, url.port)
    except (OSError, UnicodeError):
        raise AddressRefused("the host of the URL does not resolve") from None
    if not found or not all(allowed.permits(url.host, str(address[0])) for _, address in found):
        raise AddressRefused("the operator does not allow this address (UPSTREAM_ALLOW)")
