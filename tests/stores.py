"""Stores for tests: the embedded engine, the oldest ClickHouse server, and the newest dialect over the real driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Amounts, Costs, Egress, Usage
from metroculus.storage.engine import StoreError
from metroculus.storage.server import ServerEngine
from metroculus.storage.store import EMBEDDED, open_store

_EMPTY: list[tempfile.TemporaryDirectory[str]] = []


OPEN_STORE = "import sys; from metroculus.storage.store import open_store; open_store(sys.argv[1], lambda: 0).close()"
"""A program that opens the store that it is given, and ends."""


def write_empty(folder: Path) -> None:
    """An embedded store that is migrated and holds nothing, where there is none yet: copied, for making one takes time."""
    if folder.exists():
        return
    if not _EMPTY:
        _EMPTY.append(tempfile.TemporaryDirectory())
        open_store(f"{EMBEDDED}{_EMPTY[0].name}/store").close()
    shutil.copytree(Path(_EMPTY[0].name) / "store", folder, symlinks=True)


SERVER_CONFIG = """<yandex>
 <logger><level>warning</level><log>{folder}/log</log><errorlog>{folder}/errors</errorlog></logger>
 <tcp_port>{port}</tcp_port><listen_host>127.0.0.1</listen_host>
 <path>{folder}/data/</path><tmp_path>{folder}/tmp/</tmp_path><users_config>{folder}/users.xml</users_config>
 <default_profile>default</default_profile><default_database>default</default_database>
 <mark_cache_size>67108864</mark_cache_size><timezone>UTC</timezone>{more}
</yandex>"""
USERS = """<yandex><profiles><default></default></profiles>
<users><default><password>{password}</password><networks><ip>127.0.0.1</ip></networks>
<profile>default</profile><quota>default</quota></default></users><quotas><default></default></quotas></yandex>"""
PASSWORD = "canary-of-the-store"


class ClickHouse:
    """A ClickHouse server of our own, in one folder, that can be stopped, killed and started again."""

    def __init__(self, folder: Path, port: int, more: str = "") -> None:
        self.folder = folder
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.xml").write_text(SERVER_CONFIG.format(folder=folder, port=port, more=more))
        (folder / "users.xml").write_text(USERS.format(password=PASSWORD))

    def url(self, database: str = "default") -> str:
        return f"clickhouse://default:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["clickhouse-server", f"--config-file={self.folder / 'config.xml'}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},  # no clock of tests.clocks
        )
        end = time.monotonic() + 20
        while True:
            assert self.process.poll() is None, f"clickhouse-server ended with {self.process.returncode}"
            engine = ServerEngine(self.url())
            try:
                assert engine.dialect.version
                return
            except StoreError:
                assert time.monotonic() < end, "clickhouse-server did not become ready"
                time.sleep(0.05)
            finally:
                engine.close()

    @contextmanager
    def database(self, name: str) -> Iterator[str]:
        """A database of its own, dropped at the end; its URL."""
        engine = ServerEngine(self.url())
        engine.command(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            engine.command(f"DROP DATABASE {name}")
            engine.close()

    def stop(self, kill: bool = False) -> None:
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(20)
            self.process = None


def allocation(pod: str, cpu: float, namespace: str = "shop", hour: int = 0, **more: object) -> Allocation:
    """A pod that ran for one hour."""
    values: dict[str, object] = {
        "name": f"{namespace}/{pod}",
        "namespace": namespace,
        "pod": pod,
        "container": "main",
        "controller": pod.rsplit("-", 1)[0],
        "controller_kind": "deployment",
        "node": "node-1",
        "cluster": "cluster-one",
        "services": ("web",),
        "labels": {"team": "red"},
        "start": hour,
        "end": hour + 3600,
        "costs": Costs(cpu=cpu, ram=cpu / 2, network=0.25),
        "egress": Egress(internet=0.25),
        "usage": Usage(60.0, 30.0, 6e10, 3e10),
        "amounts": Amounts(1.0, 2.0, 0.0, 0.0),
    }
    return Allocation(**(values | more))  # type: ignore[arg-type]


def idle(cpu: float, hour: int) -> Allocation:
    return Allocation(name="__idle__", start=hour, end=hour + 3600, costs=Costs(cpu=cpu))
