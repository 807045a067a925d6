"""``make soak``: both services under 64 clients while their upstreams come and go at random.

Every answer must be a declared one, and right where it says that it is complete; memory, threads and sockets must be
after the load what they were after its first part.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from simulator.costs import truth
from simulator.server import Habits
from simulator.world import DAY, HOUR, make_world
from tests.faults.proxy import Proxy
from tests.support import SECRET, LoopThread, Stack, command, rest_commands
from tools.tornado_service.openapi import FAILURES

CLIENTS = 64
TOKENS = 8
"""Clients share tokens, each of which has so many places at once."""
WARM_UP_SHARE = 0.4
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Of asyncio's own pool, which comes to its size as work is handed to it."""
GROWTH, SPARE_KIB = 1.05, 8 << 10
"""What a process may grow by: pools and arenas come to their size late where the machine is busy."""
FAULTS = ("refuse", "reset", "hang", "500", "429", "truncated JSON", "HTML with 200", "costs of null", None, None, None)
TIMEOUT = 2.0


@dataclass
class Cluster:
    id: str
    total: float
    """USD of the day that is asked for."""


@dataclass
class Resources:
    """Of one process: resident KiB, threads, open sockets."""

    resident: int
    threads: int
    sockets: int

    @staticmethod
    def of(process: int) -> Resources:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":\t" in line
        )
        names = (os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir() if file.is_symlink())
        sockets = sum(name.startswith("socket:") for name in names)
        return Resources(int(status["VmRSS"].split()[0]), int(status["Threads"]), sockets)


@dataclass
class Report:
    """What came of it; ``problems`` is empty where all held."""

    answers: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def compare(self, name: str, before: Resources, after: Resources) -> None:
        self.lines.append(
            f"{name:<12} resident {before.resident >> 10} -> {after.resident >> 10} MiB, threads {before.threads} -> "
            f"{after.threads}, sockets {before.sockets} -> {after.sockets}"
        )
        if after.resident > before.resident * GROWTH + SPARE_KIB:
            self.problems.append(f"{name}: memory grew by {after.resident / before.resident - 1:.1%}")
        if after.threads > before.threads + POOL_THREADS:
            self.problems.append(f"{name}: {after.threads - before.threads} threads more")
        if after.sockets > before.sockets + 4:
            self.problems.append(f"{name}: {after.sockets - before.sockets} sockets more")


