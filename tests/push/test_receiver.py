"""Metrics through the gateway into a real Prometheus: what was acknowledged is there, whatever was killed on the way."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from simulator.remote_write import field, labels, packed, sample
from tests.conftest import free_port
from tests.push.test_gateway import METRICS, WRITE
from tests.pushing import Door
from tests.support import Stack, until

pytestmark = pytest.mark.push

KILLS = int(os.environ.get("PUSH_KILLS", "3"))
SENDERS = 6
RENEWED_EVERY = 1 + KILLS // 6
"""Kills: an account has eight good tokens at most."""
SAMPLES = 40 * KILLS
"""Each sender's, one a request."""


class Receiver:
    """A Prometheus that takes remote write, on one port for good."""

    def __init__(self, prometheus: Any) -> None:
        self._prometheus = prometheus
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self._prometheus.start("--web.enable-remote-write-receiver", port=self.port)

    def kill(self) -> None:
        self._prometheus.process.send_signal(signal.SIGKILL)
        self._prometheus.process.wait(20)

    def values(self, query: str) -> list[dict[str, Any]]:
        answer = requests.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=20)
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


@pytest.fixture
def receiver(prometheus_factory: Any) -> Receiver:
    return Receiver(prometheus_factory())


@pytest.fixture
def door(stack: Stack, receiver: Receiver) -> Iterator[Door]:
    made = Door(stack, receive_url=f"{receiver.url}/api/v1/write")
    yield made
    made.close()


class Sender(threading.Thread):
    """Sends one sample after the other, as Prometheus does: again where that may help, and notes what was taken."""

    def __init__(self, door: Door, number: int, token: list[str], start: int) -> None:
        super().__init__(daemon=True)
        self.door, self.number, self.token, self.begin = door, number, token, start
        self.acknowledged = 0
        self.dropped: list[int] = []
        self.given_up = threading.Event()

    def run(self) -> None:
        for one in range(SAMPLES):
            named = labels({"__name__": "sent", "sender": str(self.number)})
            body = packed(field(1, named + sample(float(one), self.begin + one)))
            ends = time.monotonic() + 60
            while time.monotonic() < ends and not self.given_up.is_set():
                try:
                    answer = self.door.push("POST", WRITE, self.token[0], data=body, headers=METRICS)
                except requests.RequestException:
                    continue
                if answer.ok:
                    self.acknowledged += 1
                    break
                if answer.status_code != 503:
                    self.dropped.append(answer.status_code)
                    break
                time.sleep(0.02)


def test_a_receiver_that_is_killed_again_and_again_misses_nothing(door: Door, receiver: Receiver) -> None:
    account, first = door.link()
    token = [first]
    begin = (int(time.time()) - 600) * 1000
    senders = [Sender(door, number, token, begin) for number in range(SENDERS)]
    for one in senders:
        one.start()
    rng = random.Random(3)
    try:
        for number in range(KILLS):
            time.sleep(rng.uniform(0.1, 0.5))
            receiver.kill()
            if number % RENEWED_EVERY == 0:
                token[0] = door.renewed(account)  # the old one is good for a while more
            time.sleep(rng.uniform(0.0, 0.3))
            receiver.start()
            print(f"kill {number + 1}: {sum(one.acknowledged for one in senders)} samples acknowledged")
    except BaseException:
        for one in senders:
            one.given_up.set()
        raise
    for one in senders:
        one.join()
    assert not [one.dropped for one in senders if one.dropped]
    assert {one.acknowledged for one in senders} == {SAMPLES}
    until(lambda: len(receiver.values("last_over_time(sent[30m])")) == SENDERS)
    counted = receiver.values("count_over_time(sent[30m])")
    assert {one["metric"]["sender"]: int(one["value"][1]) for one in counted} == {
        str(number): SAMPLES for number in range(SENDERS)
    }


def test_a_prometheus_writes_through_it(door: Door, receiver: Receiver, prometheus_factory: Any) -> None:
    """A real sender: scrapes itself, and remote-writes by OptScale's path and headers."""
    account, token = door.link()
    sender = prometheus_factory()
    port = free_port()
    sender.start(
        port=port,
        configuration=f"""
global: {{scrape_interval: 1s, external_labels: {{cluster_id: far}}}}
scrape_configs: [{{job_name: self, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]
remote_write:
  - url: {door.url}{WRITE}
    headers: {{Cloud-Account-Id: {account}}}
    basic_auth: {{username: anyone, password: {token}}}
    queue_config: {{retry_on_http_429: true, batch_send_deadline: 1s}}
""",
    )
    assert until(lambda: receiver.values('up{cluster_id="far"} == 1'), 40)
    sender.stop()
    figures = requests.get(f"{door.url}/metrics", timeout=10).text
    assert float(next(line for line in figures.splitlines() if line.startswith("diproxy_samples_total")).split()[1]) > 0
