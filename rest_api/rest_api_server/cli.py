"""``rest-api serve|organization|user|token``."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from optscale_client.config_client import ConfigError, EtcdConfig
from rest_api.rest_api_server.config import SETTINGS, config_of, directory_of
from rest_api.rest_api_server.directory.connect import open_directory
from rest_api.rest_api_server.directory.model import AlreadyExists, Directory, DirectoryError, Missing, Role
from rest_api.rest_api_server.server import make_app
from tools.cli import given, load_service_settings, load_settings, operator, setting_options, take_over_secret
from tools.settings import CONFIG_URL, SettingsError
from tools.tornado_service.access import Access, audit_log_of
from tools.tornado_service.listening import listen, stop_signal
from tools.tornado_service.logs import set_up
from tools.window import iso

log = logging.getLogger("rest_api")

DIRECTORY_SETTINGS = tuple(s for s in SETTINGS if s.name in ("DIRECTORY_URL", "DATA_DIR", "AUDIT_LOG"))


@click.group()
@click.version_option(package_name="metroculus")
def main() -> None:
    """Run the REST API and manage its organizations, users and tokens."""


@main.command()
@setting_options((*SETTINGS, CONFIG_URL))
def serve(**flags: Any) -> None:
    """Serve the REST API."""
    values, etcd = load_service_settings(SETTINGS, flags, EtcdConfig, ConfigError)
    try:
        config = config_of(values)
    except SettingsError as problem:
        raise click.ClickException(str(problem)) from None
    set_up(values["log_level"], values["log_format"])
    if not config.cluster_secret:
        raise click.ClickException("CLUSTER_SECRET is not set: it must be the secret of Metroculus")

    told = given("CLUSTER_SECRET", SETTINGS, flags)

    async def run() -> None:
        stopped = stop_signal()
        api = make_app(config)
        if etcd is not None and not told:
            etcd.watch("/secret/cluster", partial(take_over_secret, api.metroculus.client))
        address, port = config.listen
        listener = listen(api.application, api.service, address, port, config.tls)
        api.start()
        click.echo(f"REST API at {listener.url}")
        await stopped.wait()
        await listener.stop()
        api.close()

    try:
        asyncio.run(run())
    except (DirectoryError, OSError) as problem:
        raise click.ClickException(str(problem)) from None


@contextmanager
def _directory(flags: dict[str, Any], change: str = "", **objects: str) -> Iterator[Directory]:
    """The directory, for one command; a change goes into the audit log with what became of it.

    Raises:
        click.ClickException
    """
    values = load_settings(DIRECTORY_SETTINGS, flags)
    try:
        audit = Access(audit_log_of(values)).audit("rest-api", time.time) if change else None
        if audit is not None:
            audit.stream = sys.stderr  # what the command prints is read by scripts
        directory = open_directory(directory_of(values))
    except (DirectoryError, OSError) as problem:
        raise click.ClickException(str(problem)) from None
    outcome = "failed"
    try:
        yield directory
        outcome = "done"
    except (AlreadyExists, Missing, DirectoryError) as problem:
        raise click.ClickException(str(problem)) from None
    finally:
        if audit is not None:
            actor = {"kind": "command line", "user": operator()}
            audit.write(actor=actor, operation=change, objects=objects, outcome=outcome)
        directory.close()


@main.group()
def organization() -> None:
    """Manage organizations, which own clusters."""


@organization.command(name="create")
@click.argument("name")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def create_organization(name: str, **flags: Any) -> None:
    """Create an organization and print its id."""
    with _directory(flags, "create organization", name=name) as directory:
        click.echo(directory.create_organization(name).id)


@organization.command(name="list")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def list_organizations(**flags: Any) -> None:
    """List organizations, id and name."""
    with _directory(flags) as directory:
        for one in directory.organizations():
            click.echo(f"{one.id}  {one.name}")


@organization.command(name="delete")
@click.argument("organization_id")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def delete_organization(organization_id: str, **flags: Any) -> None:
    """Delete an organization, its clusters and all roles in it."""
    with _directory(flags, "delete organization", organization_id=organization_id) as directory:
        if not directory.delete_organization(organization_id):
            raise Missing(f"there is no organization {organization_id}")


@main.group()
def user() -> None:
    """Manage users and their roles in organizations."""


@user.command(name="create")
@click.argument("name")
@click.option("--organization", "organization_id", help="Organization in which the user gets the role.")
@click.option("--role", type=click.Choice(["viewer", "manager", "admin"]), default="viewer", show_default=True)
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def create_user(name: str, organization_id: str | None, role: str, **flags: Any) -> None:
    """Create a user, or give an existing user the role."""
    scope = {"organization_id": organization_id, "role": role} if organization_id is not None else {}
    with _directory(flags, "create user", user=name, **scope) as directory:
        try:
            click.echo(directory.create_user(name).id)
        except AlreadyExists:
            if organization_id is None:
                raise
        if organization_id is not None:
            directory.set_role(name, organization_id, Role.of(role))


@user.command(name="list")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def list_users(**flags: Any) -> None:
    """List users, id and name."""
    with _directory(flags) as directory:
        for one in directory.users():
            click.echo(f"{one.id}  {one.name}{'  (disabled)' if one.disabled else ''}")


@user.command(name="remove")
@click.argument("name")
@click.option("--organization", "organization_id", required=True, help="Organization in which the user loses the role.")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def remove_user(name: str, organization_id: str, **flags: Any) -> None:
    """Remove a user's role in an organization."""
    with _directory(flags, "remove user", user=name, organization_id=organization_id) as directory:
        directory.set_role(name, organization_id, None)


