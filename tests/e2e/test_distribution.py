"""The wheels that ``make dist`` builds, each installed into an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.support import ACCOUNT, SECRET, Stack, until

ROOT = Path(__file__).parent.parent.parent
CLIENT = """
import importlib.util, sys
from optscale_client.metroculus_client import Client, NoSourceConfigured, Unauthorized
assert not importlib.util.find_spec("msgspec") and not importlib.util.find_spec("tornado"), "requests is enough"
client = Client(url=sys.argv[1], secret=sys.argv[2])
assert client.get_cache_stats()[0] == 200
try:
    client.get_kubecost_cluster_costs(sys.argv[3], window="1d")
except NoSourceConfigured as failure:
    print(failure.error_code)
client.secret = "wrong"
try:
    client.get_cache_stats()
except Unauthorized:
    print("refused")
"""


@pytest.fixture(scope="module")
def wheels() -> Path:
    subprocess.run(["make", "dist"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    return ROOT / "build" / "dist"


def environment(folder: Path, *wanted: str) -> Path:
    """An environment with nothing but what is wanted; its ``bin``."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    install = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *constraints, *wanted]
    subprocess.run(install, check=True, timeout=600)
    return folder / "bin"


def test_the_sdk_alone_needs_requests(wheels: Path, tmp_path: Path, stack: Stack) -> None:
    (wheel,) = wheels.glob("metroculus_client-*.whl")
    programs = environment(tmp_path / "client", str(wheel))
    running = stack.start()
    asked = [programs / "python", "-c", CLIENT, running.metroculus_listener.url, SECRET, ACCOUNT]
    told = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == ["OM0015", "refused"]


def test_the_service_runs_from_its_wheel_without_extras_and_names_those_that_lack(wheels: Path, tmp_path: Path) -> None:
    (wheel,) = wheels.glob("metroculus-*.whl")
    programs = environment(tmp_path / "service", str(wheel))
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CONFIG_URL")}
    data = {
        "CLUSTER_SECRET": SECRET,
        "DATA_DIR": str(tmp_path / "data"),
        "METROCULUS_LISTEN": "127.0.0.1:0",
        "CLICKHOUSE_URL": "clickhouse://127.0.0.1:1/default",
    }
    version = subprocess.run(
        [programs / "metroculus", "--version"], cwd=tmp_path, capture_output=True, text=True, env=clean, timeout=60
    )
    assert version.returncode == 0 and wheel.name.split("-")[1] in version.stdout
    log = tmp_path / "log"
    with log.open("w") as output:
        serving = subprocess.Popen(
            [programs / "metroculus", "serve"], cwd=tmp_path, env=clean | data, stdout=output, stderr=output
        )
    try:
        assert until(lambda: "http://" in log.read_text() or serving.poll() is not None), log.read_text()
        url = next(word for word in log.read_text().split() if word.startswith("http://"))
        assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
    finally:
        serving.terminate()
        assert serving.wait(30) == 0
    for setting, value, extra in (
        ("CLICKHOUSE_URL", f"embedded:{tmp_path / 'store'}", "embedded"),
        ("CONFIG_URL", "etcd://127.0.0.1:1", "etcd"),
        ("REDIS_URL", "redis://127.0.0.1:1", "redis"),
    ):
        told = subprocess.run(
            [programs / "metroculus", "serve"],
            cwd=tmp_path,
            env=clean | data | {setting: value},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert told.returncode == 1 and f"pip install 'metroculus[{extra}]'" in told.stderr, (setting, told.stderr)
