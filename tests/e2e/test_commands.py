"""The product as its users start it: the demo, one machine, the docs' commands, a graceful end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import tornado.web
from click.testing import CliRunner

from diproxy.diproxy_server.cli import main as diproxy
from rest_api.rest_api_server.cli import main as rest_api
from simulator import openmetrics
from simulator.__main__ import main as simulator
from simulator.costs import truth
from simulator.world import DAY, make_world
from standalone.cli import main as metroculus
from tests.conftest import free_port, need
from tests.integration.test_etcd import BIN, command, rest_commands
from tests.support import ACCOUNT, SECRET, Stack, until
from tools.window import iso, parse_rfc3339

ROOT = Path(__file__).parent.parent.parent


def test_the_demo_agrees_with_the_truth_in_every_view(tmp_path):
    need("prometheus", "promtool", package="prometheus")
    done = subprocess.run(
        [BIN / "metroculus", "demo", "--check"], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout and re.search(r"(\d+) of \1 agree", done.stdout)
    connection = json.loads((tmp_path / ".demo" / "connection.json").read_text())
    assert set(connection) == {
        "metroculus_url", "rest_api_url", "secret", "token", "organization_id", "cluster_ids", "simulator_url", "gateway_url",
        "worker_url",
    }  # fmt: skip


def test_the_demo_needs_no_server_installed(tmp_path):
    environment = os.environ | {"PATH": str(BIN)}
    done = subprocess.run(
        [BIN / "metroculus", "demo", "--check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without a Prometheus, 409" in done.stdout


def read_until(process, text, seconds=150):
    """Lines of a process until one holds the text."""
    lines: list[str] = []
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return lines
        raise AssertionError("".join(lines) + process.stderr.read())
    finally:
        timer.cancel()


def test_the_demo_shows_costs_and_two_commands_that_work_and_ends_on_sigterm(tmp_path):
    process = subprocess.Popen(
        [BIN / "metroculus", "demo"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PATH": str(BIN)},
    )  # fmt: skip
    shown = "".join(read_until(process, "Ctrl-C stops"))
    assert "(idle)" in shown and "kube-system" in shown
    page = re.search(r"^The page: (\S+)$", shown, re.M)[1]
    with requests.Session() as browser:
        browser.headers["Accept"] = "text/html"
        answer = browser.get(page, timeout=60)
        assert answer.status_code == 200 and "cluster-one" in answer.text and "code=" not in answer.url
    assert requests.get(page, timeout=60, headers={"Accept": "text/html"}).status_code == 401, "the link is good once"
    pasted = re.findall(r"^  (curl .*)$", shown, re.M)
    assert len(pasted) == 3
    exported = dict(word.split("=", 1) for word in shlex.split(re.search(r"^  export (.*)$", shown, re.M)[1]))
    assert Path(exported["METROCULUS_TOKEN_FILE"]).stat().st_mode & 0o777 == 0o600
    asked = re.findall(r"^  (metroculus .*)$", shown, re.M)
    assert len(asked) == 3
    for line in asked:
        done = subprocess.run(
            [BIN / "metroculus", *shlex.split(line)[1:]],
            env=os.environ | exported,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode in (0, 3) and "cluster-one" in done.stdout + done.stderr, done.stdout + done.stderr
    for line in pasted:
        words = shlex.split(line)
        answer = requests.get(words[-1], headers=dict([words[words.index("-H") + 1].split(": ", 1)]), timeout=30)
        assert answer.status_code == 200
        body = answer.json()
        assert (body["months"][-1] if "months" in body else body)["total_cost"] > 0
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def running_in(folder):
    """The processes beside this one whose command names a folder."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            words = (one / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if int(one.name) != os.getpid() and any(str(folder).encode() in word for word in words):
            found.append(one.name)
    return found


