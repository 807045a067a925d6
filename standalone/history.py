"""``metroculus worker``, ``backfill`` and ``repair``; and who owns an embedded store, for whoever may not open it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import msgspec
from msgspec import Struct
from tqdm import tqdm

from metroculus.config import MetroculusConfig
from metroculus.dependencies import make_dependencies
from metroculus.metroculus_worker.backfill import Progress, bounds
from metroculus.metroculus_worker.extract import RepairOrder
from metroculus.metroculus_worker.ownership import Owners
from metroculus.metroculus_worker.server import make_worker
from metroculus.metroculus_worker.task_runner import NotOurs
from metroculus.storage.engine import StoreOwned
from metroculus.storage.store import EMBEDDED, is_embedded
from optscale_client.metroculus_client import Client, MetroculusError
from tools.cli import operator
from tools.tornado_service.listening import listen, stop_signal
from tools.window import parse_rfc3339, parse_stamp

POLL_SECONDS = 0.5
WIDEST = 100


class Owner(Struct, frozen=True):
    """Who has an embedded store open, and how to ask it; kept beside the store, readable by its user alone."""

    pid: int
    metroculus_url: str
    secret: str


def owner_file(clickhouse_url: str) -> Path:
    return Path(clickhouse_url[len(EMBEDDED) :]) / "owner.json"


def tell_owner(clickhouse_url: str | None, metroculus_url: str, secret: str | None) -> None:
    """Say that this process has the store; nothing where it is a server or there is none."""
    if clickhouse_url is None or not is_embedded(clickhouse_url) or secret is None:
        return
    file = owner_file(clickhouse_url)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(msgspec.json.encode(Owner(os.getpid(), metroculus_url, secret)))


def leave_store(clickhouse_url: str | None) -> None:
    """Remove the address and the secret of this process from beside the store; call when it ends."""
    if clickhouse_url is not None and is_embedded(clickhouse_url):
        owner = known_owner(clickhouse_url)
        if owner is not None and owner.pid == os.getpid():
            owner_file(clickhouse_url).unlink(missing_ok=True)


def known_owner(clickhouse_url: str) -> Owner | None:
    """Who said last that it has the store."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(owner_file(clickhouse_url).read_bytes(), type=Owner)
    return None


def parse_moment(text: str) -> int:
    """Unix seconds or RFC 3339.

    Raises:
        click.BadParameter
    """
    stamp = parse_rfc3339(text)
    if stamp is None:
        stamp = parse_stamp(text)
    if stamp is None:
        raise click.BadParameter(f"{text!r} is neither Unix seconds nor RFC 3339 in UTC (2026-11-01T00:00:00Z)")
    return stamp


class Bar:
    """A progress bar where there is a terminal, else a line now and then."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._told = -1

    def __call__(self, progress: Progress) -> None:
        settled = progress.done + progress.missing
        if self._terminal:
            if self._bar is None:
                size = shutil.get_terminal_size()  # where a terminal tells none, tqdm shows nothing
                width = min(size.columns, WIDEST)
                self._bar = tqdm(total=progress.total, unit="h", desc=self._what, ncols=width, nrows=size.lines)
            self._bar.update(settled - self._bar.n)
            return
        tenth = settled * 10 // progress.total if progress.total else 10
        if tenth != self._told:
            self._told = tenth
            click.echo(f"{self._what}: {settled} of {progress.total} hours", err=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def conclude(progress: Progress) -> int:
    """Say how it ended; the exit status is 0 only where every hour is stored."""
    if progress.complete:
        click.echo(f"{progress.done} of {progress.total} hours are stored")
        return 0
    why = f": {progress.last_reason}" if progress.last_reason else ""
    click.echo(f"{progress.done} of {progress.total} hours are stored, {progress.missing} could not be had{why}")
    click.echo("run the same command again to go on where it stopped")
    return 1


def fill(
    config: MetroculusConfig,
    owners: Owners | None,
    account: str,
    window: tuple[int, int],
    parallel: int,
    why: str | None,
) -> int:
    """Back-fill or, with a reason, repair: here, or by asking whoever owns the store.

    Returns:
        the exit status.

    Raises:
        click.ClickException
    """
    assert config.clickhouse_url is not None
    try:
        return asyncio.run(_fill_here(config, owners, account, window, parallel, why))
    except StoreOwned as refusal:
        owner = known_owner(config.clickhouse_url)
        if owner is None:
            raise click.ClickException(str(refusal)) from None
    except NotOurs:
        raise click.ClickException("another worker owns this cluster: let it finish, or ask it over HTTP") from None
    click.echo(f"the store is open in process {owner.pid}: asking it", err=True)
    return _ask_owner(owner, account, window, parallel, why)


async def _fill_here(
    config: MetroculusConfig,
    owners: Owners | None,
    account: str,
    window: tuple[int, int],
    parallel: int,
    why: str | None,
) -> int:
    dependencies = make_dependencies(config)
    service = make_worker(config, dependencies, owners)
    order = RepairOrder(str(uuid4()), operator(), why) if why else None
    bar = Bar("repairing" if why else "back-filling")
    try:
        first, last = bounds(*window, int(time.time()))
        if first >= last:
            raise click.ClickException("nothing to do: the start must be before the end, and hours must be over")
        if not (await dependencies.accounts.of(account)).any:
            raise click.ClickException("no cost source is configured for this account")
        return conclude(await service.worker.fill(account, (first, last), parallel, bar, order))
    finally:
        bar.close()
        service.worker.runner.close()
        dependencies.close()


def _ask_owner(owner: Owner, account: str, window: tuple[int, int], parallel: int, why: str | None) -> int:
    bar = Bar("repairing" if why else "back-filling")
    try:
        with Client(url=owner.metroculus_url, secret=owner.secret) as client:
            _, job = client.create_backfill(account, *window, parallel=parallel, repair=why)
            while job["state"] in ("queued", "running"):
                time.sleep(POLL_SECONDS)
                _, job = client.get_backfill(job["id"])
                bar(_progress(job))
    except MetroculusError as failure:
        raise click.ClickException(f"the service that owns the store answered: {failure.reason}") from None
    finally:
        bar.close()
    return conclude(_progress(job))


def _progress(job: dict[str, object]) -> Progress:
    return Progress(
        total=int(str(job["hours_total"])),
        done=int(str(job["hours_done"])),
        missing=int(str(job["hours_missing"])),
        last_reason=str(job["reason"]),
    )


async def work(config: MetroculusConfig, owners: Owners | None) -> None:
    """A worker by itself, until it is stopped."""
    stopped = stop_signal()
    dependencies = make_dependencies(config)
    service = make_worker(config, dependencies, owners)
    settings = config.worker
    try:
        listener = listen(service.application, service.service, *settings.listen)
    except OSError as problem:
        dependencies.close()
        raise click.ClickException(str(problem)) from None
    service.start()
    click.echo(f"worker at {listener.url}/metrics")
    await stopped.wait()
    await service.stop()
    await listener.stop()
    dependencies.close()
