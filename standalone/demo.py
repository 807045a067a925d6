"""``make demo``: the product against three simulated clusters, on embedded parts; the third one pushes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import requests
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.storage.store import EMBEDDED
from rest_api.rest_api_server.directory.model import Role
from simulator import openmetrics
from simulator.burst import with_burst
from simulator.field import HARDSHIPS as ALL_HARDSHIPS
from simulator.field import make_field_world
from simulator.server import Habits, Simulator
from simulator.world import DAY, HOUR, World
from standalone.check import BUDGET, RULES, Check, DemoCluster, check_everything, check_store_alone
from standalone.history import tell_owner
from standalone.pushed import PushedCluster, begin_pushing, taken_up
from standalone.running import Running, single_machine, start
from standalone.up import TOKEN_FILE, cost_table, fill_history, how_to_ask, new_secret, page_link, unless
from tools.processes import end_with_parent
from tools.tornado_service.access import Access
from tools.tornado_service.listening import stop_signal
from tools.window import SETTLING_SECONDS

HARDSHIPS = sorted(ALL_HARDSHIPS.keys() - {"blind_hours", "late_network"})
"""What the clusters of the demo have of the field; all that can be known of them is told, so that it can be checked."""
HISTORY_DAYS = 14
AHEAD_DAYS = 2
BURST_HOURS_AGO, BURST = 3, 1.5
"""When one hour of cluster-one was dear, and by how much of what its machines cost."""
METRICS_INTERVAL_SECONDS = 300


@dataclass
class Prometheus:
    """A Prometheus of our own over back-filled history; ended by its process id."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def load(self, world: World, tenant: str, now: int) -> None:
        """Write a world's metrics up to now into its storage."""
        file = self.folder / f"{tenant}.om"
        with file.open("w") as opened:
            opened.writelines(openmetrics.lines(world, {"tenant_id": tenant}, METRICS_INTERVAL_SECONDS, now))
        subprocess.run(
            [
                "promtool",
                "tsdb",
                "create-blocks-from",
                "--max-block-duration=360h",
                "-q",
                "openmetrics",
                file,
                self.folder,
            ],
            check=True,
            capture_output=True,
        )
        file.unlink()

    async def start(self) -> None:
        config = self.folder / "prometheus.yml"
        config.write_text("")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder}",
                "--storage.tsdb.retention.time=10y",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
        )
        for _ in range(100):
            try:
                if (await asyncio.to_thread(requests.get, f"{self.url}/-/ready", timeout=1)).ok:
                    return
            except requests.ConnectionError:
                await asyncio.sleep(0.1)
        raise click.ClickException("Prometheus did not become ready in ten seconds")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve_simulator(simulator: Simulator) -> tuple[HTTPServer, str]:
    server = HTTPServer(simulator.application())
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    return server, f"http://127.0.0.1:{sockets[0].getsockname()[1]}"


def link(running: Running, token: str, organization_id: str, name: str, flavour: str, url: str) -> dict[str, str]:
    """Link a cluster as a user would; its id, and the token of its agent where it pushes."""
    answer = requests.post(
        f"{running.rest_api_listener.url}/restapi/v2/organizations/{organization_id}/kubecost/clusters",
        headers={"Authorization": f"Bearer {token}"},
        json={"name": name, "flavour": flavour, "url": url},
        timeout=20,
    )
    answer.raise_for_status()
    linked: dict[str, str] = answer.json()
    return linked


@dataclass
class Demo:
    """What a demo is made of, once it runs."""

    folder: Path
    now: int
    worlds: list[World]
    served: list[tuple[HTTPServer, str]]
    prometheus: Prometheus | None
    running: Running
    secret: str
    token: str = ""
    token_id: str = ""
    stranger: str = ""
    organization_id: str = ""
    clusters: list[DemoCluster] = field(default_factory=list)
    pushed: PushedCluster | None = None

    @property
    def store_url(self) -> str:
        return _store_url(self.folder)

    async def stop(self) -> None:
        if self.pushed is not None:
            await self.pushed.stop()
        await self.running.stop()
        for server, _ in self.served:
            server.stop()
        if self.prometheus is not None:
            self.prometheus.stop()


