"""A stored day, compared with the same day from a real OpenCost (``OPENCOST_BIN``) over a real Prometheus.

OpenCost needs a Kubernetes API. Here that API has no objects, so OpenCost takes all data from Prometheus.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import requests
from tornado.web import Application, RequestHandler

from benchmarks.figures import ROUNDS, Declared
from benchmarks.stacks import stack_in
from benchmarks.upstream_server import of_many_pods
from simulator.world import make_world
from tests.conftest import Prometheus, end, free_port, wait_until_ready
from tests.support import ACCOUNT, DAY, END, SECRET, Stack

COPIES = 72
"""Of the pods of the simulated cluster: a thousand."""
DAYS, ASKED = 2, 9
FOLDER = Path("build/bench-opencost")
PROGRAM = os.environ.get("OPENCOST_BIN")

FIGURES = (
    Declared(
        "stored_day_to_opencost", "ratio",
        "a day of 1,000 pods by namespace from the store, to the same from OpenCost; neither keeps answers",
        at_most=0.01,
    ),
    Declared("slowest_view_to_opencost", "ratio", "the slowest of the views of that day, to it", at_most=0.01),
    Declared("opencost_day_s", "s", "what OpenCost takes"),
)  # fmt: skip


def measure() -> dict[str, float]:
    """Nothing where ``OPENCOST_BIN`` is not set."""
    if PROGRAM is None:
        return {}
    with stack_in(FOLDER) as stack, _prometheus() as prometheus, _opencost(stack, prometheus) as url:
        return _measure(stack, url)


def _measure(stack: Stack, url: str) -> dict[str, float]:
    running: Any = stack.start(
        clickhouse_url=f"embedded:{FOLDER / 'store'}", kubecost_api_url=url, kubecost_flavour="opencost",
        kubecost_account_id=ACCOUNT, kubecost_timeout=120.0, cache_ttl=0.0,
    )  # fmt: skip
    progress = stack.fill(running, END - DAYS * DAY, END)
    assert progress.complete, progress
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    base = f"{running.metroculus_listener.url}/metroculus/v2"

    def seconds(path: str, more: dict[str, Any]) -> float:
        query = {"cloud_account_id": ACCOUNT, "start_date": END - DAY, "end_date": END} | more
        return _seconds(lambda: session.get(f"{base}/{path}", params=query, headers={"Secret": SECRET}, timeout=60))

    views = {
        "by namespace": ("kubecost_cluster_costs", {"detail_level": "namespace"}),
        "by pod": ("kubecost_cluster_costs", {"detail_level": "pod"}),
        "expenses": ("k8s_expenses", {}),
        "assets": ("kubecost_assets", {}),
    }
    ours = {name: median(seconds(*view) for _ in range(ASKED)) for name, view in views.items()}
    asked = {"window": f"{END - DAY},{END}", "aggregate": "namespace", "step": "1d", "resolution": "1m"}
    theirs = [_seconds(lambda: session.get(f"{url}/allocation", params=asked, timeout=300)) for _ in range(ROUNDS)]
    print("  " + ", ".join(f"{name} {1000 * taken:.0f} ms" for name, taken in ours.items()), flush=True)
    return {
        "stored_day_to_opencost": ours["by namespace"] / median(theirs),
        "slowest_view_to_opencost": max(ours.values()) / median(theirs),
        "opencost_day_s": median(theirs),
    }


def _seconds(ask: Callable[[], requests.Response]) -> float:
    began = time.perf_counter()
    answer = ask()
    taken = time.perf_counter() - began
    assert answer.status_code == 200, answer.text[:500]
    assert answer.json().get("complete", True) is True, answer.text[:500]
    return taken


@contextmanager
def _prometheus() -> Iterator[Prometheus]:
    folder = FOLDER / "prometheus"
    folder.mkdir(parents=True)
    prometheus = Prometheus(folder)
    prometheus.load_world(of_many_pods(make_world(seed=3, days=DAYS, end=END), COPIES), None)
    prometheus.start()
    try:
        yield prometheus
    finally:
        prometheus.stop()


class _Kubernetes(RequestHandler):
    """An API server of a cluster without objects: lists are empty, and nothing ever changes."""

    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        path = self.request.path
        if path == "/version":
            self.finish({"major": "1", "minor": "30", "gitVersion": "v1.30.0"})
        elif "configmaps/" in path:
            self.set_status(404)
            self.finish({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
        elif self.get_query_argument("watch", ""):
            self.finish()
        else:
            kind = path.rsplit("/", 1)[-1]
            group = path.removeprefix("/apis/").rsplit("/", 1)[0] if path.startswith("/apis/") else "v1"
            self.finish(
                {
                    "kind": KINDS.get(kind, "List"),
                    "apiVersion": group,
                    "metadata": {"resourceVersion": "1"},
                    "items": [],
                }
            )


KINDS = {
    "namespaces": "NamespaceList", "nodes": "NodeList", "pods": "PodList", "services": "ServiceList",
    "configmaps": "ConfigMapList", "persistentvolumes": "PersistentVolumeList",
    "persistentvolumeclaims": "PersistentVolumeClaimList", "replicationcontrollers": "ReplicationControllerList",
    "daemonsets": "DaemonSetList", "deployments": "DeploymentList", "statefulsets": "StatefulSetList",
    "replicasets": "ReplicaSetList", "storageclasses": "StorageClassList", "jobs": "JobList",
    "poddisruptionbudgets": "PodDisruptionBudgetList",
}  # fmt: skip


@contextmanager
def _opencost(stack: Stack, prometheus: Prometheus) -> Iterator[str]:
    assert PROGRAM is not None
    kubernetes = stack.serve(Application([("/.*", _Kubernetes)]))
    config = FOLDER / "kubeconfig"
    cluster = {"name": "bench", "cluster": {"server": kubernetes}}
    context = {"name": "bench", "context": {"cluster": "bench", "user": "bench"}}
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "bench", "clusters": [cluster],
                "contexts": [context], "users": [{"name": "bench", "user": {}}],
            }
        )
    )  # fmt: skip
    port = free_port()
    with (FOLDER / "opencost.log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM],
            env=os.environ
            | {
                "KUBECONFIG": str(config.absolute()),
                "CONFIG_PATH": str(FOLDER.absolute()),
                "PROMETHEUS_SERVER_ENDPOINT": prometheus.url,
                "CLUSTER_ID": "cluster-one",
                "KUBERNETES_PORT": "true",
                "API_PORT": str(port),
            },
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(f"{url}/healthz", process, 60)
        yield url
    finally:
        end(process)
        shutil.copy(FOLDER / "opencost.log", "build/opencost.log")
