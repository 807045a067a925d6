"""Fixtures: services on a loop, and the real servers, each started once a session and ended by its own process id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from hypothesis import HealthCheck, settings

from simulator import openmetrics
from simulator.world import World
from tests.native import NativeListener
from tests.stores import ClickHouse
from tests.support import Stack

settings.register_profile("repo", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repo")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path)
    yield made
    made.close()


def need(*programs: str, package: str) -> None:
    """Fail in CI, skip elsewhere, where a real part is missing: a program, or a file by its path."""
    if all(shutil.which(program) or Path(program).is_file() for program in programs):
        return
    message = f"a real part is missing: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Prometheus:
    """A Prometheus whose storage is filled before it starts."""

    folder: Path
    url: str = ""
    process: subprocess.Popen[bytes] | None = None

    def load(self, lines: list[str], name: str) -> None:
        file = self.folder / f"{name}.om"
        with file.open("w") as opened:
            opened.writelines(lines)
        command = ["promtool", "tsdb", "create-blocks-from", "--max-block-duration=360h", "-q", "openmetrics"]
        subprocess.run([*command, file, self.folder / "data"], check=True, capture_output=True)

    def load_world(self, world: World, tenant: str | None, interval: int = 60) -> None:
        extra = {"tenant_id": tenant} if tenant else None
        self.load(list(openmetrics.lines(world, extra, interval)), f"{world.cluster_id}-{tenant}")

    def start(self) -> None:
        port = free_port()
        config = self.folder / "prometheus.yml"
        config.write_text("")
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                "--storage.tsdb.retention.time=10y",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until_ready(f"{self.url}/-/ready", self.process)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        try:
            if requests.get(url, timeout=1).ok:
                return
        except requests.RequestException:
            time.sleep(0.05)
    raise AssertionError(f"{url} did not become ready in {seconds} s")


@pytest.fixture(scope="session")
def prometheus_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type]:
    """Makes Prometheus servers that end with the session."""
    need("prometheus", "promtool", package="prometheus")
    made: list[Prometheus] = []

    def make() -> Prometheus:
        one = Prometheus(tmp_path_factory.mktemp("prometheus"))
        made.append(one)
        return one

    yield make  # type: ignore[misc]
    for one in made:
        one.stop()


@dataclass
class Etcd:
    """An etcd that can be stopped and started again on its own port."""

    folder: Path
    port: int
    peer_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self.port}"

    def start(self) -> None:
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer_port}"
        self.process = subprocess.Popen(
            [
                "etcd",
                f"--data-dir={self.folder}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until_ready(f"{client}/health", self.process)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    need("etcd", package="etcd-server")
    made = Etcd(tmp_path / "etcd", free_port(), free_port())
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """The oldest ClickHouse server that anyone runs."""
    need("clickhouse-server", package="clickhouse-server")
    server = ClickHouse(tmp_path_factory.mktemp("clickhouse"), free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["embedded", "server", "newest"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """``CLICKHOUSE_URL`` of an empty store: embedded, the oldest server, the newest dialect over the server's driver."""
    if request.param == "embedded":
        yield f"embedded:{tmp_path / 'store'}"
        return
    if request.param == "newest":
        listener = NativeListener(tmp_path / "native")
        yield listener.url
        listener.close()
        return
    server: ClickHouse = request.getfixturevalue("clickhouse")
    with server.database(f"d{uuid4().hex}") as url:
        yield url
