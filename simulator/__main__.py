"""``python -m simulator serve|openmetrics|truth``: a cluster of known cost, to try things on."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from uuid import UUID

import click

from simulator import openmetrics
from simulator.costs import truth as exact_truth
from simulator.server import Habits, Simulator
from simulator.world import DAY, World, make_world


def _world(seed: int, days: int, end: int | None, prime: int, cluster_id: str, overcommitted: bool) -> World:
    if end is None:
        now = int(time.time())
        end = now - now % DAY
    return make_world(seed=seed, days=days, end=end, prime=prime, cluster_id=cluster_id, overcommitted=overcommitted)


def world_options(command: Any) -> Any:
    for option in (
        click.option("--seed", default=1, show_default=True, help="Prices, sizes and placement follow from it."),
        click.option("--days", default=14, show_default=True, type=click.IntRange(1, 400), help="Days of history."),
        click.option("--end", type=int, help="Unix seconds of its end. Default: the last UTC midnight."),
        click.option("--prime", default=0, help="Make every hour's cost a multiple of this prime over 32 USD."),
        click.option("--cluster-id", default="cluster-one", show_default=True),
        click.option("--overcommitted", is_flag=True, help="Request more than the nodes have: idle is negative."),
    ):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """A deterministic Kubernetes cluster whose exact cost is known."""


@main.command()
@click.option("--port", required=True, type=click.IntRange(0, 65535), help="0 takes a free one and prints it.")
@click.option("--kubecost-version", default=2, show_default=True, type=click.IntRange(1, 3))
@click.option("--utc-offset", default=0, show_default=True, help="Hours that Kubecost's days are off UTC.")
@click.option("--balancer-drift", is_flag=True, help="Bill balancers for one resolution too much, as OpenCost does.")
@world_options
def serve(port: int, kubecost_version: int, utc_offset: int, balancer_drift: bool, **options: Any) -> None:
    """Answer as OpenCost (/allocation, /assets) and as Kubecost (/model/...)."""
    habits = Habits(kubecost_version, utc_offset, balancer_drift)
    simulator = Simulator(_world(**options), habits)

    async def run() -> None:
        from tornado.httpserver import HTTPServer
        from tornado.netutil import bind_sockets

        server = HTTPServer(simulator.application())
        sockets = bind_sockets(port, "127.0.0.1")
        server.add_sockets(sockets)
        click.echo(f"http://127.0.0.1:{sockets[0].getsockname()[1]}")
        sys.stdout.flush()
        await asyncio.Event().wait()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        click.echo("stopped")


@main.command(name="openmetrics")
@click.option("--tenant", type=UUID, help="The account that every series is labelled with (tenant_id).")
@click.option("--interval", default=60, show_default=True, type=click.IntRange(1, 3600), help="Seconds.")
@click.argument("file", type=click.File("w"))
@world_options
def write_openmetrics(tenant: UUID | None, interval: int, file: Any, **options: Any) -> None:
    """Write the world's metrics for `promtool tsdb create-blocks-from openmetrics`."""
    world = _world(**options)
    count = openmetrics.write(file, world, {"tenant_id": str(tenant)} if tenant else None, interval)
    click.echo(f"{count} samples", err=True)


@main.command()
@click.option("--adjusted", is_flag=True, help="With what reconciliation took off, as Kubecost tells it.")
@click.option("--from", "start", type=int, help="Unix seconds; default: the world's start.")
@click.option("--to", "until", type=int, help="Unix seconds; default: the world's end.")
@world_options
def truth(adjusted: bool, start: int | None, until: int | None, **options: Any) -> None:
    """Print what the world cost, to the cent and beyond."""
    click.echo(json.dumps(exact_truth(_world(**options), start, until, adjusted=adjusted), indent=1))


if __name__ == "__main__":
    main()
