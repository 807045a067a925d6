"""What tests share: a loop on a thread, services on it, fake upstreams that count what they are asked."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from metroculus.metroculus_worker.backfill import Progress
from metroculus.metroculus_worker.extract import RepairOrder
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.store import EMBEDDED
from rest_api.rest_api_server.directory.model import Flavour, Role
from simulator.server import Habits, Simulator
from simulator.world import DAY, HOUR, World, make_world
from standalone.running import Running, single_machine, start
from tests.stores import write_empty
from tools.tornado_service.access import Access

SECRET = "a-secret-of-the-tests"
BIN = Path(sys.executable).parent
CANARIES = (SECRET, "canary-of-")
"""What must stand in no log, no audit line and no answer."""
END = 1795219200
"""2026-11-21T00:00:00Z: the end of every world here."""
NOW = END + 20 * 60
"""A moment at which every hour before END is final."""
ACCOUNT = "5635f99d-4dc6-4e31-891f-4e8990925c83"


def silent(text: str) -> None:
    """Nothing that is secret stands in it."""
    for canary in CANARIES:
        assert canary not in text, text[:300]


class LoopThread:
    """An event loop that runs while the test thread asks questions."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        async def work() -> Any:
            return function(*args)

        return self.run(work())

    def close(self) -> None:
        async def rest() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


def serve(application: Application) -> tuple[HTTPServer, str]:
    server = HTTPServer(application)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    return server, f"http://127.0.0.1:{sockets[0].getsockname()[1]}"


@dataclass
class Answer:
    status: int = 200
    body: bytes = b'{"code":200,"data":[{}]}'
    headers: dict[str, str] = field(default_factory=dict)


class FakeUpstream:
    """Answers as it is told, by path; counts."""

    def __init__(self) -> None:
        self.answer: Callable[[Any], Answer] = lambda request: Answer()
        self.asked: list[str] = []
        outer = self

        class Everything(RequestHandler):
            def get(self) -> None:
                outer.asked.append(self.request.uri or "")
                given = outer.answer(self.request)
                self.set_status(given.status)
                for name, value in given.headers.items():
                    self.set_header(name, value)
                self.finish(given.body)

        self.application = Application([(r".*", Everything)])


class Stack:
    """Services and simulators on one loop; everything is stopped with it."""

    def __init__(self, folder: Path, templates: Path | None = None) -> None:
        self.folder = folder
        self.templates = templates or folder / "templates"
        """Where tests keep what the next ones copy."""
        self.plan: dict[str, Any] = {}
        """What every start of it has unless it says otherwise."""
        self.thread = LoopThread()
        self._servers: list[HTTPServer] = []
        self._running: list[Running] = []

    def serve(self, application: Application) -> str:
        server, url = self.thread.call(serve, application)
        self._servers.append(server)
        return url

    def simulate(
        self, world: World, habits: Habits | None = None, clock: Callable[[], float] | None = None
    ) -> tuple[Simulator, str]:
        simulator = Simulator(world, habits or Habits(), clock or (lambda: NOW))
        return simulator, self.serve(simulator.application())

    def start(self, **plan: Any) -> Running:
        folder = self.folder / f"data{len(self._running)}"
        values: dict[str, Any] = (
            {
                "data_dir": folder,
                "access": Access(audit_log=str(folder / "audit.jsonl"), bad_tokens_a_minute=9999),
                "rounds": False,
                "secret": SECRET,
                "upstream_allow": AllowedAddresses(["127.0.0.0/8"]),
                "clock": lambda: NOW,
            }
            | self.plan
            | plan
        )
        url = values.get("clickhouse_url") or ""
        if url.startswith(EMBEDDED):
            write_empty(Path(url.removeprefix(EMBEDDED)))
        running: Running = self.thread.call(start, single_machine(**values))
        self._running.append(running)
        return running

    def fill(
        self, running: Running, start: int, end: int, parallel: int = 1, order: RepairOrder | None = None
    ) -> Progress:
        """What a back-fill of the account's hours came to."""
        worker: Any = running.worker
        return self.thread.run(worker.worker.fill(ACCOUNT, (start, end), parallel, lambda progress: None, order))

    def close(self) -> None:
        for running in self._running:
            self.thread.run(running.stop())
        for log in self.folder.rglob("audit.jsonl"):
            silent(log.read_text())
        for server in self._servers:
            self.thread.call(server.stop)
        self.thread.close()


