"""``metroculus agent``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from metroculus.metroculus_agent.server import AgentConfig, make_agent
from metroculus.sources.kubecost.client import Flavour
from metroculus.sources.outbound.addresses import parse_upstream_url
from tools.settings import address, base_url
from tools.tornado_service.listening import listen, stop_signal
from tools.tornado_service.logs import set_up
from tools.tornado_service.params import Uuid

PREFIX = "METROCULUS_AGENT_"


@click.command()
@click.option("--opencost", "opencost_url", envvar=f"{PREFIX}OPENCOST", help="Where the cluster's OpenCost is.")
@click.option("--kubecost", "kubecost_url", envvar=f"{PREFIX}KUBECOST", help="Where the cluster's Kubecost is.")
@click.option("--to", required=True, envvar=f"{PREFIX}TO", help="The gateway, https://host[:port].")
@click.option("--account", required=True, envvar=f"{PREFIX}ACCOUNT", help="Id of the cluster there.")
@click.option(
    "--token-file",
    required=True,
    envvar=f"{PREFIX}TOKEN_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the cluster's push token; read anew for each request.",
)
@click.option(
    "--ca",
    "ca_file",
    envvar=f"{PREFIX}CA",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Authority (PEM file) that signed the gateway's certificate; without it the system's.",
)
@click.option("--listen", "listen_on", default="127.0.0.1:8936", show_default=True, envvar=f"{PREFIX}LISTEN")
@click.option(
    "--timeout", default=120.0, show_default=True, envvar=f"{PREFIX}TIMEOUT", help="Seconds for one call upstream."
)
@click.option(
    "--poll",
    default=60.0,
    show_default=True,
    envvar=f"{PREFIX}POLL",
    type=click.FloatRange(min=1.0),
    help="Seconds between two looks at what is wanted.",
)
@click.option(
    "--log-format", default="text", show_default=True, envvar="LOG_FORMAT", type=click.Choice(["text", "json"])
)
def agent(
    opencost_url: str | None,
    kubecost_url: str | None,
    to: str,
    account: str,
    token_file: Path,
    ca_file: Path | None,
    listen_on: str,
    timeout: float,
    poll: float,
    log_format: str,
) -> None:
    """Push what this cluster's OpenCost or Kubecost says to a gateway; connections go out alone."""
    given: list[tuple[Flavour, str]] = []
    if opencost_url:
        given.append(("opencost", opencost_url))
    if kubecost_url:
        given.append(("kubecost", kubecost_url))
    if len(given) != 1:
        raise click.UsageError("give --opencost URL or --kubecost URL, one of them")
    try:
        config = AgentConfig(
            flavour=given[0][0],
            upstream_url=parse_upstream_url(given[0][1]).text,
            to=base_url(to),
            account=Uuid.parse(account),
            token_file=token_file,
            ca_file=ca_file,
            listen=address(listen_on),
            seconds=timeout,
            poll_seconds=poll,
        )
    except ValueError as problem:
        raise click.ClickException(str(problem)) from None
    set_up("info", log_format)

    async def run() -> None:
        stopped = stop_signal()
        service = make_agent(config)
        listener = listen(service.application, service.service, *config.listen)
        pushing = service.start()
        click.echo(f"agent of {config.account} at {listener.url}")
        await stopped.wait()
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        await listener.stop()
        service.close()

    try:
        asyncio.run(run())
    except OSError as problem:
        raise click.ClickException(str(problem)) from None