def _store_url(folder: Path) -> str:
    return f"{EMBEDDED}{folder / 'data' / 'store'}"


CHECK_SECONDS = 180
"""What a check takes on a busy machine: bills arrive with the hour, and the truth is of one hour."""


async def _until_a_check_fits(now: float) -> None:
    """Wait for the next hour where this one ends before a check does."""
    left = HOUR - now % HOUR
    if left < CHECK_SECONDS:
        click.echo(f"waiting {left:.0f} s for the next hour: bills arrive with it, and the check is of one hour …")
        await asyncio.sleep(left)


async def run(folder: Path, check: bool, ports: tuple[int, int]) -> int:
    """Start everything afresh in ``folder``; with ``check`` hold every view against the truth and end.

    Returns:
        the exit status.
    """
    if check:
        await _until_a_check_fits(time.time())
    stopped = stop_signal()
    began = time.monotonic()
    demo = _started(folder, ports)
    try:
        _make_tenants(demo)
        await _link_and_fill(demo, stopped)
        await asyncio.to_thread(decide, demo)
        demo.running.begin()
        if demo.running.worker is not None:
            await demo.running.worker.alerts.evaluate()
        tell_owner(demo.store_url, demo.running.metroculus_listener.url, demo.secret)
        file = _write_connection(demo)
        click.echo(f"ready after {time.monotonic() - began:.1f} s; {file} says where everything is\n")
        if check:
            return report(await _checks(demo))
        click.echo(page_link(demo.running, demo.token_id))
        click.echo(await asyncio.to_thread(first_look, demo.running, demo.token, demo.clusters[0].id))
        click.echo(await asyncio.to_thread(alerts_of, demo))
        click.echo(
            how_to_ask(
                demo.running, demo.organization_id, (demo.clusters[0].id, "cluster-one"), demo.token, demo.folder
            )
        )
        await stopped.wait()
        return 0
    finally:
        await demo.stop()


CONNECTION = "connection.json"
MARK = ".metroculus-demo"
"""A file in each folder that a demo has made: no other folder is touched."""
MADE = (CONNECTION, "agent.log", "audit.jsonl", "data", "prometheus", "push.token", TOKEN_FILE)
"""What a demo makes in its folder."""


