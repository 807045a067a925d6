"""docs/joining.md, followed word by word: a cluster is linked, its agent started, and its costs arrive."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.remote_write import packed
from simulator.server import Habits
from simulator.world import make_world
from tests.conftest import free_port
from tests.helm.chart import integration, rendered, workloads
from tests.push.test_gateway import METRICS, WRITE, one_series
from tests.pushing import Door
from tests.support import BIN, DAY, Stack, make_tenant, until

pytestmark = pytest.mark.push

DOCS = (Path(__file__).parent.parent.parent / "docs" / "joining.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)```", DOCS, re.S)
VALUES = re.findall(r"```yaml\n(.*?)```", DOCS, re.S)


def command(beginning: str) -> str:
    """The block of the docs that begins so."""
    (found,) = [one for one in COMMANDS if beginning in one]
    return str(found)


def test_a_cluster_joins_by_the_words_of_the_docs(stack: Stack, tmp_path: Path) -> None:
    door = Door(stack, clock=time.time)  # type: ignore[arg-type]
    door.stack.thread.call(door.running.begin)
    tenant = make_tenant(door.running, "acme")
    end = int(time.time()) - int(time.time()) % DAY
    _, url = stack.simulate(
        make_world(seed=1, days=9, end=end + DAY), Habits(serves=frozenset({"opencost"})), time.time
    )
    environment = os.environ | {
        "TOKEN": tenant.tokens["admin"],
        "ORGANIZATION": tenant.organization_id,
        "REST_API": door.running.rest_api_listener.url,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }

    def run(text: str) -> Any:
        done = subprocess.run(["sh", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    linked = run(command('"flavour": "push"'))
    environment["CLUSTER"] = linked["cluster_id"]
    (tmp_path / "push.token").write_text(linked["push_token"])
    renewed = run(command("/push_token"))
    (tmp_path / "push.token").write_text(renewed["push_token"])
    start = command("metroculus agent")
    for theirs, ours in (("https://push.example.com", door.url), ("http://127.0.0.1:9003", url)):
        assert theirs in start
        start = start.replace(theirs, ours)
    agent = subprocess.Popen(["sh", "-c", f"exec {start.strip()} --listen 127.0.0.1:{free_port()} --poll 1"],
                             cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        look = command("/kubecost/clusters?window=7d")

        def arrived() -> bool:
            (cluster,) = run(look)["clusters"]
            return cluster["cluster_id"] == linked["cluster_id"] and (cluster["total_cost"] or 0.0) > 0.0

        assert until(arrived, 60), run(look)
    finally:
        agent.terminate()
        assert agent.wait(30) == 0
    assert (
        door.push("POST", WRITE, renewed["push_token"], data=packed(one_series()), headers=METRICS).status_code == 503
    )
    door.close()


def test_the_values_of_the_docs_render(tmp_path: Path) -> None:
    chart = integration(tmp_path)
    ours = [yaml.safe_load(one) for one in VALUES]
    of_the_chart = [one for one in ours if "gateway" in one]
    assert len(of_the_chart) == 3 and len(ours) == 4
    for values in of_the_chart:
        assert len(workloads(rendered(values, tmp_path, chart=chart))) == 1
