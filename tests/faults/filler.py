"""A process that back-fills accounts and may be told to die at one of its steps.

usage: filler.py CLICKHOUSE_URL DATA_DIR START END NOW DIE_AT (ACCOUNT URL)...

``DIE_AT`` counts calls that write to the store: ``n`` dies before the n-th, ``n+`` after it, ``-`` not at all. Ends with 0
when every hour is stored. ``--no-lock`` as the last argument lets several of them work on the same accounts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from metroculus.config import MetroculusConfig
from metroculus.dependencies import make_dependencies
from metroculus.metroculus_worker.ownership import FileOwners, Owned
from metroculus.metroculus_worker.server import make_worker
from metroculus.sources.outbound.addresses import AllowedAddresses
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.ledger import FencedWriter


class Free(Owned):
    def __init__(self, fence: int) -> None:
        self.writer = FencedWriter(fence)

    def still(self) -> bool:
        return True

    def release(self) -> None:
        return None


class NoOwners:
    """Everyone owns everything: what is left is the fence."""

    def own(self, name: str, highest_fence: Any) -> Owned:
        return Free(highest_fence() + 1 + os.getpid() % 1000)

    def close(self) -> None:
        return None


def deadly(engine: Any, die_at: str) -> None:
    """Let the engine's writes kill this process at one of them."""
    if die_at == "-":
        return
    left = [int(die_at.rstrip("+"))]
    for name in ("insert", "insert_blocks"):
        real = getattr(engine, name)

        def counted(*args: Any, real: Any = real) -> None:
            left[0] -= 1
            if left[0] == 0 and not die_at.endswith("+"):
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(engine, name, counted)


async def main(arguments: list[str]) -> int:
    free = arguments[-1] == "--no-lock"
    url, folder, start, end, now, die_at, *rest = arguments[: -1 if free else None]
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    config = MetroculusConfig(
        cluster_secret=None, listen=("127.0.0.1", 0), thanos_query_url=None, tenant_label="tenant_id",
        kubecost_api_url=None, kubecost_account_id=None, kubecost_timeout=30.0,
        upstream_allow=AllowedAddresses(["127.0.0.0/8"]), data_dir=Path(folder), encryption_key=None, tls=None,
        clickhouse_url=url,
    )  # fmt: skip
    dependencies = make_dependencies(config, lambda: float(now))
    assert dependencies.store is not None
    for account, upstream in pairs:
        await dependencies.registry.put(account, "kubecost", upstream, Credentials())
    deadly(dependencies.store.engine, die_at)
    owners = NoOwners() if free else FileOwners(Path(folder) / "locks")
    service = make_worker(config, dependencies, owners, lambda: float(now))
    print("filling", flush=True)
    window = (int(start), int(end))
    done = await asyncio.gather(
        *(service.worker.fill(account, window, 2, lambda progress: None) for account, _ in pairs)
    )
    service.worker.runner.close()
    dependencies.close()
    return 0 if all(progress.complete for progress in done) else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(sys.argv[1:])))
