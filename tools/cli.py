"""Settings as options of click commands."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from tools.settings import Setting, SettingsError, load

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
