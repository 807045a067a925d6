"""``metroculus serve|up|demo``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from metroculus.config import SETTINGS, MetroculusConfig, config_of
from metroculus.metroculus_api.server import make_app
from metroculus.sources.addresses import parse_upstream_url
from metroculus.sources.registry import RegistryError
from optscale_client.config_client import ConfigError, EtcdConfig
from rest_api.rest_api_server.directory.model import DirectoryError
from standalone import demo as demonstration
from standalone import up as machine
from standalone.running import Plan
from tools.cli import load_settings, setting_options
from tools.settings import CONFIG_URL, SettingsError, address
from tools.tornado_service.application import listen, stop_signal
from tools.tornado_service.logs import set_up


@click.group()
@click.version_option(package_name="metroculus")
def main() -> None:
    """What every Kubernetes cluster, namespace and workload costs, to the cent."""


@main.command()
@setting_options((*SETTINGS, CONFIG_URL))
def serve(**flags: Any) -> None:
    """Serve Metroculus, the cost service behind the cluster secret."""
    config_url = load_settings((CONFIG_URL,), {"config_url": flags["config_url"]})["config_url"]
    try:
        etcd = EtcdConfig(config_url) if config_url != "env:" else None
        values = load_settings((*SETTINGS, CONFIG_URL), flags, etcd.get if etcd else None)
        if etcd is not None and values["thanos_query_url"] is None:
            values["thanos_query_url"] = etcd.thanos_query_url()
    except ConfigError as problem:
        raise click.ClickException(str(problem)) from None
    set_up(values["log_level"], values["log_format"])
    config = config_of(values)
    if config.cluster_secret is None and etcd is None:
        raise click.ClickException("CLUSTER_SECRET is not set: it is what callers must send")
    asyncio.run(_serve(config, etcd))


async def _serve(config: MetroculusConfig, etcd: EtcdConfig | None) -> None:
    stopped = stop_signal()
    try:
        service = make_app(config)
        address, port = config.listen
        listener = listen(service.application, service.service, address, port, config.tls)
    except (RegistryError, OSError) as problem:
        raise click.ClickException(str(problem)) from None
    if etcd is not None and "CLUSTER_SECRET" not in os.environ:
        loop = asyncio.get_running_loop()

        def rotate(secret: str) -> None:
            loop.call_soon_threadsafe(service.secret.rotate, secret)

        etcd.watch("/secret/cluster", rotate)
    click.echo(f"Metroculus at {listener.url}")
    await stopped.wait()
    await listener.stop()
    service.close()
    if etcd is not None:
        etcd.stop()


@main.command()
@click.option("--opencost", "opencost_url", help="Where the cluster's OpenCost is (often port 9003).")
@click.option("--kubecost", "kubecost_url", help="Where the cluster's Kubecost is (often port 9090).")
@click.option("--prometheus", "prometheus_url", help="The same cluster's Prometheus; adds management, limits, metrics.")
@click.option("--data-dir", default=".metroculus", show_default=True, envvar="DATA_DIR", type=click.Path())
@click.option("--listen", "rest_listen", default="127.0.0.1:8999", show_default=True, help="Of the REST API.")
@click.option("--metroculus-listen", default="127.0.0.1:8969", show_default=True, help="Of Metroculus.")
def up(
    opencost_url: str | None,
    kubecost_url: str | None,
    prometheus_url: str | None,
    data_dir: str,
    rest_listen: str,
    metroculus_listen: str,
) -> None:
    """One machine, one cluster: both services in one process, costs on the screen, a token to ask with."""
    if opencost_url and kubecost_url:
        raise click.UsageError("give --opencost or --kubecost, not both: they would count the same cluster twice")
    url = opencost_url or kubecost_url
    if not url and not prometheus_url:
        raise click.UsageError(
            "give --opencost URL or --kubecost URL, with --prometheus URL beside it where there is one"
        )
    set_up("warning", "text")
    folder = Path(data_dir)
    try:
        plan = Plan(
            data_dir=folder,
            secret=machine.new_secret(),
            metroculus_listen=address(metroculus_listen),
            rest_api_listen=address(rest_listen),
            kubecost_api_url=parse_upstream_url(url).text if url else None,
            kubecost_account_id=machine.account_id(folder),
            kubecost_flavour=("opencost" if opencost_url else "kubecost") if url else None,
            thanos_query_url=parse_upstream_url(prometheus_url).text if prometheus_url else None,
            tenant_label="",
        )
        asyncio.run(machine.run(plan, url or ""))
    except (ValueError, SettingsError, RegistryError, DirectoryError, OSError) as problem:
        raise click.ClickException(str(problem)) from None


@main.command()
@click.option("--check", is_flag=True, help="Hold every view against the exact truth, print a table and end.")
@click.option("--folder", default=".demo", show_default=True, type=click.Path(), help="Made anew at each start.")
@click.option("--metroculus-port", default=0, help="Default: a free one.")
@click.option("--rest-api-port", default=0, help="Default: a free one.")
def demo(check: bool, folder: str, metroculus_port: int, rest_api_port: int) -> None:
    """The product against two simulated clusters with two weeks of history."""
    set_up("warning", "text")
    raise SystemExit(asyncio.run(demonstration.run(Path(folder), check, (metroculus_port, rest_api_port))))


if __name__ == "__main__":
    main()
