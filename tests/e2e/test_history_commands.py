"""History on the command line, as an operator keeps it: fill, go on, ask the owner, repair, watch."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.conftest import free_port
from tests.integration.test_etcd import BIN
from tests.support import ACCOUNT, DAY, HOUR, SECRET
from tools.window import SETTLING_SECONDS

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def cluster():
    """A simulated cluster of three days that end at the last midnight that has settled; its URL and its end."""
    settled = int(time.time()) - SETTLING_SECONDS - 60
    end = settled - settled % DAY
    process = subprocess.Popen(
        [sys.executable, "-m", "simulator", "serve", "--port", "0", "--days", "3", "--end", str(end)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process.stdout.readline().strip(), end
    process.terminate()
    process.wait(10)


class Operator:
    def __init__(self, folder, url, **more):
        clean = {k: v for k, v in os.environ.items() if k not in ("CLUSTER_SECRET", "CONFIG_URL", "CLICKHOUSE_URL")}
        self.folder = folder
        self.environment = clean | {
            "KUBECOST_API_URL": url, "KUBECOST_ACCOUNT_ID": ACCOUNT, "PYTHONUNBUFFERED": "1",
        } | more  # fmt: skip

    def run(self, *words):
        return subprocess.run(
            [BIN / "metroculus", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
        )

    def fill(self, start, end, *words, command="backfill"):
        return self.run(command, "--cloud-account", ACCOUNT, "--from", str(start), "--to", str(end), *words)

    def start(self, *words):
        return subprocess.Popen(
            [BIN / "metroculus", *words], cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip


def stop(process):
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=40)
    assert process.returncode == 0


@pytest.mark.parametrize("engine", ["embedded", "server"])
def test_filling_ends_with_0_only_where_every_hour_is_stored(tmp_path, cluster, engine, request):
    url, end = cluster
    if engine == "server":
        clickhouse = request.getfixturevalue("clickhouse")
        with clickhouse.database(f"cli{os.getpid()}") as address:
            fill_and_go_on(Operator(tmp_path, url, CLICKHOUSE_URL=address), end)
    else:
        fill_and_go_on(Operator(tmp_path, url), end)


def fill_and_go_on(operator, end):
    done = operator.fill(end - DAY, end, "--parallel", "1")
    assert (done.returncode, done.stdout) == (0, "24 of 24 hours are stored\n"), done.stderr
    assert "back-filling: 0 of 24 hours" in done.stderr
    wider = operator.fill(end - 2 * DAY, end)
    assert (wider.returncode, wider.stdout) == (0, "48 of 48 hours are stored\n")
    assert "back-filling: 24 of 48 hours" in wider.stderr, "what is stored is not read again"
    beyond = operator.fill(end - 5 * DAY, end)
    assert beyond.returncode == 1
    assert "72 of 120 hours are stored, 48 could not be had: the source knows nothing of this hour" in beyond.stdout


def test_a_terminal_gets_a_bar_also_where_it_does_not_tell_its_size(tmp_path, cluster):
    url, end = cluster
    operator = Operator(tmp_path, url)
    ours, theirs = os.openpty()
    words = ["--cloud-account", ACCOUNT, "--from", str(end - DAY), "--to", str(end)]
    process = subprocess.Popen(
        [BIN / "metroculus", "backfill", *words], cwd=tmp_path, env=operator.environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how the end of a terminal is told
        while part := os.read(ours, 4096):
            shown += part
    assert process.wait(60) == 0
    assert b"back-filling: 100%" in shown and b"24/24" in shown
    os.close(ours)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--cloud-account", "me", "--from", "1", "--to", "2"], "--cloud-account"),
        (["--cloud-account", ACCOUNT, "--from", "yesterday", "--to", "2"], "neither Unix seconds nor RFC 3339"),
        (["--cloud-account", ACCOUNT, "--from", "2026-02-30T00:00:00Z", "--to", "2"], "neither Unix seconds nor"),
        (
            ["--cloud-account", ACCOUNT, "--from", "1795219200", "--to", "1795132800"],
            "the start must be before the end",
        ),
        (["--cloud-account", ACCOUNT, "--from", "1795132800", "--to", "1795219200", "--parallel", "99"], "--parallel"),
        (["--cloud-account", ACCOUNT, "--from", "1", "--to", "2", "--clickhouse-url", "mysql://x"], "embedded:PATH"),
        (["--from", "1", "--to", "2"], "--cloud-account"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_that_names_it(tmp_path, words, told):
    done = Operator(tmp_path, "http://127.0.0.1:9").run("backfill", *words)
    assert done.returncode in (1, 2)
    assert told in done.stderr and "Traceback" not in done.stderr


def test_a_url_of_the_store_never_shows_its_password(tmp_path):
    done = Operator(tmp_path, "http://127.0.0.1:9", CLICKHOUSE_URL="clickhuose://u:canary-77@h/db").run("worker")
    assert done.returncode == 1 and "CLICKHOUSE_URL" in done.stderr
    down = Operator(tmp_path, "http://127.0.0.1:9", CLICKHOUSE_URL="clickhouse://u:canary-77@127.0.0.1:9/db").fill(
        "2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"
    )
    assert down.returncode == 1 and "could not be reached" in down.stderr
    assert "canary-77" not in done.stderr + done.stdout + down.stderr + down.stdout


def test_whoever_owns_the_store_is_asked_to_fill_and_to_repair(tmp_path, cluster):
    url, end = cluster
    operator = Operator(tmp_path, url, CLUSTER_SECRET=SECRET)
    address = f"127.0.0.1:{free_port()}"
    watched = f"127.0.0.1:{free_port()}"
    owner = operator.start("serve", "--worker", "--metroculus-listen", address, "--worker-listen", watched)
    try:
        while "Metroculus at" not in owner.stdout.readline():
            assert owner.poll() is None
        filled = operator.fill(end - 2 * DAY, end)
        assert filled.returncode == 0, filled.stderr
        assert f"the store is open in process {owner.pid}: asking it" in filled.stderr
        again = operator.fill(end - DAY, end - DAY + 5 * HOUR, "--reason", "the bill was corrected", command="repair")
        assert again.returncode == 0 and "5 of 5 hours are stored" in again.stdout
        second = operator.run("serve", "--metroculus-listen", f"127.0.0.1:{free_port()}")
        assert second.returncode == 1
        assert len(second.stderr.strip().splitlines()) == 1 and "in use by another process" in second.stderr
        metrics = requests.get(f"http://{watched}/metrics", timeout=10).text
        assert re.search(rf'metroculus_extraction_lag_seconds{{cloud_account_id="{ACCOUNT}"}} [0-9.e+]+', metrics)
        answer = requests.get(
            f"http://{address}/metroculus/v2/k8s_expenses",
            params={"cloud_account_id": ACCOUNT, "start_date": end - 2 * DAY, "end_date": end},
            headers={"Secret": SECRET},
            timeout=10,
        ).json()
        assert answer["complete"] is True and answer["total_cost"] > 0
        mode = (tmp_path / ".metroculus" / "store" / "owner.json").stat().st_mode
        assert mode & 0o077 == 0
    finally:
        stop(owner)


def test_a_worker_by_itself_catches_up_and_tells(tmp_path, cluster):
    url, end = cluster
    operator = Operator(tmp_path, url)
    watched = f"127.0.0.1:{free_port()}"
    worker = operator.start("worker", "--worker-listen", watched)
    try:
        assert "worker at" in worker.stdout.readline()
        wanted = f'metroculus_extraction_hours_total{{cloud_account_id="{ACCOUNT}",result="written"}} 72.0'
        until = time.monotonic() + 60
        while wanted not in requests.get(f"http://{watched}/metrics", timeout=10).text:
            assert time.monotonic() < until, requests.get(f"http://{watched}/metrics", timeout=10).text
            time.sleep(0.2)
        while ACCOUNT not in (ready := requests.get(f"http://{watched}/readyz", timeout=10)).json()["dependencies"]:
            assert ready.status_code == 200 and time.monotonic() < until
            time.sleep(0.2)  # the round is told of when it is over, the hours as they are written
    finally:
        stop(worker)
    done = operator.fill(end - 3 * DAY, end)
    assert "back-filling: 72 of 72 hours" in done.stderr
