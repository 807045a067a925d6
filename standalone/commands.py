"""The commands that run services, workers and stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from metroculus.config import SETTINGS, WORKER_ROLES, MetroculusConfig, WorkerConfig, config_of
from metroculus.dependencies import make_dependencies, open_registry
from metroculus.metroculus_api.server import make_app
from metroculus.metroculus_worker.etcd_owners import EtcdOwners
from metroculus.metroculus_worker.ownership import Owners
from metroculus.metroculus_worker.server import make_worker
from metroculus.sources.errors import RegistryError
from metroculus.sources.outbound.addresses import parse_upstream_url
from metroculus.sources.registry.sqlite import SqliteEntries
from metroculus.storage.engine import StoreError
from metroculus.storage.jobs import DEFAULT_PARALLEL, MAX_PARALLEL
from metroculus.storage.store import EMBEDDED, is_embedded
from optscale_client.config_client import ConfigError, EtcdConfig
from rest_api.rest_api_server.directory.model import DirectoryError
from standalone import demo as demonstration
from standalone import up as machine
from standalone.history import fill, leave_store, parse_moment, tell_owner, work
from standalone.running import single_machine
from tools.cli import given, load_service_settings, setting_options
from tools.settings import CONFIG_URL, SettingsError, address
from tools.tornado_service.access import Access
from tools.tornado_service.listening import listen, stop_signal
from tools.tornado_service.logs import set_up
from tools.tornado_service.params import Uuid


def configured(flags: dict[str, Any]) -> tuple[MetroculusConfig, EtcdConfig | None]:
    """Settings of a command, and the etcd that some of them came from.

    Raises:
        click.ClickException
    """
    values, etcd = load_service_settings(SETTINGS, flags, EtcdConfig, ConfigError)
    try:
        if etcd is not None and values["thanos_query_url"] is None:
            values["thanos_query_url"] = etcd.thanos_query_url()
        config = config_of(values)
    except (ConfigError, SettingsError) as problem:
        raise click.ClickException(str(problem)) from None
    set_up(values["log_level"], values["log_format"])
    return config, etcd


def owners_of(config: MetroculusConfig, etcd: EtcdConfig | None) -> Owners | None:
    """What keeps workers apart; None is files of this machine.

    Raises:
        click.ClickException
    """
    if config.worker is None or config.worker.locks == "file":
        return None
    if etcd is None:
        raise click.ClickException("WORKER_LOCKS=etcd needs CONFIG_URL=etcd://host:port")
    return EtcdOwners(etcd.client())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend is one line, not a stack."""
    try:
        yield
    except (RegistryError, DirectoryError, StoreError, SettingsError, OSError) as problem:
        raise click.ClickException(str(problem)) from None


@click.command()
@click.option("--worker/--no-worker", default=False, help="Also run the worker in this process, on the same store.")
@setting_options((*SETTINGS, CONFIG_URL))
def serve(worker: bool, **flags: Any) -> None:
    """Serve Metroculus, the cost service behind the cluster secret."""
    config, etcd = configured(flags)
    if config.cluster_secret is None and etcd is None:
        raise click.ClickException("CLUSTER_SECRET is not set: callers must send this secret")
    with one_line_errors():
        asyncio.run(_serve(config, etcd, worker, told=given("CLUSTER_SECRET", SETTINGS, flags)))


async def _serve(config: MetroculusConfig, etcd: EtcdConfig | None, with_worker: bool, told: bool) -> None:
    stopped = stop_signal()
    dependencies = make_dependencies(config)
    worked = with_worker or not is_embedded(config.clickhouse_url or "")
    service = make_app(config, dependencies=dependencies, worked=worked)
    working = make_worker(config, dependencies, owners_of(config, etcd)) if with_worker else None
    listener = listen(service.application, service.service, *config.listen, config.tls)
    if working is not None:
        metrics = listen(working.application, working.service, *working.config.listen)
        working.start()
        click.echo(f"worker at {metrics.url}/metrics")
    if etcd is not None and not told:  # the secret is etcd's, and may change there
        loop = asyncio.get_running_loop()

        def rotate(secret: str) -> None:
            loop.call_soon_threadsafe(service.secret.rotate, secret)

        service.secret.source = etcd.cluster_secret
        etcd.watch("/secret/cluster", rotate)
    tell_owner(config.clickhouse_url, listener.url, config.cluster_secret)
    click.echo(f"Metroculus at {listener.url}")
    await stopped.wait()
    if working is not None:
        await working.stop()
        await metrics.stop()
    await listener.stop()
    leave_store(config.clickhouse_url)
    service.close()
    if etcd is not None:
        etcd.stop()


@click.command()
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(WORKER_ROLES),
    help="Only this work; can be repeated. Same as WORKER_ROLE.",
)
@setting_options((*SETTINGS, CONFIG_URL))
def worker(roles: tuple[str, ...], **flags: Any) -> None:
    """Run the worker: store every hour, read it again as bills arrive, compute summaries, delete old data."""
    config, etcd = configured(flags | ({"worker_role": ",".join(roles)} if roles else {}))
    with one_line_errors():
        asyncio.run(work(config, owners_of(config, etcd)))


@click.command()
@setting_options((*SETTINGS, CONFIG_URL))
def rekey(**flags: Any) -> None:
    """Encrypt every stored credential with the first key of ENCRYPTION_KEY; then the other keys can be removed.

    First give every service the new list of keys, so that none encrypts with an old key.
    """
    config, _ = configured(flags)
    with one_line_errors(), closing(open_registry(config)) as registry:
        done = registry.rekey()
        click.echo(f"{done.anew} encrypted again")
        if done.left:
            raise click.ClickException(
                f"{len(done.left)} were encrypted with another key meanwhile: give every service the new list first"
            )
        _refuse_unreadable(done.unreadable)


