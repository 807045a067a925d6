"""docs/backup.md, word by word: a backup that is unpacked into an empty folder tells the same money to the same people."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from simulator.costs import truth
from simulator.server import Habits
from tests.integration.test_services import link
from tests.support import DAY, END, NOW, SECRET, Stack, ask, command, exact_world, make_tenant

DOC = Path(__file__).parent.parent.parent / "docs" / "backup.md"
WORLD = exact_world(7, days=2)


def commands() -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", DOC.read_text(), re.S) for line in block.splitlines()]


def test_what_is_restored_is_what_was_backed_up(stack: Stack, tmp_path: Path) -> None:
    """The last of the commands starts the service; it is started here with the same folder on free ports."""
    data = tmp_path / ".metroculus"
    running: Any = stack.start(clickhouse_url=f"embedded:{data / 'store'}", data_dir=data, rounds=False)
    tenant = make_tenant(running, "acme")
    simulator, _ = stack.simulate(WORLD, Habits())
    cluster = link(running, tenant, "main", "kubecost", stack.serve(simulator.application()))
    stack.thread.run(running.worker.worker.fill(cluster, (END - 2 * DAY, END), 2, lambda progress: None))
    stack.thread.run(running.stop())
    stack._running.remove(running)

    *shell, serve = commands()
    assert serve.split() == ["metroculus", "serve", "--worker", "--data-dir", "restored"]
    (data / "store" / "owner.json").write_text(SECRET)
    subprocess.run(["sh", "-euc", "\n".join(shell)], cwd=tmp_path, check=True, timeout=60)
    for file in ("metroculus-backup.tar.gz", "metroculus-encryption.key"):
        assert (tmp_path / file).stat().st_mode & 0o077 == 0, "for nobody else"
    with tarfile.open(tmp_path / "metroculus-backup.tar.gz") as backup:
        names = backup.getnames()
    assert {"./sources.sqlite", "./directory.sqlite", "./store"} <= set(names)
    assert not [name for name in names if name.endswith((".key", "owner.json"))], "no secret is in it"
    for left in data.iterdir():
        left.rename(tmp_path / left.name)  # nothing of it is where it was

    restored = tmp_path / "restored"
    again: Any = stack.start(clickhouse_url=f"embedded:{restored / 'store'}", data_dir=restored, rounds=False)
    path = f"/restapi/v2/organizations/{tenant.organization_id}/clean_expenses?window={END - DAY},{END}"
    body = ask(again, tenant.tokens["viewer"], path).json()
    true = truth(WORLD, END - DAY, END, now=NOW, adjusted=True)
    assert body["total_cost"] == true["total_cost"] and body["complete"]
    assert again.rest_api.metroculus.client.get_kubecost_source(cluster)[1]["url"].startswith("http://127.0.0.1")
    stack.thread.run(again.stop())
    stack._running.remove(again)

    environment = {"CLUSTER_SECRET": SECRET, "METROCULUS_LISTEN": "127.0.0.1:0", "WORKER_LISTEN": "127.0.0.1:0"}
    with command(tmp_path, *serve.split(), **environment) as (url, process):
        assert url.startswith("http://") and process.poll() is None
