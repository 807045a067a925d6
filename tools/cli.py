"""Settings as options of click commands."""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import click

from tools.settings import CONFIG_URL, Setting, SettingsError, cluster_secret, load

log = logging.getLogger("settings")

F = TypeVar("F", bound=Callable[..., Any])


def setting_options(settings: Sequence[Setting], config_file: bool = True) -> Callable[[F], F]:
    """One flag a setting, each telling its environment variable and its default."""

    def decorate(command: F) -> F:
        for setting in reversed(settings):
            default = "" if setting.default is None or setting.secret else f" Default: {_shown(setting.default)}."
            etcd = f", etcd {setting.etcd}" if setting.etcd else ""
            option = click.option(setting.flag, setting.key, help=f"{setting.help}{default} [{setting.name}{etcd}]")
            command = option(command)
        if config_file:
            command = click.option("--config", "config_file", type=click.Path(), help="A YAML file of settings.")(
                command
            )
        return command

    return decorate


def _shown(default: Any) -> str:
    if isinstance(default, tuple):  # an address, or a list
        return (":" if isinstance(default[-1], int) else ",").join(map(str, default))
    return str(default) if isinstance(default, (str, int, float, os.PathLike)) and str(default) else "none"


def operator() -> str:
    """Who runs a command, as the audit log tells it; in a container a user may have a number and no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def given(name: str, settings: Sequence[Setting], flags: dict[str, Any]) -> bool:
    """Whether a setting has a value of this process' own, by flag, environment or file: then etcd says nothing of it.

    Raises:
        click.ClickException
    """
    setting = next(one for one in settings if one.name == name)
    return load_settings(settings, flags)[setting.key] is not None


class Etcd(Protocol):
    """Keys of an etcd."""

    def get(self, key: str) -> str | None: ...


E = TypeVar("E", bound=Etcd)


def load_service_settings(
    settings: Sequence[Setting], flags: dict[str, Any], open_etcd: Callable[[str], E], failure: type[Exception]
) -> tuple[dict[str, Any], E | None]:
    """Settings of a service, and the etcd that ``CONFIG_URL`` names; None for ``env:``.

    Args:
        open_etcd: opens the etcd of a URL.
        failure: what it and its keys raise.

    Raises:
        click.ClickException
    """
    config_url = load_settings((CONFIG_URL,), {CONFIG_URL.key: flags[CONFIG_URL.key]})[CONFIG_URL.key]
    try:
        etcd = open_etcd(config_url) if config_url != CONFIG_URL.default else None
        return load_settings((*settings, CONFIG_URL), flags, etcd.get if etcd else None), etcd
    except failure as problem:
        raise click.ClickException(str(problem)) from None


class Caller(Protocol):
    """A client that sends the cluster secret."""

    secret: str


def take_over_secret(caller: Caller, secret: str) -> None:
    """Send a rotated secret from now on; a text that is no secret changes nothing."""
    try:
        caller.secret = cluster_secret(secret)
    except ValueError as problem:
        log.warning("the secret was not taken over: it %s", problem)


def load_settings(
    settings: Sequence[Setting],
    flags: dict[str, Any],
    etcd: Callable[[str], str | None] | None = None,
) -> dict[str, Any]:
    """Settings of a command.

    Raises:
        click.ClickException: one line that names the setting.
    """
    given = dict(flags)
    file = given.pop("config_file", None)
    try:
        return load(settings, given, os.environ, file, etcd)
    except SettingsError as problem:
        raise click.ClickException(str(problem)) from None
