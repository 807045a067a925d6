"""Where the REST API is and with which token it is asked: from flags, the environment, or what ``login`` has kept."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

DEFAULT_URL = "http://127.0.0.1:8999"
DEFAULT_PROFILE = "default"


class ProfileError(Exception):
    """What is kept cannot be read, or nothing is."""


class Profile(Struct, frozen=True):
    """One REST API, as one user sees it."""

    url: str
    token: str
    ca: str | None = None


def profiles_file(environment: Mapping[str, str]) -> Path:
    """Where profiles are kept: for this user alone."""
    config = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".config")
    return Path(config) / "metroculus" / "profiles.yaml"


def save(name: str, profile: Profile, environment: Mapping[str, str]) -> Path:
    """Keep a profile, whatever others there are; the file is readable by its owner alone.

    Raises:
        ProfileError
    """
    file = profiles_file(environment)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two that log in at once keep both
            kept = _kept(file)
            kept[name] = {"url": profile.url, "token": profile.token} | ({"ca": profile.ca} if profile.ca else {})
            handle, beside = tempfile.mkstemp(dir=file.parent)  # readable by its owner alone
            with os.fdopen(handle, "w") as opened:
                yaml.safe_dump(kept, opened)
            Path(beside).replace(file)
    except OSError as problem:
        raise ProfileError(f"{file}: {problem.strerror}") from None
    return file


def find(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Profile:
    """The profile to use: each part from a flag, else the environment, else what is kept.

    Args:
        flags: ``url``, ``token_file``, ``ca``, ``profile``.

    Raises:
        ProfileError: there is no token.
    """
    name = flags.get("profile") or environment.get("METROCULUS_PROFILE") or DEFAULT_PROFILE
    kept = _kept(profiles_file(environment)).get(name)
    if kept is None and name != DEFAULT_PROFILE:
        raise ProfileError(f"there is no profile {name}: metroculus login --profile {name}")
    kept = kept or {}
    url = flags.get("url") or environment.get("METROCULUS_REST_URL") or kept.get("url") or DEFAULT_URL
    url = url.rstrip("/")
    given = flags.get("token_file") or environment.get("METROCULUS_TOKEN_FILE")
    token = read_token(Path(given)) if given else environment.get("METROCULUS_TOKEN")
    if token is None and kept.get("url") == url:
        token = kept.get("token")  # a token is told to nobody but the service that it was given for
    if token is None:
        raise ProfileError(f"no token for {url}: metroculus login --url {url}, or set METROCULUS_TOKEN")
    return Profile(
        url,
        usable(token, given or "the token"),
        flags.get("ca") or environment.get("METROCULUS_REST_CA") or kept.get("ca"),
    )


def usable(token: str, where: str) -> str:
    """A token that can be sent.

    Raises:
        ProfileError
    """
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ProfileError(f"{where} is {'empty' if not token else 'no token'}: rest-api token create makes one")
    return token


def read_token(file: Path) -> str:
    """Raises: ProfileError"""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise ProfileError(f"{file}: {getattr(problem, 'strerror', None) or 'is no text'}") from None


def _is_profile(one: object) -> bool:
    return isinstance(one, dict) and all(isinstance(text, str) for text in one.values())


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    try:
        found = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is no YAML"
        raise ProfileError(f"{file} cannot be read ({why}): remove it and log in again") from None
    profiles = found or {}
    if not isinstance(profiles, dict) or not all(_is_profile(one) for one in profiles.values()):
        raise ProfileError(f"{file} holds no profiles: remove it and log in again")
    return profiles
