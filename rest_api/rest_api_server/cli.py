"""``rest-api serve|organization|user|token``."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from optscale_client.config_client import ConfigError, EtcdConfig
from rest_api.rest_api_server.config import SETTINGS, config_of, directory_of
from rest_api.rest_api_server.directory.model import AlreadyExists, DirectoryError, Missing, Role
from rest_api.rest_api_server.directory.sqlite import SqliteDirectory
from rest_api.rest_api_server.server import make_app
from tools.cli import load_settings, setting_options
from tools.settings import CONFIG_URL
from tools.tornado_service.application import listen, stop_signal
from tools.tornado_service.logs import set_up

DIRECTORY_SETTINGS = tuple(s for s in SETTINGS if s.name in ("DIRECTORY_URL", "DATA_DIR"))


@click.group()
@click.version_option(package_name="metroculus")
def main() -> None:
    """What organizations' Kubernetes clusters cost: the REST API, its users and tokens."""


@main.command()
@setting_options((*SETTINGS, CONFIG_URL))
def serve(**flags: Any) -> None:
    """Serve the REST API."""
    values = load_settings((CONFIG_URL,), {k: flags[k] for k in ("config_url",)})
    try:
        etcd = EtcdConfig(values["config_url"]) if values["config_url"] != "env:" else None
        values = load_settings((*SETTINGS, CONFIG_URL), flags, etcd.get if etcd else None)
    except ConfigError as problem:
        raise click.ClickException(str(problem)) from None
    set_up(values["log_level"], values["log_format"])
    config = config_of(values)
    if not config.cluster_secret:
        raise click.ClickException("CLUSTER_SECRET is not set: it is what Metroculus wants")

    async def run() -> None:
        stopped = stop_signal()
        api = make_app(config)
        if etcd is not None:
            etcd.watch("/secret/cluster", lambda secret: setattr(api.metroculus.client, "secret", secret))
        address, port = config.listen
        listener = listen(api.application, api.service, address, port, config.tls)
        click.echo(f"REST API at {listener.url}")
        await stopped.wait()
        await listener.stop()
        api.close()

    try:
        asyncio.run(run())
    except (DirectoryError, OSError) as problem:
        raise click.ClickException(str(problem)) from None


def _directory(flags: dict[str, Any]) -> SqliteDirectory:
    try:
        return SqliteDirectory(directory_of(load_settings(DIRECTORY_SETTINGS, flags)))
    except DirectoryError as problem:
        raise click.ClickException(str(problem)) from None


@main.group()
def organization() -> None:
    """Organizations: whose clusters they are."""


@organization.command(name="create")
@click.argument("name")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def create_organization(name: str, **flags: Any) -> None:
    """Make an organization and print its id."""
    click.echo(_directory(flags).create_organization(name).id)


@organization.command(name="list")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def list_organizations(**flags: Any) -> None:
    """List organizations, id and name."""
    for one in _directory(flags).organizations():
        click.echo(f"{one.id}  {one.name}")


@main.group()
def user() -> None:
    """Users, and their roles in organizations."""


@user.command(name="create")
@click.argument("name")
@click.option("--organization", "organization_id", help="Give the role there.")
@click.option("--role", type=click.Choice(["viewer", "manager", "admin"]), default="viewer", show_default=True)
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def create_user(name: str, organization_id: str | None, role: str, **flags: Any) -> None:
    """Make a user; one that exists gets the role."""
    directory = _directory(flags)
    try:
        made = directory.create_user(name)
        click.echo(made.id)
    except AlreadyExists as problem:
        if organization_id is None:
            raise click.ClickException(str(problem)) from None
    if organization_id is not None:
        try:
            directory.set_role(name, organization_id, Role.of(role))
        except Missing as problem:
            raise click.ClickException(str(problem)) from None


@user.command(name="disable")
@click.argument("name")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def disable_user(name: str, **flags: Any) -> None:
    """Refuse every token of a user from now on."""
    try:
        _directory(flags).disable_user(name)
    except Missing as problem:
        raise click.ClickException(str(problem)) from None


@main.group()
def token() -> None:
    """Tokens: shown once, stored as digests."""


@token.command(name="create")
@click.argument("user_name")
@click.option("--days", default=90, show_default=True, type=click.IntRange(1, 3650), help="Until it expires.")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def create_token(user_name: str, days: int, **flags: Any) -> None:
    """Make a token for a user; the token is printed, its id goes to standard error."""
    try:
        token_id, made = _directory(flags).create_token(user_name, int(time.time()) + days * 86400)
    except Missing as problem:
        raise click.ClickException(str(problem)) from None
    click.echo(f"token id {token_id}, good for {days} days", err=True)
    click.echo(made)


@token.command(name="revoke")
@click.argument("token_id")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def revoke_token(token_id: str, **flags: Any) -> None:
    """Refuse a token from now on."""
    if not _directory(flags).revoke_token(token_id):
        raise click.ClickException(f"there is no token {token_id}")


if __name__ == "__main__":
    main()