class Soak:
    def __init__(self, folder: Path, say: Any) -> None:
        self.folder, self.say = folder, say
        self.stack = Stack(folder)
        self.thread = LoopThread()
        self.midnight = int(time.time()) // DAY * DAY
        self.proxies: list[Proxy] = []
        self.clusters: list[Cluster] = []
        self.report = Report()

    def run(self, seconds: float) -> Report:
        listens = {"METROCULUS_LISTEN": "127.0.0.1:0", "REST_API_LISTEN": "127.0.0.1:0"}
        environment = listens | {
            "CLUSTER_SECRET": SECRET,
            "DATA_DIR": str(self.folder / "data"),
            "UPSTREAM_ALLOW": "127.0.0.0/8",
            "KUBECOST_TIMEOUT": str(TIMEOUT),
            "CACHE_TTL": "1",  # what is asked meets fresh answers, old ones, and none
            "CACHE_SIZE": "2",
            "LOG_LEVEL": "warning",
            "RESOURCES_REFRESH": "5",
        }
        try:
            with ExitStack() as running:
                metroculus, first = running.enter_context(command(self.folder, "metroculus", "serve", **environment))
                api = ("rest-api", "serve", "--metroculus-url", metroculus)
                base, second = running.enter_context(command(self.folder, *api, **environment))
                tokens = self._link(base, environment)
                watched = {"metroculus": first.pid, "rest-api": second.pid}
                self._load(base, tokens, seconds * WARM_UP_SHARE)
                before = {name: Resources.of(process) for name, process in watched.items()}
                self._load(base, tokens, seconds * (1 - WARM_UP_SHARE))
                for name, process in watched.items():
                    self.report.compare(name, before[name], Resources.of(process))
                for url in (metroculus, base):
                    if requests.get(f"{url}/healthz", timeout=10).status_code != 200:
                        self.report.problems.append(f"{url} does not answer")
            for log in self.folder.glob("*.log"):
                before, found, trace = log.read_text().partition("Traceback")
                if found:
                    self.report.problems.append(f"{log.name} has a stack trace: {before[-300:]}{trace[:2000]}")
        finally:
            for proxy in self.proxies:
                self.thread.run(proxy.stop())
            self.thread.close()
            self.stack.close()
        return self.report

    def _link(self, base: str, environment: dict[str, str]) -> list[str]:
        """Six clusters behind proxies, linked as a user would; tokens to ask with."""

        rest = rest_commands(self.folder, environment)
        organization = rest("organization", "create", "soak")
        rest("user", "create", "me", "--organization", organization, "--role", "admin")
        tokens = [rest("token", "create", "me") for _ in range(TOKENS)]
        links = f"{base}/restapi/v2/organizations/{organization}/kubecost/clusters"
        self.overview = f"{links}?start_date={self.midnight - DAY}&end_date={self.midnight}"
        for number in range(6):
            flavour = ("kubecost", "opencost")[number % 2]
            world = make_world(seed=number, days=2, end=self.midnight, prime=7)
            _, url = self.stack.simulate(world, Habits(serves=frozenset({flavour})), time.time)
            proxy = Proxy(urlsplit(url).port or 0)
            self.thread.run(proxy.start())
            self.proxies.append(proxy)
            body = {"name": f"c{number}", "flavour": flavour, "url": proxy.url}
            headers = {"Authorization": f"Bearer {tokens[0]}"}
            linked = requests.post(links, json=body, headers=headers, timeout=30)
            assert linked.status_code == 201, linked.text
            adjusted = flavour == "kubecost"
            true = truth(world, self.midnight - DAY, self.midnight, int(time.time()), adjusted=adjusted)
            total = true["total_cost" if adjusted else "allocation_total"]
            self.clusters.append(Cluster(linked.json()["cluster_id"], total))
        self.base = base
        return tokens

    def _load(self, base: str, tokens: list[str], seconds: float) -> None:
        """So long under load, then quiet until nothing is in flight and no connection is left."""
        end = time.monotonic() + seconds
        flapping = threading.Thread(target=self._flap, args=(end,))
        clients = [
            threading.Thread(target=self._client, args=(tokens[number % TOKENS], end, number))
            for number in range(CLIENTS)
        ]
        for one in (flapping, *clients):
            one.start()
        while any(one.is_alive() for one in clients):
            time.sleep(min(5.0, max(0.1, end - time.monotonic())))
            self.say(f"{sum(self.report.answers.values())} answers, {len(self.report.problems)} problems")
        flapping.join()
        time.sleep(TIMEOUT + 2)

    def _flap(self, end: float) -> None:
        chance = random.Random(1)
        while time.monotonic() < end:
            proxy = chance.choice(self.proxies)
            self.thread.run(proxy.become(chance.choice(FAULTS)))
            time.sleep(chance.uniform(0.05, 0.5))
        for proxy in self.proxies:
            self.thread.run(proxy.become(None))

    def _client(self, token: str, end: float, number: int) -> None:
        chance = random.Random(number)
        day = (self.midnight - DAY, self.midnight)
        views = ("costs", "namespaces", "assets", "optimization", "costs?aggregate=pod", "costs?aggregate=)", "nothing")
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {token}"
            while time.monotonic() < end:
                cluster, view = chance.choice(self.clusters), chance.choice(views)
                path = f"{self.base}/restapi/v2/kubecost/clusters/{cluster.id}/{view}"
                first, last = sorted(chance.sample(range(49), 2))
                some = (self.midnight - last * HOUR, self.midnight - first * HOUR)  # hardly ever asked before
                window = chance.choice((day, some))
                dates = f"start_date={window[0]}&end_date={window[1]}"
                url = f"{path}{'&' if '?' in path else '?'}{dates}" if chance.random() < 0.9 else self.overview
                try:
                    answer = session.get(url, timeout=60)
                except requests.RequestException as failure:
                    self.report.problems.append(f"{type(failure).__name__}: {failure}"[:300])
                    continue
                self._judge(url, answer, cluster.total if window == day else None)
                time.sleep(chance.uniform(0, 0.2))

    def _judge(self, url: str, answer: requests.Response, true: float | None) -> None:
        """Hold an answer against the contract, and against the cost (USD) where that is known beforehand."""
        status = answer.status_code
        self.report.answers[str(status)] += 1
        body = answer.json()
        if status != 200:
            if status not in FAILURES or body["error"]["status_code"] != status:
                self.report.problems.append(f"{status} is not declared: {answer.text[:300]}")
            return
        if url == self.overview:
            wrong = [row for row in body["clusters"] if row["complete"] and row["total_cost"] != self._true(row)]
        elif "costs" not in body:
            return
        else:
            wrong = [body] if body["complete"] and true is not None and body["total_cost"] != true else []
            zero = body["total_cost"] == 0
            wrong += [body] if zero else []
        if wrong:
            self.report.problems.append(f"a wrong figure: {wrong[0]['total_cost']}")

    def _true(self, row: dict[str, Any]) -> float:
        return next(one.total for one in self.clusters if one.id == row["cluster_id"])


def run(seconds: float, say: Any = lambda text: None) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        return Soak(Path(folder), say).run(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    report = run(parser.parse_args().seconds, lambda text: print(f"\r{text:<60}", end="", flush=True))
    print("\n" + "\n".join(report.lines))
    print("answers by status:", ", ".join(f"{status} {count}" for status, count in sorted(report.answers.items())))
    for problem in report.problems[:20]:
        print("PROBLEM:", problem)
    print("held" if not report.problems else f"{len(report.problems)} problems")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
