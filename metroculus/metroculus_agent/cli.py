"""``metroculus agent``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from metroculus.metroculus_agent.server import AgentConfig, make_agent
from metroculus.sources.kubecost.client import Flavour
from metroculus.sources.outbound.addresses import parse_upstream_url
from tools.settings import address, authority_file, base_url
from tools.tornado_service.listening import listen, stop_signal
from tools.tornado_service.logs import set_up
from tools.tornado_service.params import Currency, Uuid

PREFIX = "METROCULUS_AGENT_"
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not 1.0 <= value <= 86400.0:
        raise click.BadParameter("must be from 1 to 86400 seconds")
    return value


def _seconds_option(name: str, default: float, about: str) -> Callable[[F], F]:
    variable = f"{PREFIX}{name.upper()}"
    return click.option(f"--{name}", default=default, show_default=True, envvar=variable, callback=_seconds, help=about)


def _parsed(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint=option) from None


@click.command()
@click.option("--opencost", "opencost_url", envvar=f"{PREFIX}OPENCOST", help="URL of the cluster's OpenCost.")
@click.option("--kubecost", "kubecost_url", envvar=f"{PREFIX}KUBECOST", help="URL of the cluster's Kubecost.")
@click.option("--to", required=True, envvar=f"{PREFIX}TO", help="The gateway, https://host[:port].")
@click.option("--account", required=True, envvar=f"{PREFIX}ACCOUNT", help="Id of the cluster in Metroculus.")
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
    help="Authority (PEM file) that signed the gateway's certificate; without it the system's.",
)
@click.option("--listen", "listen_on", default="127.0.0.1:8936", show_default=True, envvar=f"{PREFIX}LISTEN")
@_seconds_option("timeout", 120.0, "Seconds for one call to OpenCost or Kubecost.")
@_seconds_option("poll", 60.0, "Seconds between two requests for wanted data.")
@click.option(
    "--currency",
    envvar=f"{PREFIX}CURRENCY",
    help="Currency of the costs (ISO 4217); overrides the upstream's own setting.",
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
    ca_file: str | None,
    listen_on: str,
    timeout: float,
    poll: float,
    currency: str | None,
    log_format: str,
) -> None:
    """Push the costs of this cluster's OpenCost or Kubecost to a gateway; all connections are outgoing."""
    given: list[tuple[Flavour, str]] = []
    if opencost_url:
        given.append(("opencost", opencost_url))
    if kubecost_url:
        given.append(("kubecost", kubecost_url))
    if len(given) != 1:
        raise click.UsageError("give --opencost URL or --kubecost URL, one of them")
    flavour, url = given[0]
    config = AgentConfig(
        flavour=flavour,
        upstream_url=_parsed(f"--{flavour}", parse_upstream_url, url).text,
        to=_parsed("--to", base_url, to),
        account=_parsed("--account", Uuid.parse, account),
        token_file=token_file,
        ca_file=_parsed("--ca", authority_file, ca_file) if ca_file is not None else None,
        listen=_parsed("--listen", address, listen_on),
        seconds=timeout,
        poll_seconds=poll,
        currency=_parsed("--currency", Currency.parse, currency) if currency else None,
    )
    if not token_file.exists():
        click.echo(f"{token_file} does not exist yet; the agent waits for it", err=True)
    set_up("info", log_format)

    async def run() -> None:
        stopped = stop_signal()
        service = make_agent(config)
        listener = listen(service.application, service.service, *config.listen)
        pushing = service.start()
        click.echo(f"agent of {config.account} at {listener.url}")
        pushing.add_done_callback(lambda _: stopped.set())  # it never ends by itself
        await stopped.wait()
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        await listener.stop()
        service.close()

    try:
        asyncio.run(run())
    except OSError as problem:
        raise click.ClickException(str(problem)) from None
