"""Every rendered Deployment and StatefulSet, started as a process by its own manifest and asked by its own probes."""

from __future__ import annotations

import base64
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from simulator.costs import truth
from simulator.server import Habits
from simulator.world import make_world
from tests.conftest import ClickHouse, Ferret, Rabbit, Redis
from tests.e2e.test_images import line_of, stages
from tests.helm.chart import CHART, MINIMAL, PRODUCTION, Manifest, integration, merged, rendered, workloads
from tests.support import ACCOUNT, BIN, DAY, HOUR, SECRET, Stack, until

TARGET_OF = {
    "metroculus": "metroculus",
    "metroculus-rest-api": "rest-api",
    "metroculus-diproxy": "diproxy",
    "metroculus-agent": "agent",
}
"""The image's target, by the name of the repository."""


class Pod:
    """A workload's container as a process of this machine: its paths, ports and secrets are replaced, nothing else.

    Args:
        values: what the secrets hold, by name and key.
        urls: where services are, by their URL in the manifest.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, values: dict[tuple[str, str], str], urls: dict[str, str]
    ) -> None:
        self.name = manifest["metadata"]["name"]
        spec = manifest["spec"]["template"]["spec"]
        (self.container,) = spec["containers"]
        self.grace = spec["terminationGracePeriodSeconds"]
        folder = folder / self.name
        mounts = {one["mountPath"]: folder / one["name"] for one in self.container["volumeMounts"]}
        for mount in mounts.values():
            mount.mkdir(parents=True)
        for volume in spec["volumes"]:
            for item in volume.get("secret", {}).get("items", ()):
                held = values[volume["secret"]["secretName"], item["key"]]
                (folder / volume["name"] / item["path"]).write_text(held)
        target = TARGET_OF[self.container["image"].rsplit("/", 1)[-1].partition(":")[0]]
        image = line_of(target, stages())
        environment = {name: value for stage in image for name, value in stage.env.items() if name != "PATH"}
        for variable in self.container["env"]:
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            text = values[source["name"], source["key"]] if source else variable["value"]
            for url, here in urls.items():
                text = text.replace(url, here)
            paths = "|".join(map(re.escape, mounts))  # in one pass: a folder of the tests is below /tmp, too
            text = re.sub(rf"(^|:)({paths})(?=/|$)", lambda found: f"{found[1]}{mounts[found[2]]}", text)
            environment[variable["name"]] = text
        self.listens = {name: "127.0.0.1:0" for name in environment if name.endswith("_LISTEN")}
        clean = {key: value for key, value in os.environ.items() if key not in environment}
        self.log = folder / "log"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [BIN / stages()[target].start[0], *self.container["args"]],
                cwd=mounts.get("/data", folder),
                env=clean | environment | self.listens,
                stdout=output,
                stderr=output,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def url(self) -> str:
        """Of the port that its probes ask: the service's own, or the worker's where that is all there is."""
        assert until(lambda: self._listening() or self.process.poll() is not None, 60), self.text
        assert self.process.poll() is None, self.text
        return self._listening()[0]

    def _listening(self) -> list[str]:
        """The service's own port before the worker's, which is for metrics."""
        told = re.findall(r"^(.*?)(http://127\.0\.0\.1:\d+)", self.text, re.M)
        return [url for _, url in sorted(told, key=lambda one: "worker" in one[0].lower())]

    def probe(self, kind: str) -> int:
        asked = self.container[f"{kind}Probe"]["httpGet"]
        try:
            return requests.get(self.url() + asked["path"], timeout=10).status_code
        except requests.ConnectionError:
            return 0

    def become_ready(self) -> None:
        startup = self.container["startupProbe"]
        seconds = startup["periodSeconds"] * startup["failureThreshold"]
        assert until(lambda: self.probe("startup") == 200, seconds), self.text
        assert until(lambda: self.probe("readiness") == 200, seconds), self.text
        assert self.probe("liveness") == 200

    def stop(self) -> float:
        """Seconds to the end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(self.grace) == 0, self.text
        return time.monotonic() - began


def _by_need(manifest: Manifest) -> bool:
    """Those that are told where Metroculus is come after it."""
    return manifest["metadata"]["name"].endswith(("-rest-api", "-diproxy"))


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Any]:
    started: list[Pod] = []

    def start(
        values: dict[str, Any], held: dict[tuple[str, str], str], urls: dict[str, str], chart: Path = CHART
    ) -> dict[str, Pod]:
        own = dict(urls)
        found: dict[str, Pod] = {}
        manifests = sorted(workloads(rendered(values, tmp_path, chart=chart)), key=_by_need)
        for manifest in manifests:
            pod = Pod(manifest, tmp_path, held, own)
            started.append(pod)
            found[pod.name] = pod
            if pod.name == "release-metroculus":
                own["http://release-metroculus:8969"] = pod.url()
        return found

    yield start
    for pod in started:
        if pod.process.poll() is None:
            pod.process.kill()
            pod.process.wait()


def ask(pod: Pod, path: str) -> requests.Response:
    return requests.get(f"{pod.url()}/metroculus/v2/{path}", headers={"Secret": SECRET}, timeout=20)


