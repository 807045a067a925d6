"""A cluster that joins the demo by push: a gateway, and an agent in a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from diproxy.diproxy_server.config import GatewayConfig
from diproxy.diproxy_server.server import Gateway, make_app
from metroculus.metroculus_worker.backfill import Progress, bounds
from standalone.history import Bar
from standalone.running import Running
from tools.processes import end_with_parent
from tools.tornado_service.access import Access
from tools.tornado_service.listening import Listener, listen
from tools.window import HOUR

PATIENCE_SECONDS = 120.0
"""For the agent to push something more, before the demo gives up."""
LOOK_SECONDS = 0.3


@dataclass
class PushedCluster:
    """The gateway and the agent of one cluster."""

    gateway: Gateway
    listener: Listener
    agent: subprocess.Popen[bytes]

    def stop_agent(self) -> None:
        self.agent.terminate()
        self.agent.wait(30)

    async def stop(self) -> None:
        await asyncio.to_thread(self.stop_agent)
        await self.listener.stop()
        self.gateway.close()


def begin_pushing(
    folder: Path, running: Running, secret: str, account: str, token: str, kubecost_url: str
) -> PushedCluster:
    """Open a gateway before Metroculus, and start an agent that pushes to it; call on the loop."""
    config = GatewayConfig(
        cluster_secret=secret,
        metroculus_url=running.metroculus_listener.url,
        access=Access(audit_log=str(folder / "audit.jsonl")),
    )
    gateway = make_app(config)
    listener = listen(gateway.application, gateway.service, "127.0.0.1", 0)
    token_file = folder / "push.token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    command = [
        sys.executable, "-m", "standalone.cli", "agent", "--kubecost", kubecost_url, "--to", listener.url,
        "--account", account, "--token-file", str(token_file), "--listen", "127.0.0.1:0", "--poll", "1",
    ]  # fmt: skip
    log = (folder / "agent.log").open("wb")
    with log:
        agent = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_parent)
    return PushedCluster(gateway, listener, agent)


async def taken_up(running: Running, account: str, window: tuple[int, int], what: str) -> None:
    """Ask for a stretch of the past, and store what the agent pushes until all of it is there.

    Raises:
        click.ClickException: nothing more came.
    """
    worker: Any = running.worker
    store: Any = running.metroculus.dependencies.store
    first, last = bounds(*window, int(time.time()))
    await store.run(store.jobs.ask, account, first, last, 1)
    total, seen, waited = (last - first) // HOUR, -1, 0.0
    bar = Bar(what)
    try:
        while seen < total:
            await worker.worker.look_into_inbox()
            await worker.worker.extract_all()
            done = len((await store.run(store.ledger.committed, account, first, last)).hours)
            bar(Progress(total=total, done=done))
            waited = waited + LOOK_SECONDS if done == seen else 0.0
            if waited > PATIENCE_SECONDS:
                raise click.ClickException(f"the agent pushed {done} of {total} hours, and nothing more: see agent.log")
            seen = done
            await asyncio.sleep(LOOK_SECONDS if done < total else 0.0)
    finally:
        bar.close()