def _refuse_unreadable(accounts: Sequence[str]) -> None:
    if accounts:
        raise click.ClickException(
            f"no key of ENCRYPTION_KEY can decrypt the credentials of {', '.join(accounts[:5])}"
            f"{f' and {len(accounts) - 5} more' if len(accounts) > 5 else ''}: set their sources again"
        )


@click.command("import-sources")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@setting_options((*SETTINGS, CONFIG_URL))
def import_sources(file: Path, **flags: Any) -> None:
    """Copy the upstreams of a SQLite registry FILE into the registry of REGISTRY_URL; existing entries are kept."""
    config, _ = configured(flags)
    with one_line_errors(), closing(open_registry(config)) as registry, closing(SqliteEntries(file)) as others:
        done = registry.take_over(others)
        click.echo(f"{done.taken} copied")
        _refuse_unreadable(done.unreadable)


def filling(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of what fills a stretch of the past."""
    for option in (
        click.option(
            "--parallel",
            type=click.IntRange(1, MAX_PARALLEL),
            default=DEFAULT_PARALLEL,
            show_default=True,
            help="Days read at once.",
        ),
        click.option("--to", "end", required=True, help="End, exclusive; same format as --from."),
        click.option("--from", "start", required=True, help="Start: RFC 3339 (2026-11-01T00:00:00Z) or Unix seconds."),
        click.option("--cloud-account", "account", required=True, help="The cluster's cloud account id."),
    ):
        command = option(command)
    return command


def _filled(flags: dict[str, Any], account: str, start: str, end: str, parallel: int, why: str | None) -> int:
    config, etcd = configured(flags)
    try:
        account = Uuid.parse(account)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="--cloud-account") from None
    with one_line_errors():
        return fill(config, owners_of(config, etcd), account, (parse_moment(start), parse_moment(end)), parallel, why)


@click.command()
@filling
@setting_options((*SETTINGS, CONFIG_URL))
def backfill(account: str, start: str, end: str, parallel: int, **flags: Any) -> None:
    """Store the missing hours of a past period.

    Ends with status 0 only where every hour is stored; run it again to go on. Where a running service has the store
    open, it is asked to do it.
    """
    raise SystemExit(_filled(flags, account, start, end, parallel, None))


@click.command()
@click.option("--reason", required=True, help="Reason for the repair; it is stored with the changes.")
@filling
@setting_options((*SETTINGS, CONFIG_URL))
def repair(reason: str, account: str, start: str, end: str, parallel: int, **flags: Any) -> None:
    """Read hours again, including closed ones (over seven days old), and store the source's current data.

    The old cost of each changed hour is recorded.
    """
    raise SystemExit(_filled(flags, account, start, end, parallel, reason))


@click.command()
@click.option("--opencost", "opencost_url", help="URL of the cluster's OpenCost (often port 9003).")
@click.option("--kubecost", "kubecost_url", help="URL of the cluster's Kubecost (often port 9090).")
@click.option("--prometheus", "prometheus_url", help="The same cluster's Prometheus; adds management, limits, metrics.")
@click.option("--data-dir", default=".metroculus", show_default=True, envvar="DATA_DIR", type=click.Path())
@click.option("--listen", "rest_listen", default="127.0.0.1:8999", show_default=True, help="Address of the REST API.")
@click.option("--metroculus-listen", default="127.0.0.1:8969", show_default=True, help="Address of Metroculus.")
@click.option("--worker-listen", default="127.0.0.1:8970", show_default=True, help="Address of the worker's metrics.")
@click.option("--history-days", type=click.IntRange(0, 400), default=14, show_default=True, help="Stored at start.")
def up(
    opencost_url: str | None,
    kubecost_url: str | None,
    prometheus_url: str | None,
    data_dir: str,
    rest_listen: str,
    metroculus_listen: str,
    worker_listen: str,
    history_days: int,
) -> None:
    """Run everything for one cluster in one process, and print its costs and an access token."""
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
        plan = single_machine(
            folder,
            machine.new_secret(),
            listen=address(metroculus_listen),
            rest_api_listen=address(rest_listen),
            kubecost_api_url=parse_upstream_url(url).text if url else None,
            kubecost_account_id=machine.account_id(folder),
            kubecost_flavour=("opencost" if opencost_url else "kubecost") if url else None,
            thanos_query_url=parse_upstream_url(prometheus_url).text if prometheus_url else None,
            tenant_label="",
            clickhouse_url=f"{EMBEDDED}{folder / 'store'}",
            worker=WorkerConfig(listen=address(worker_listen)),
            access=Access(audit_log=str(folder / "audit.jsonl")),
        )
        asyncio.run(machine.run(plan, url or "", history_days))
    except (ValueError, SettingsError, RegistryError, DirectoryError, StoreError, OSError) as problem:
        raise click.ClickException(str(problem)) from None


@click.command()
@click.option("--check", is_flag=True, help="Compare every view with the exact cost, print a table and exit.")
@click.option("--folder", default=".demo", show_default=True, type=click.Path(), help="Created again at each start.")
@click.option("--metroculus-port", default=0, help="Default: a free one.")
@click.option("--rest-api-port", default=0, help="Default: a free one.")
def demo(check: bool, folder: str, metroculus_port: int, rest_api_port: int) -> None:
    """Run Metroculus with three simulated clusters and two weeks of history."""
    set_up("warning", "text")
    raise SystemExit(asyncio.run(demonstration.run(Path(folder), check, (metroculus_port, rest_api_port))))