def test_the_default_install_serves_and_stops(pods: Any) -> None:
    found = pods(MINIMAL, {("metroculus", "cluster-secret"): SECRET}, {})
    assert sorted(found) == ["release-metroculus", "release-metroculus-diproxy", "release-metroculus-rest-api"]
    for pod in found.values():
        pod.become_ready()
    metroculus, rest_api = found["release-metroculus"], found["release-metroculus-rest-api"]
    assert ask(metroculus, "kubecost_sources").json() == {"sources": [], "after": None}
    assert ask(metroculus, f"k8s_monthly?cloud_account_id={ACCOUNT}").status_code == 200, "history is kept"
    assert requests.get(f"{rest_api.url()}/restapi/v2/clean_expenses", timeout=10).status_code == 401
    states = requests.get(f"{rest_api.url()}/readyz", timeout=10).json()
    assert states["ready"] and states["dependencies"]["directory"] != "down"
    for pod in found.values():
        assert pod.stop() < pod.grace - 10, "the pause before it is in its grace, too"


@pytest.fixture
def servers(
    tmp_path: Path, etcd: Any, clickhouse: ClickHouse, rabbitmq: Rabbit, redis_server: Redis, mongo: Ferret
) -> Iterator[dict[tuple[str, str], str]]:
    """What the secrets of a production install hold, and etcd's own URL under the name ``etcd``."""
    with clickhouse.database(f"d{uuid4().hex}") as url:
        yield {
            ("metroculus", "cluster-secret"): SECRET,
            ("metroculus", "encryption-key"): base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            ("clickhouse", "url"): url,
            ("mongodb", "url"): mongo.url(f"d{uuid4().hex}"),
            ("rabbitmq", "url"): rabbitmq.url,
            ("redis", "url"): redis_server.url,
            ("etcd", "url"): etcd.url,
        }


@pytest.mark.parametrize("roles", [False, True], ids=["one worker does all", "roles apart"])
def test_a_production_install_serves_and_stops(pods: Any, servers: dict[tuple[str, str], str], roles: bool) -> None:
    values = merged(PRODUCTION, {"worker": {"separateRoles": roles}})
    found = pods(values, servers, {"etcd://etcd:2379": servers["etcd", "url"]})
    workers = ["worker-aggregator", "worker-extractor", "worker-processor"] if roles else ["worker"]
    assert sorted(found) == sorted(
        ["release-metroculus", *(f"release-metroculus-{one}" for one in ("diproxy", "rest-api", *workers))]
    )
    for pod in found.values():
        pod.become_ready()
    states = requests.get(f"{found['release-metroculus'].url()}/readyz", timeout=10).json()["dependencies"]
    assert states["store"] == "ok" and states["registry"] == "ok"
    account = str(uuid4())
    put = requests.put(
        f"{found['release-metroculus'].url()}/metroculus/v2/kubecost_sources/{account}",
        json={"flavour": "push"},
        headers={"Secret": SECRET},
        timeout=20,
    )
    assert put.status_code in (200, 201), put.text
    assert [
        one["cloud_account_id"] for one in ask(found["release-metroculus"], "kubecost_sources").json()["sources"]
    ] == [account]
    for pod in found.values():
        assert pod.stop() < pod.grace - 10, pod.name


def test_a_cluster_joins_by_the_two_charts(pods: Any, tmp_path: Path) -> None:
    """The backend and the agent as their charts have them: what a cluster's Kubecost says arrives to the cent."""
    end = (int(time.time()) - HOUR) // DAY * DAY  # the last hour of a day is told some minutes after it
    world = replace(make_world(seed=1, days=2, end=end, prime=7), discount=0.0)
    stack = Stack(tmp_path)
    _, url = stack.simulate(world, Habits(serves=frozenset({"kubecost"})), time.time)
    secret = {("metroculus", "cluster-secret"): SECRET}
    backend = pods(MINIMAL, secret, {})
    for pod in backend.values():
        pod.become_ready()
    asked, gateway = backend["release-metroculus"].url(), backend["release-metroculus-diproxy"].url()

    def metroculus(method: str, path: str, **more: Any) -> Any:
        answer = requests.request(
            method, f"{asked}/metroculus/v2/{path}", headers={"Secret": SECRET}, timeout=60, **more
        )
        assert answer.ok, answer.text
        return answer.json()

    metroculus("PUT", f"kubecost_sources/{ACCOUNT}", json={"flavour": "push"})
    token = metroculus("POST", f"push_tokens/{ACCOUNT}")["push_token"]
    values = {
        "gateway": {"url": "https://push.example.com", "account": ACCOUNT, "token": {"existingSecret": "push"}},
        "agent": {"kubecostUrl": "http://kubecost:9090", "pollSeconds": 1},
    }
    here = {"https://push.example.com": gateway, "http://kubecost:9090": url}
    (agent,) = pods(values, {("push", "token"): token}, here, integration(tmp_path)).values()
    agent.become_ready()
    window = {"cloud_account_id": ACCOUNT, "start_date": end - DAY, "end_date": end}
    assert until(lambda: metroculus("GET", "kubecost_cluster_costs", params=window)["complete"], 60), agent.text
    exact: Any = truth(world, end - DAY, end, now=int(time.time()), adjusted=True)["total_cost"]
    assert metroculus("GET", "kubecost_cluster_costs", params=window)["total_cost"] == pytest.approx(exact, abs=1e-6)
    assert agent.stop() < agent.grace - 10
    for pod in backend.values():
        assert pod.stop() < pod.grace - 10, pod.name
    stack.close()
