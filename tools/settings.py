"""Settings, each declared once: a flag, an environment variable, a key of the YAML file, an etcd key; in that order.

A malformed setting, or an unknown one in a file, stops the start with one line that names it. Unknown environment
names are not judged: Kubernetes puts its own there.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml


class SettingsError(Exception):
    """One line that names the setting and what it must be."""


@dataclass(frozen=True)
class Setting:
    """One setting; ``parse`` raises ValueError for what it must not be."""

    name: str
    """As an environment variable; the flag is ``--lower-case-with-dashes``."""
    help: str
    parse: Callable[[str], Any] = str
    default: Any = None
    etcd: str | None = None
    secret: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.lower().replace("_", "-")

    @property
    def key(self) -> str:
        return self.name.lower()


def declared(setting: Setting) -> Any:
    """A field of a configuration's dataclass that holds a setting's value; its default is the setting's."""
    return field(default=setting.default, metadata={"setting": setting})


def settings_of(config: type[Any]) -> tuple[Setting, ...]:
    """The settings that a configuration's fields declare, in order."""
    return tuple(one.metadata["setting"] for one in fields(config) if "setting" in one.metadata)


def values_of(config: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """By field, what was loaded for the settings that a configuration's fields declare."""
    return {one.name: values[one.metadata["setting"].key] for one in fields(config) if "setting" in one.metadata}


CONFIG_URL = Setting("CONFIG_URL", "Where settings live: env: or etcd://host:port.", str, "env:")
"""Read before every other setting, for it says where those are."""


def load(
    settings: Sequence[Setting],
    flags: Mapping[str, str | None],
    environment: Mapping[str, str],
    file: str | None = None,
    etcd: Callable[[str], str | None] | None = None,
) -> dict[str, Any]:
    """The value of each setting, by its key.

    Args:
        flags: by key, None where the flag was not given.
        etcd: reads one key; None where etcd is not configured.

    Raises:
        SettingsError
    """
    from_file = _read_file(file, settings) if file else {}
    values: dict[str, Any] = {}
    for setting in settings:
        found: tuple[str, str] | None = None
        if flags.get(setting.key) is not None:
            found = setting.flag, str(flags[setting.key])
        elif setting.name in environment:
            found = setting.name, environment[setting.name]
        elif setting.key in from_file:
            found = f"{file}: {setting.key}", from_file[setting.key]
        elif etcd is not None and setting.etcd is not None:
            text = etcd(setting.etcd)
            found = (f"etcd {setting.etcd}", text) if text is not None else None
        values[setting.key] = _parsed(setting, found)
    return values


def _parsed(setting: Setting, found: tuple[str, str] | None) -> Any:
    if found is None:
        return setting.default
    where, text = found
    try:
        return setting.parse(text)
    except ValueError as problem:
        shown = "" if setting.secret or "@" in text else f" {text!r}"
        raise SettingsError(f"{where}:{shown} {problem}") from None


def _read_file(file: str, settings: Sequence[Setting]) -> dict[str, str]:
    try:
        read = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as problem:
        raise SettingsError(f"{file}: cannot be read: {str(problem).splitlines()[0]}") from None
    if not isinstance(read, dict):
        raise SettingsError(f"{file}: must contain one setting per line: `name: value`")
    known = {setting.key for setting in settings}
    for name in read:
        if name not in known:
            raise SettingsError(f"{file}: unknown setting {name!r}")
    return {name: str(value) for name, value in read.items()}


def address(text: str) -> tuple[str, int]:
    """``host:port``."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port")
    return host.strip("[]") or "127.0.0.1", int(port)


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise ValueError("must be a number of seconds above 0")
    return value


def duration(text: str) -> float:
    """A number of seconds; 0 turns off what it is of."""
    return 0.0 if text.strip() == "0" else seconds(text)


def whole_number(most: int) -> Callable[[str], int]:
    """Parses a whole number from 1 to ``most``."""

    def parse(text: str) -> int:
        digits = text.isascii() and text.isdigit() and len(text) < 20
        if not digits or not 0 < int(text) <= most:
            raise ValueError(f"must be a whole number from 1 to {most}")
        return int(text)

    return parse


count = whole_number(9999)


_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def size(text: str) -> int:
    """Bytes: a whole number, alone or with KiB, MiB, GiB or TiB."""
    digits = text.rstrip("KMGTiB").strip()
    unit = text.strip()[len(digits) :].strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18 or unit not in _UNITS or not int(digits):
        raise ValueError("must be bytes: a whole number above 0, alone or with KiB, MiB, GiB or TiB")
    return int(digits) * _UNITS[unit]


def existing_file(text: str) -> str:
    """The path of a file that is there."""
    if not Path(text).is_file():
        raise ValueError("is not a file")
    return text


def authority_file(text: str) -> str:
    """The path of a PEM file with certificates that can be trusted."""
    try:
        ssl.create_default_context(cafile=existing_file(text))
    except (OSError, ssl.SSLError) as problem:
        raise ValueError(f"contains no PEM certificates ({type(problem).__name__})") from None
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def listed(text: str) -> tuple[str, ...]:
    """A comma list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def cluster_secret(text: str) -> str:
    """The secret between services, without white space around it: a file that holds it often ends with a newline."""
    secret = text.strip()
    if len(secret) < 8 or not secret.isascii() or not secret.isprintable():
        raise ValueError("must be at least 8 printable ASCII characters")
    return secret


def folder(text: str) -> Path:
    """A folder's path; empty is none."""
    if not text.strip():
        raise ValueError("must be a folder")
    return Path(text)


def base_url(text: str) -> str:
    """``http(s)://host[:port][/path]``, without what belongs into no base of other URLs."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        port, parts = -1, urlsplit("")
    plain = text.isascii() and text.isprintable() and not any(mark in text for mark in " \\@#?")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or not plain:
        raise ValueError("must be http:// or https:// with a host, and no user, query or fragment")
    return text.rstrip("/")


DATA_DIR = Setting("DATA_DIR", "Folder for every file that has no setting of its own.", folder, Path(".metroculus"))
"""What every service has."""
