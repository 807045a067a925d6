"""``diproxy serve``."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import click

from diproxy.diproxy_server.config import SETTINGS, config_of
from diproxy.diproxy_server.server import make_app
from optscale_client.config_client import ConfigError, EtcdConfig
from tools.cli import given, load_service_settings, setting_options, take_over_secret
from tools.settings import CONFIG_URL, SettingsError
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
    values, etcd = load_service_settings(SETTINGS, flags, EtcdConfig, ConfigError)
    try:
        config = config_of(values)
    except SettingsError as problem:
        raise click.ClickException(str(problem)) from None
    set_up(values["log_level"], values["log_format"])
    if not config.cluster_secret:
        raise click.ClickException("CLUSTER_SECRET is not set: it is what Metroculus wants")
    told = given("CLUSTER_SECRET", SETTINGS, flags)

    async def run() -> None:
        stopped = stop_signal()
        gateway = make_app(config)
        if etcd is not None and not told:
            etcd.watch("/secret/cluster", partial(take_over_secret, gateway.calls.client))
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


if __name__ == "__main__":
    main()
