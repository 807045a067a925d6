"""Where a request comes from: its peer, or what proxies of the operator's own say of theirs."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """Networks whose ``X-Forwarded-For`` is believed (``TRUSTED_PROXIES``); nobody's by default.

    Raises:
        ValueError: naming the entry that is no network.
    """

    def __init__(self, entries: Sequence[str] = ()) -> None:
        networks: list[Network] = []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                raise ValueError(f"{entry!r} is no network") from None
        self._networks = tuple(networks)

    def trusts(self, address: str) -> bool:
        """Whether an address is that of a proxy of the operator's."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """The nearest address that is no proxy of ours.

        Args:
            peer: who is connected to us.
            forwarded: the values of every ``X-Forwarded-For`` header.
        """
        if not self._networks:
            return peer
        hops = [hop.strip() for value in forwarded for hop in value.split(",")]
        address = peer
        while self.trusts(address) and hops:
            nearer = hops.pop()
            try:
                address = str(ipaddress.ip_address(nearer))
            except ValueError:
                break
        return address
