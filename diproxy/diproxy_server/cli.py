"""``diproxy serve``."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import click

from diproxy.diproxy_server.config import SETTINGS, config_of
from diproxy.diproxy_server.server import Gateway, make_app
from optscale_client.config_client import ConfigError, EtcdConfig
from tools.cli import given, load_settings, setting_options
from tools.settings import CONFIG_URL, SettingsError, cluster_secret
from tools.tornado_service.listening import listen, stop_signal
from tools.tornado_service.logs import set_up

log = logging.getLogger("diproxy")


@click.group()
@click.version_option(package_name="metroculus")
def main() -> None:
    """The tenants' gateway: metrics and hours that their agents push."""


@main.command()
@setting_options((*SETTINGS, CONFIG_URL))
def serve(**flags: Any) -> None:
    """Serve the gateway."""
    values = load_settings((CONFIG_URL,), {k: flags[k] for k in ("config_url",)})
    try:
        etcd = EtcdConfig(values["config_url"]) if values["config_url"] != "env:" else None
        values = load_settings((*SETTINGS, CONFIG_URL), flags, etcd.get if etcd else None)
        config = config_of(values)
    except (ConfigError, SettingsError) as problem:
        raise click.ClickException(str(problem)) from None
    set_up(values["log_level"], values["log_format"])
    if not config.cluster_secret:
        raise click.ClickException("CLUSTER_SECRET is not set: it is what Metroculus wants")
    told = given("CLUSTER_SECRET", SETTINGS, flags)

    async def run() -> None:
        stopped = stop_signal()
        gateway = make_app(config)
        if etcd is not None and not told:
            etcd.watch("/secret/cluster", partial(_take_over_secret, gateway))
        address, port = config.listen
        listener = listen(gateway.application, gateway.service, address, port, config.tls)
        click.echo(f"gateway at {listener.url}")
        await stopped.wait()
        await listener.stop()
        gateway.close()

    try:
        asyncio.run(run())
    except OSError as problem:
        raise click.ClickException(str(problem)) from None


def _take_over_secret(gateway: Gateway, secret: str) -> None:
    """A rotated secret; what is none changes nothing."""
    try:
        gateway.calls.client.secret = cluster_secret(secret)
    except ValueError as problem:
        log.warning("the secret was not taken over: it %s", problem)


if __name__ == "__main__":
    main()