class Metroculus:
    """Metroculus as a caller with the secret sees it."""

    def __init__(self, running: Running, seconds: float = 60) -> None:
        self.url = running.metroculus_listener.url
        self._seconds = seconds

    def get(self, path: str, **params: Any) -> requests.Response:
        url = f"{self.url}/metroculus/v2/{path}"
        answer = requests.get(url, params=params, headers={"Secret": SECRET}, timeout=self._seconds)
        silent(answer.text)
        return answer

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        return requests.post(f"{self.url}/metroculus/v2/{path}", json=body, headers={"Secret": SECRET}, timeout=60)


@dataclass
class Tenant:
    """An organization with a token for each role."""

    organization_id: str
    tokens: dict[str, str]


def link_pushed(stack: Stack, running: Running, organization_id: str, name: str) -> str:
    """A linked cluster whose hours the caller stores itself; its id."""
    return link_cluster(stack, running, organization_id, name, "push", "")


def link_cluster(stack: Stack, running: Running, organization_id: str, name: str, flavour: Flavour, url: str) -> str:
    """A linked cluster, put straight into directory and registry; its id."""
    directory, registry = running.rest_api.directory, running.metroculus.dependencies.registry
    made = directory.create_cluster(organization_id, name, flavour, url)
    directory.update_cluster(made.id, name=name, flavour=flavour, url=url, state="linked", revision=made.revision)
    stack.thread.run(registry.put(made.id, flavour, url, Credentials()))
    return made.id


def make_tenant(running: Running, name: str) -> Tenant:
    directory: Any = running.rest_api.directory
    organization = directory.create_organization(name)
    tokens = {}
    for role in ("viewer", "manager", "admin"):
        directory.create_user(f"{name} {role}")
        directory.set_role(f"{name} {role}", organization.id, Role.of(role))
        tokens[role] = directory.create_token(f"{name} {role}", None)[1]
    return Tenant(organization.id, tokens)


def ask(running: Running, token: str | None, path: str, method: str = "GET", **more: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = running.rest_api_listener.url + path
    answer = requests.request(method, url, headers=headers | more.pop("headers", {}), timeout=60, **more)
    silent(answer.text)
    return answer


@contextmanager
def command(folder: Path, *args: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A console script that runs until the block ends; yields the URL that it prints, and the process."""
    clean = {k: v for k, v in os.environ.items() if k not in ("CLUSTER_SECRET", "CONFIG_URL")}
    log = folder / f"{Path(args[0]).name}.log"  # a pipe that nobody empties would stop the service
    with log.open("w") as opened:
        process = subprocess.Popen(
            [BIN / args[0], *args[1:]],
            cwd=folder,
            env=clean | environment,
            stdout=subprocess.PIPE,
            stderr=opened,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        assert found, (line, log.read_text())
        yield found[0], process
    finally:
        process.terminate()
        process.communicate(timeout=40)


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """A certificate of 127.0.0.1 that signs itself, and its key: files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.crt", folder / f"{name}.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(files[0]), str(files[1])


def until(check: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """What a process has worked so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_descriptors(process: subprocess.Popen[str]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def rest_commands(folder: Path, environment: dict[str, str]) -> Callable[..., str]:
    """``rest(*args)`` runs ``rest-api`` and gives what it printed."""

    def rest(*args: str) -> str:
        done = subprocess.run(
            [BIN / "rest-api", *args],
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    return rest


def exact_world(prime: int = 7, days: int = 4, **more: Any) -> World:
    return make_world(seed=3, days=days, end=END, prime=prime, **more)


def week(world: World) -> dict[str, Any]:
    return {"start_date": world.start, "end_date": world.end}


__all__ = [
    "ACCOUNT",
    "DAY",
    "END",
    "HOUR",
    "NOW",
    "SECRET",
    "Answer",
    "FakeUpstream",
    "Metroculus",
    "Stack",
    "Tenant",
    "ask",
    "exact_world",
    "make_tenant",
    "week",
]