@pytest.mark.parametrize("flavour", ["opencost", "kubecost"])
def test_one_machine_shows_what_a_cluster_costs(tmp_path, flavour):
    simulator = subprocess.Popen(
        [sys.executable, "-m", "simulator", "serve", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        url = simulator.stdout.readline().strip()
        ports = ["--listen", f"127.0.0.1:{free_port()}", "--metroculus-listen", f"127.0.0.1:{free_port()}"]
        process = subprocess.Popen(
            [BIN / "metroculus", "up", f"--{flavour}", url, *ports], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        shown = "".join(read_until(process, "Ctrl-C stops"))
        assert "shop" in shown and "total" in shown
        assert ("no configured source provides cluster management" in shown) == (flavour == "opencost")
        if flavour == "opencost":
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
            assert process.returncode == 0 and "ClickHouse" not in said and "Traceback" not in said, said
        else:
            assert running_in(tmp_path), "the store's engine is a process of its own"
            process.kill()
            process.communicate(timeout=30)
            assert until(lambda: not running_in(tmp_path), 20), "whoever is killed leaves no child behind"
        again = subprocess.run(
            [BIN / "metroculus", "up", "--opencost", "http://127.0.0.1:1", "--kubecost", "x"],
            capture_output=True,
            text=True,
        )
        assert again.returncode == 2 and "not both" in again.stderr
    finally:
        simulator.terminate()
        simulator.wait(10)


@pytest.fixture(scope="module")
def recorded_until_now(prometheus_factory):
    """A Prometheus of a cluster's own, and the world that it recorded."""
    now = int(time.time())
    world = make_world(days=9, end=now - now % DAY + DAY)
    server = prometheus_factory()
    server.load(list(openmetrics.lines(world, None, 300, now)), "own")
    server.start()
    return server, world


@pytest.mark.parametrize("beside", [["--opencost"], []])
def test_a_prometheus_beside_an_opencost_or_alone_tells_management_too(tmp_path, recorded_until_now, beside):
    server, world = recorded_until_now
    stack = Stack(tmp_path)
    _, url = stack.simulate(world, clock=time.time)
    sources = [*beside, *([url] if beside else []), "--prometheus", server.url]
    process = subprocess.Popen(
        [BIN / "metroculus", "up", *sources, "--listen", "127.0.0.1:0", "--metroculus-listen", "127.0.0.1:0"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    shown = "".join(read_until(process, "Ctrl-C stops"))
    process.terminate()
    process.communicate(timeout=30)
    stack.close()
    start, end = re.search(r"Cost from (\S+) to (\S+),", shown).groups()
    true = truth(world, parse_rfc3339(start), parse_rfc3339(end))
    told = {name: float(usd.replace(",", "")) for name, usd in re.findall(r"^(\S.*?) {2,}([\d,.]+)", shown, re.M)}
    assert told["(cluster management)"] == pytest.approx(true["management_cost"], rel=5e-3)
    assert told["total"] == pytest.approx(true["total_cost"], rel=5e-3)
    assert told["shop"] == pytest.approx(true["namespaces"]["shop"], rel=5e-3)
    metrics_alone = not beside  # which cannot tell shared and external cost
    assert ("no configured source provides external, shared:" in shown) == metrics_alone
    assert shown.count("no configured source provides") == metrics_alone


def test_a_dead_cluster_is_said_and_not_zero(tmp_path):
    process = subprocess.Popen(
        [BIN / "metroculus", "up", "--opencost", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--metroculus-listen", "127.0.0.1:0"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    shown = "".join(read_until(process, "Ctrl-C stops"))
    assert "no costs yet" in shown and "0.00" not in shown
    process.terminate()
    process.communicate(timeout=30)


def test_both_services_by_their_own_commands_with_a_user_made_by_hand(tmp_path):
    environment = {"CLUSTER_SECRET": SECRET, "DATA_DIR": str(tmp_path / "data")}
    rest = rest_commands(tmp_path, environment)
    organization = rest("organization", "create", "acme")
    rest("user", "create", "ann", "--organization", organization, "--role", "viewer")
    token = rest("token", "create", "ann")
    assert organization in rest("organization", "list")
    with (
        command(tmp_path, "metroculus", "serve", "--metroculus-listen", f"127.0.0.1:{free_port()}", **environment) as (
            url,
            _,
        ),
        command(
            tmp_path,
            "rest-api",
            "serve",
            "--rest-api-listen",
            f"127.0.0.1:{free_port()}",
            "--metroculus-url",
            url,
            **environment,
        ) as (api, _),
    ):
        path = f"{api}/restapi/v2/organizations/{organization}/kubecost/clusters"
        found = requests.get(path, headers={"Authorization": f"Bearer {token}"}, timeout=20)
        assert found.status_code == 200 and found.json()["clusters"] == []
        rest("user", "disable", "ann")
        bearer = {"Authorization": f"Bearer {token}"}
        assert until(lambda: requests.get(path, headers=bearer, timeout=20).status_code == 401, 6)


def test_sigterm_lets_what_is_in_flight_finish(tmp_path, stack):
    """A request that an upstream answers slowly is answered whole though the end was asked for meanwhile."""
    asked = threading.Event()
    start = int(time.time()) // DAY * DAY - 3 * DAY

    class Slow(tornado.web.RequestHandler):
        async def get(self):
            asked.set()
            import asyncio

            await asyncio.sleep(1.0)
            window = {"start": iso(start), "end": iso(start + DAY)}
            row = {"name": "shop", "window": window, **window, "cpuCost": 1.5, "ramCost": 0}
            self.finish({"code": 200, "data": [{"shop": row, "__idle__": row | {"name": "__idle__"}}]})

    upstream = stack.serve(tornado.web.Application([(r".*", Slow)]))
    environment = {"CLUSTER_SECRET": SECRET, "KUBECOST_API_URL": upstream, "DATA_DIR": str(tmp_path / "d")}
    answers = []
    with command(tmp_path, "metroculus", "serve", "--metroculus-listen", f"127.0.0.1:{free_port()}", **environment) as (
        url,
        process,
    ):
        stamps = f"start_date={start}&end_date={start + DAY}"
        target = f"{url}/metroculus/v2/kubecost_cluster_costs?cloud_account_id={ACCOUNT}&{stamps}"
        thread = threading.Thread(
            target=lambda: answers.append(requests.get(target, headers={"Secret": SECRET}, timeout=20))
        )
        thread.start()
        assert asked.wait(10)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/healthz", timeout=5)
        thread.join(20)
        assert process.wait(20) == 0
    assert answers[0].status_code == 200 and answers[0].json()["summary"]["known_cost"] == 3.0


@pytest.mark.parametrize(
    "args",
    [
        ["metroculus", "--help"],
        ["metroculus", "up", "--help"],
        ["metroculus", "serve", "--help"],
        ["metroculus", "agent", "--help"],
        ["diproxy", "serve", "--help"],
        ["rest-api", "token", "create", "--help"],
    ],
)
def test_help_helps(args):
    done = subprocess.run([BIN / args[0], *args[1:]], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout and len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize(
    ("args", "named"),
    [(["serve"], "CLUSTER_SECRET"), (["serve", "--kubecost-timeout", "x"], "--kubecost-timeout"),
     (["serve", "--tiemout", "3"], "--tiemout"), (["up"], "--opencost"), (["up", "--opencost", "nonsense"], "URL")],
)  # fmt: skip
def test_a_wrong_start_says_what_to_do(tmp_path, args, named):
    clean = {k: v for k, v in os.environ.items() if k != "CLUSTER_SECRET"}
    done = subprocess.run(
        [BIN / "metroculus", *args], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0 and named in done.stderr and "Traceback" not in done.stderr


def test_the_readme_shows_what_the_recorded_opencost_comes_to():
    done = subprocess.run(
        [sys.executable, "-m", "tests.recorded"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in (ROOT / "README.md").read_text()


PROGRAMS = {"metroculus": metroculus, "rest-api": rest_api, "diproxy": diproxy, "simulator": simulator}
BLOCK = re.compile(r"```sh\n(.*?)```", re.S)


def documented():
    """Every command of a shell block in README and docs."""
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in BLOCK.findall(file.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    yield file.name, line.strip()


@pytest.mark.parametrize(("file", "line"), sorted(set(documented())))
def test_a_command_of_the_docs_is_one_that_there_is(file, line):
    """Commands with figures run in the tests above; here each is known to its own parser, options included."""
    if line.split()[0] in ("kubectl", "helm"):  # nothing of ours; what a chart renders is tested beside it
        return
    words = shlex.split(line.split(" | ")[0].split(" && ")[-1])
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program = Path(words[0]).name
    if program == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program in PROGRAMS or words[:3] == ["python", "-m", "simulator"]:
        rest = words[3:] if program == "python" else words[1:]
        commands = [word for word in rest if not word.startswith("-")]
        depth = 2 if rest and rest[0] in ("organization", "user", "token") else 1
        told = CliRunner().invoke(
            PROGRAMS["simulator" if program == "python" else program], [*commands[:depth], "--help"]
        )
        assert told.exit_code == 0, told.output
        for option in (word.split("=")[0] for word in rest if word.startswith("--")):
            assert option in told.output, f"{option} is no option of {line}"
    else:
        assert program in (
            "cp",
            "curl",
            "mkdir",
            "tar",
            "umask",
            "kubectl",
            "git",
            "pip",
            "cd",
            "export",
            "promtool",
        ), line
