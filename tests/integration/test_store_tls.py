"""A ClickHouse server over TLS: taken only where its authority is the one that was named."""

from __future__ import annotations

import pytest

from metroculus.storage.engine import StoreError
from metroculus.storage.server import ServerEngine
from metroculus.storage.store import open_store
from tests.conftest import free_port, need
from tests.stores import PASSWORD, ClickHouse
from tests.support import certificate

TLS = """
 <tcp_port_secure>{port}</tcp_port_secure>
 <openSSL><server><certificateFile>{files[0]}</certificateFile><privateKeyFile>{files[1]}</privateKeyFile>
 <verificationMode>none</verificationMode><loadDefaultCAFile>false</loadDefaultCAFile></server></openSSL>"""


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    need("clickhouse-server", package="clickhouse-server")
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    files = certificate(folder, "store")
    server = ClickHouse(folder / "server", free_port(), TLS.format(port=port, files=files))
    server.start()
    yield f"clickhouses://default:{PASSWORD}@127.0.0.1:{port}/default", files[0], folder
    server.stop()


def test_a_server_is_taken_over_tls_whose_authority_is_named(secure):
    url, authority, _ = secure
    store = open_store(f"{url}?ca_certs={authority}")
    store.migrate()
    assert store.ledger.accounts() == []
    store.close()


@pytest.mark.parametrize("which", ["the system's authorities", "another", "no TLS at all"])
def test_no_other_is_and_that_is_a_failure_of_the_store(secure, which):
    url, _, folder = secure
    if which == "another":
        url += f"?ca_certs={certificate(folder, 'other')[0]}"
    if which == "no TLS at all":
        url = url.replace("clickhouses://", "clickhouse://")
    engine = ServerEngine(url)
    with pytest.raises(StoreError) as refused:
        list(engine.query("SELECT 1"))
    assert PASSWORD not in str(refused.value)
    engine.close()