@user.command(name="disable")
@click.argument("name")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def disable_user(name: str, **flags: Any) -> None:
    """Disable a user: all tokens of the user are refused from now on."""
    with _directory(flags, "disable user", user=name) as directory:
        directory.disable_user(name)


@main.group()
def token() -> None:
    """Manage tokens; a token is shown once and stored as a digest."""


@token.command(name="create")
@click.argument("user_name")
@click.option("--days", default=90, show_default=True, type=click.IntRange(1, 3650), help="Lifetime.")
@click.option(
    "--organization", "organizations", multiple=True, help="Valid only for this organization; can be repeated."
)
@click.option("--read-only", is_flag=True, help="Read access only, whatever the user's role.")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def create_token(user_name: str, days: int, organizations: tuple[str, ...], read_only: bool, **flags: Any) -> None:
    """Create a token for a user; the token is printed, its id goes to standard error."""
    with _directory(flags, "create token", user=user_name) as directory:
        for organization_id in organizations:
            if directory.organization(organization_id) is None:
                raise Missing(f"there is no organization {organization_id}")
        expires_at = int(time.time()) + days * 86400
        token_id, made = directory.create_token(user_name, expires_at, organizations or None, read_only)
    click.echo(f"token id {token_id}, good for {days} days", err=True)
    click.echo(made)


@token.command(name="list")
@click.argument("user_name")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def list_tokens(user_name: str, **flags: Any) -> None:
    """List a user's tokens with id, expiry and limits."""
    with _directory(flags) as directory:
        for one in directory.tokens(user_name):
            until = "for good" if one.expires_at is None else f"until {iso(one.expires_at)}"
            only = "" if one.organizations is None else f"  only {', '.join(one.organizations) or 'nowhere'}"
            notes = ("  read only" if one.read_only else "") + ("  (revoked)" if one.revoked else "")
            click.echo(f"{one.id}  {until}{only}{notes}")


@token.command(name="revoke")
@click.argument("token_id")
@setting_options(DIRECTORY_SETTINGS, config_file=False)
def revoke_token(token_id: str, **flags: Any) -> None:
    """Revoke a token: it is refused from now on."""
    with _directory(flags, "revoke token", token_id=token_id) as directory:
        if not directory.revoke_token(token_id):
            raise Missing(f"there is no token {token_id}")


if __name__ == "__main__":
    main()
