"""Agents, gateway, worker and upstreams as processes that are killed at random: every hour of every cluster, once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import fsum
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator.costs import truth
from simulator.server import Habits
from simulator.world import World, make_world
from tests.conftest import free_port, wait_until_ready
from tests.support import BIN, DAY, HOUR, SECRET, Stack, until

pytestmark = pytest.mark.push

KILLS = int(os.environ.get("PUSH_KILLS", "2"))
DAYS = int(os.environ.get("PUSH_DAYS", "4"))
PATIENCE = 300 + 20 * KILLS
"""Seconds: a question that nobody answered is asked again within five minutes, and there were many."""
FLAVOURS = ("kubecost", "opencost", "opencost")


@dataclass
class Part:
    """A process on a fixed address, which may be killed and started again."""

    name: str
    command: list[str]
    url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        clean = {k: v for k, v in os.environ.items() if k not in ("CLUSTER_SECRET", "CONFIG_URL")}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=clean | self.environment, stdout=log, stderr=log
            )
        wait_until_ready(f"{self.url}/healthz", self.process, 60)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(40)


class Upstream:
    """A cluster's Kubecost or OpenCost, which may be away."""

    def __init__(self, stack: Stack, world: World, flavour: str) -> None:
        self._stack = stack
        self.world, self.flavour = world, flavour
        self.simulator, self.url = stack.simulate(world, Habits(serves=frozenset({flavour})), time.time)

    def kill(self) -> None:
        """It answers nothing but failures until it is started again."""
        self.simulator.habits = replace(self.simulator.habits, fail_with=(503, "away"))

    def start(self) -> None:
        self.simulator.habits = replace(self.simulator.habits, fail_with=None)

    def true(self, start: int, end: int) -> float:
        found: Any = truth(self.world, start, end, now=int(time.time()), adjusted=self.flavour == "kubecost")
        total: float = found["total_cost" if self.flavour == "kubecost" else "allocation_total"]
        return total


@dataclass
class Platform:
    """Three clusters that push to one gateway, and what they push to."""

    folder: Path
    backend: Part
    gateway: Part
    agents: list[Part]
    upstreams: list[Upstream]
    accounts: list[str]

    def ask(self, method: str, path: str, **more: Any) -> Any:
        url = f"{self.backend.url}/metroculus/v2/{path}"
        answer = requests.request(method, url, headers={"Secret": SECRET}, timeout=60, **more)
        assert answer.ok, answer.text
        return answer.json()


@pytest.fixture
def platform(stack: Stack, tmp_path: Path) -> Iterator[Platform]:
    end = (int(time.time()) - HOUR) // DAY * DAY  # the last hour of a day is told some minutes after it
    ports = [free_port() for _ in range(3 + len(FLAVOURS))]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    environment = {"CLUSTER_SECRET": SECRET, "DATA_DIR": str(tmp_path / "data"), "LOG_LEVEL": "warning"}
    listen = {"METROCULUS_LISTEN": urls[0][7:], "WORKER_LISTEN": urls[1][7:]}
    backend = Part("backend", [str(BIN / "metroculus"), "serve", "--worker"], urls[0], tmp_path, environment | listen)
    gateway = Part(
        "gateway", [str(BIN / "diproxy"), "serve"], urls[2], tmp_path,
        environment | {"DIPROXY_LISTEN": urls[2][7:], "METROCULUS_URL": urls[0]},
    )  # fmt: skip
    backend.start()
    gateway.start()
    made = Platform(tmp_path, backend, gateway, [], [], [])
    for number, flavour in enumerate(FLAVOURS):
        world = make_world(seed=number, days=DAYS + 1, end=end, prime=(3, 5, 7)[number], cluster_id=f"far-{number}")
        upstream = Upstream(stack, replace(world, discount=0.0), flavour)
        account = f"00000000-0000-4000-8000-{number:012d}"
        made.ask("PUT", f"kubecost_sources/{account}", json={"flavour": "push"})
        token = tmp_path / f"{number}.token"
        token.write_text(made.ask("POST", f"push_tokens/{account}")["push_token"])
        url = urls[3 + number]
        command = [str(BIN / "metroculus"), "agent", f"--{flavour}", upstream.url, "--to", gateway.url,
                   "--account", account, "--token-file", str(token), "--listen", url[7:], "--poll", "1"]  # fmt: skip
        agent = Part(f"agent-{number}", command, url, tmp_path)
        made.agents.append(agent)
        made.upstreams.append(upstream)
        made.accounts.append(account)
    yield made
    for part in (*made.agents, gateway, backend):
        if part.process is not None and part.process.poll() is None:
            assert part.stop() == 0, part.name
    for log in tmp_path.glob("*.log"):
        text = log.read_text()
        assert "Traceback" not in text, (log.name, text[-3000:])


def test_everything_is_killed_and_every_hour_is_there_once(platform: Platform) -> None:
    end = platform.upstreams[0].world.end
    start = end - DAYS * DAY
    for agent in platform.agents:
        agent.start()
    for account in platform.accounts:
        platform.ask("POST", "backfills", json={"cloud_account_id": account, "start_date": start, "end_date": end})
    rng = random.Random(11)
    kinds: list[list[Any]] = [platform.agents, [platform.gateway], [platform.backend], platform.upstreams]
    for number in range(KILLS):
        for kind in kinds:
            victim = rng.choice(kind)
            time.sleep(rng.uniform(0.1, 0.8))
            victim.kill()
            time.sleep(rng.uniform(0.0, 0.5))
            victim.start()
        print(f"round {number + 1} of {KILLS}: an agent, the gateway, the backend and an upstream were killed")

    for account, upstream in zip(platform.accounts, platform.upstreams, strict=True):
        exact = upstream.true(start, end)
        asked = {"cloud_account_id": account, "start_date": start, "end_date": end}

        def told(asked: dict[str, Any] = asked) -> Any:
            return platform.ask("GET", "kubecost_cluster_costs", params=asked)

        assert until(lambda told=told: told()["complete"], PATIENCE), told()["sources"]  # type: ignore[misc]
        summary = told()["summary"]
        known = fsum(usd for name, usd in summary.items() if name.endswith("_cost") and usd is not None
                     and name not in ("total_cost", "known_cost"))  # fmt: skip
        assert known == pytest.approx(exact, abs=1e-6), account
        print(f"{account}: {DAYS * 24} hours, {known:.6f} USD, the truth to {abs(known - exact):.1e}")


def _wanted(platform: Platform, account: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = platform.ask("GET", f"push/{account}/wanted")["wanted"]
    return found


def test_an_agent_at_rest_is_small(platform: Platform) -> None:
    agent = platform.agents[0]
    agent.start()
    assert until(lambda: not _wanted(platform, platform.accounts[0]), 120)
    assert agent.process is not None
    pages = int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    print(f"an agent at rest: {resident:.1f} MiB")
    assert resident <= 60