def _made_anew(folder: Path) -> None:
    """A folder of a demo's own; what an earlier demo has made in it is deleted, and nothing else.

    Raises:
        click.ClickException: the folder holds something else, cannot be made, or a demo is running in it.
    """
    mark = folder / MARK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if others := _not_made_by_demos(folder):
            named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            raise click.ClickException(f"{folder} holds files that no demo has made ({named}): name another folder")
        handle = os.open(mark, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as problem:
        raise click.ClickException(f"{folder} cannot be the demo's folder: {problem.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # for as long as this process runs
    except OSError:
        os.close(handle)
        raise click.ClickException(f"a demo is running in {folder}: stop it, or name another folder") from None
    try:
        for name in MADE:
            one = folder / name
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                one.unlink(missing_ok=True)
    except OSError as problem:
        where = f"{problem.filename}: {problem.strerror}"
        raise click.ClickException(f"what an earlier demo left in {folder} cannot be deleted: {where}") from None


def _not_made_by_demos(folder: Path) -> list[str]:
    """Names in a folder that no demo has made. A folder of an older version has no mark, but a connection file."""
    if (folder / MARK).is_file():
        return []
    listed = sorted(one.name for one in folder.iterdir())
    connection: object = None
    if (folder / CONNECTION).is_file():
        with suppress(OSError, ValueError, RecursionError):
            connection = json.loads((folder / CONNECTION).read_bytes())
    earlier = isinstance(connection, dict) and "simulator_url" in connection
    return [name for name in listed if name not in MADE] if earlier else listed


def _started(folder: Path, ports: tuple[int, int]) -> Demo:
    """Three simulated clusters, a Prometheus where there is one, and the services."""
    _made_anew(folder)
    now = int(time.time())
    end = now - now % DAY + AHEAD_DAYS * DAY
    worlds = [
        make_field_world(HARDSHIPS, seed=seed, days=HISTORY_DAYS + AHEAD_DAYS, end=end, cluster_id=name)
        for seed, name in ((1, "cluster-one"), (2, "cluster-two"), (3, "cluster-three"))
    ]
    spike = now - SETTLING_SECONDS
    spike -= spike % HOUR + BURST_HOURS_AGO * HOUR
    worlds[0] = with_burst(worlds[0], spike, BURST)
    click.echo(
        "starting three simulated clusters: cluster-one behind Kubecost, cluster-two behind OpenCost,"
        " cluster-three behind a Kubecost that only its own agent can reach …"
    )
    serves = (Habits(), Habits(serves=frozenset({"opencost"})), Habits(serves=frozenset({"kubecost"})))
    simulators = [Simulator(world, habits) for world, habits in zip(worlds, serves, strict=True)]
    served = [serve_simulator(simulator) for simulator in simulators]
    prometheus = None
    if shutil.which("prometheus") and shutil.which("promtool"):
        metrics_folder = folder / "prometheus"
        metrics_folder.mkdir()
        prometheus = Prometheus(metrics_folder, free_port())
    click.echo("starting Metroculus and the REST API over embedded stores …")
    secret = new_secret()
    running = start(
        single_machine(
            folder / "data",
            secret,
            listen=("127.0.0.1", ports[0]),
            rest_api_listen=("127.0.0.1", ports[1]),
            thanos_query_url=prometheus.url if prometheus else None,
            upstream_allow=AllowedAddresses(["127.0.0.0/8"]),
            clickhouse_url=_store_url(folder),
            access=Access(audit_log=str(folder / "audit.jsonl")),
            rounds=False,
        )
    )
    return Demo(folder, now, worlds, served, prometheus, running, secret)


def _make_tenants(demo: Demo) -> None:
    """The demo's organization with its user, and a stranger who must see nothing of it."""
    directory = demo.running.rest_api.directory
    organization = directory.create_organization("demo")
    other = directory.create_organization("somebody else")
    for name, place in (("demo", organization), ("stranger", other)):
        directory.create_user(name)
        directory.set_role(name, place.id, Role.ADMIN)
    demo.organization_id = organization.id
    demo.token_id, demo.token = directory.create_token("demo", demo.now + 30 * DAY)
    demo.stranger = directory.create_token("stranger", demo.now + 30 * DAY)[1]


async def _link_and_fill(demo: Demo, stopped: asyncio.Event) -> None:
    """Link the clusters as a user would, load their metrics, and store two weeks of hours."""
    click.echo("linking the clusters through the API …")
    for world, flavour, (_, url) in zip(demo.worlds, ("kubecost", "opencost", "push"), demo.served, strict=True):
        pushes = flavour == "push"
        asked = (demo.running, demo.token, demo.organization_id, world.cluster_id, flavour, "" if pushes else url)
        linked = await asyncio.to_thread(link, *asked)
        shown = "kubecost" if pushes else flavour
        demo.clusters.append(DemoCluster(linked["cluster_id"], world, shown, url, pushes))
        if pushes:
            account, token = linked["cluster_id"], linked["push_token"]
            demo.pushed = begin_pushing(demo.folder, demo.running, demo.secret, account, token, url)
    if demo.prometheus is not None:
        click.echo("writing two weeks of metrics into a Prometheus …")
        for cluster in demo.clusters:
            await asyncio.to_thread(demo.prometheus.load, cluster.world, cluster.id, demo.now)
        await demo.prometheus.start()
    for cluster in demo.clusters:
        name = cluster.world.cluster_id
        if cluster.pushed:
            end = int(time.time())
            window = (end - end % DAY - HISTORY_DAYS * DAY, end)
            what = f"storing two weeks that the agent of {name} pushes"
            await unless(stopped, taken_up(demo.running, cluster.id, window, what))
        else:
            await unless(stopped, filled(demo.running, cluster.id, f"storing two weeks of {name}"))


def decide(demo: Demo) -> None:
    """Give the demo's organization its allocation rules and a budget, as a manager would."""
    base = f"{demo.running.rest_api_listener.url}/restapi/v2/organizations/{demo.organization_id}/kubecost"
    budget = BUDGET | {"scope": {"cluster_id": demo.clusters[0].id}}
    for method, path, body in (("PUT", "allocation_rules", RULES), ("POST", "budgets", budget)):
        headers = {"Authorization": f"Bearer {demo.token}"}
        answer = requests.request(method, f"{base}/{path}", json=body, headers=headers, timeout=40)
        answer.raise_for_status()


def alerts_of(demo: Demo) -> str:
    """What fires, as lines; the worker has looked once it has begun."""
    url = f"{demo.running.rest_api_listener.url}/restapi/v2/organizations/{demo.organization_id}/kubecost/alerts"
    answer = requests.get(url, headers={"Authorization": f"Bearer {demo.token}"}, timeout=40)
    answer.raise_for_status()
    lines = ["alerts that fire:"]
    for one in answer.json()["alerts"]:
        causes = ", ".join(f"{cause['namespace']} {cause['share']:.0%}" for cause in one["causes"])
        lines.append(f"  {one['kind']}: {one['summary']}" + (f" ({causes})" if causes else ""))
    return "\n".join(lines) + "\n"


def _write_connection(demo: Demo) -> Path:
    """``connection.json``: where everything is, and how to get in."""
    running = demo.running
    assert running.worker_listener is not None
    connection = {
        "gateway_url": demo.pushed.listener.url if demo.pushed is not None else None,
        "worker_url": running.worker_listener.url,
        "metroculus_url": running.metroculus_listener.url,
        "rest_api_url": running.rest_api_listener.url,
        "secret": running.rest_api.metroculus.client.secret,
        "token": demo.token,
        "organization_id": demo.organization_id,
        "cluster_ids": [cluster.id for cluster in demo.clusters],
        "simulator_url": demo.served[0][1],
    }
    file = demo.folder / CONNECTION
    file.touch(mode=0o600)
    file.write_text(json.dumps(connection, indent=1))
    return file


async def _checks(demo: Demo) -> list[Check]:
    """Every view against the truth, then with the clusters stopped what is stored."""
    base = demo.running.rest_api_listener.url
    asked = (base, demo.token, demo.stranger, demo.organization_id, demo.clusters, demo.prometheus is not None)
    checks = await asyncio.to_thread(check_everything, *asked)
    click.echo("stopping the clusters and asking again …")
    if demo.pushed is not None:
        await asyncio.to_thread(demo.pushed.stop_agent)
    for server, _ in demo.served:
        server.stop()
        await server.close_all_connections()
    demo.running.metroculus.cache.clear()  # it would stand in for them
    return checks + await asyncio.to_thread(check_store_alone, base, demo.token, demo.organization_id, demo.clusters)


async def filled(running: Running, cluster_id: str, what: str) -> None:
    progress = await fill_history(running, cluster_id, HISTORY_DAYS, what)
    if not progress.complete:
        raise click.ClickException(f"{progress.missing} hours could not be stored: {progress.last_reason}")


def first_look(running: Running, token: str, cluster_id: str) -> str:
    url = f"{running.rest_api_listener.url}/restapi/v2/kubecost/clusters/{cluster_id}/costs?window=7d"
    answer = requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=40)
    answer.raise_for_status()
    body = answer.json()
    return f"cluster-one, {body['window']['start']} to {body['window']['end']}, USD\n\n{cost_table(body)}"


def report(checks: list[Check]) -> int:
    """Print what was asked, what came and what is true; 1 where anything is off."""
    width = max(len(one.view) for one in checks) + 2
    click.echo(f"{'view':<{width}}{'answer':>16}{'truth':>16}{'off by':>12}  ")
    for one in checks:
        numbers = f"{one.answer:>16.6f}{one.truth:>16.6f}{abs(one.answer - one.truth):>12.2e}"
        click.echo(f"{one.view:<{width}}{numbers}  {'ok' if one.ok else 'WRONG'}")
    wrong = sum(not one.ok for one in checks)
    click.echo(f"\n{len(checks) - wrong} of {len(checks)} agree with the simulator's exact truth")
    return 1 if wrong else 0
