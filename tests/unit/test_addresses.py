"""URLs that tenants supply, and the addresses behind them."""

from __future__ import annotations

import asyncio

import pytest

from metroculus.sources.errors import AddressRefused
from metroculus.sources.outbound import addresses
from metroculus.sources.outbound.addresses import AllowedAddresses, check_allowed, parse_upstream_url

HOSTILE = [
    "https://user:pass@host/", "http://good.example.com@169.254.169.254/", "http://169.254.169.254#@good.example.com/",
    "http://good.example.com\\@169.254.169.254/", "http://good.example.com%2f@evil/", "file:///etc/passwd",
    "gopher://etcd:2379/_x", "http+unix://%2fvar%2frun%2fdocker.sock", "//evil/path", "http://host:9090/%0d%0aSecret:x",
    "http://127。0。0。1", "http://" + "a" * 250, "http://host/?x=1", "http:// host/", "http://", "http://:80",
    "http://host:99999", "", "http://[::1", "HTTP//x", "http://ho\tst/", "http://host\n/",
]  # fmt: skip

ADDRESSES = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "169.254.169.254",
    "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "224.0.0.1", "fe80::1%eth0",
]  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize("text", HOSTILE)
def test_a_url_that_is_more_than_a_url_is_refused(text):
    with pytest.raises(ValueError):
        parse_upstream_url(text)


def test_a_plain_url_is_taken():
    assert parse_upstream_url("http://kubecost.shop.svc:9090/").text == "http://kubecost.shop.svc:9090"
    assert parse_upstream_url("https://[2001:db8::1]:8443/base").port == 8443
    assert parse_upstream_url("https://host").port == 443


@pytest.mark.parametrize("address", [*ADDRESSES, "10.96.0.1", "100.64.0.1", "8.8.8.8"])
def test_nothing_is_allowed_by_default(address):
    assert not AllowedAddresses().permits("kubecost.example.com", address)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_name_never_opens_what_only_a_network_may(address):
    assert not AllowedAddresses(["example.com"]).permits("kubecost.example.com", address)


def test_networks_and_suffixes_open_what_they_say():
    allowed = AllowedAddresses(["10.1.0.0/16", ".svc.cluster.local"])
    assert allowed.permits("anything", "10.1.2.3") and not allowed.permits("anything", "10.2.0.1")
    assert allowed.permits("kubecost.svc.cluster.local", "10.96.0.9")
    assert not allowed.permits("evilsvc.cluster.local", "10.96.0.9")
    assert AllowedAddresses(["10.0.0.0/8"]).permits("x", "::ffff:10.0.0.1")


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "*", "a b", "300.1.1.1"])
def test_a_setting_that_is_neither_is_named(entry):
    with pytest.raises(ValueError, match="UPSTREAM_ALLOW"):
        AllowedAddresses([entry])


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1", "0", "localhost"])
def test_other_spellings_of_loopback_are_loopback(host):
    with pytest.raises(AddressRefused):
        asyncio.run(check_allowed(parse_upstream_url(f"http://{host}"), AllowedAddresses(["example.com"])))


def test_a_name_with_one_address_that_is_not_allowed_is_refused_whole(monkeypatch):
    async def both(host, port):
        return [(2, ("10.1.0.1", port)), (2, ("127.0.0.1", port))]

    monkeypatch.setattr(addresses, "resolve", both)
    with pytest.raises(AddressRefused):
        asyncio.run(check_allowed(parse_upstream_url("http://two.example.com"), AllowedAddresses(["10.0.0.0/8"])))
