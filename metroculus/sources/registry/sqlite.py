"""Which upstream an account has: one SQLite file; credentials are encrypted and never read back by callers."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.fernet import Fernet, InvalidToken
from msgspec import Struct

from metroculus.cost_model.prices import CustomPrices
from metroculus.sources.errors import RegistryError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS kubecost_sources (
    cloud_account_id TEXT PRIMARY KEY,
    flavour TEXT NOT NULL,
    url TEXT NOT NULL,
    sealed BLOB NOT NULL,
    revision INTEGER NOT NULL
)
"""


class Credentials(Struct, frozen=True):
    """What an upstream asks for, the authority that signed its certificate (PEM), prices where it has none."""

    headers: dict[str, str] = {}
    ca: str | None = None
    custom_prices: CustomPrices | None = None


_CREDENTIALS = msgspec.json.Decoder(Credentials)


class SourceEntry(Struct, frozen=True):
    cloud_account_id: str
    flavour: str
    url: str
    credentials: Credentials
    revision: int
    """Drawn anew at each write: an entry that was removed and written again is another one."""


def load_key(data_dir: Path, given: str | None) -> bytes:
    """The encryption key: the one given, else a key file of mode 0600, made when there is none.

    Raises:
        RegistryError
    """
    if given is not None:
        key = given.encode()
    else:
        file = data_dir / "encryption.key"
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(Fernet.generate_key())
        except FileExistsError:
            pass
        except OSError as problem:
            raise RegistryError(f"{data_dir}: {problem.strerror}") from None
        key = file.read_bytes()
    try:
        Fernet(key)
    except ValueError:
        raise RegistryError("ENCRYPTION_KEY must be 32 bytes in URL-safe base64") from None
    return key


class SourceRegistry:
    """The entries; every method may be called from the loop and works on a thread."""

    def __init__(self, file: Path, key: bytes) -> None:
        self._fernet = Fernet(key)
        self._lock = threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=5)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(_SCHEMA)
        except sqlite3.Error as problem:
            raise RegistryError(f"{file}: {problem}") from None

    def close(self) -> None:
        self._database.close()

    async def get(self, account: str) -> SourceEntry | None:
        return await asyncio.to_thread(self._get, account)

    async def revision(self, account: str) -> int | None:
        """Of the account's entry, without opening what is sealed in it."""
        return await asyncio.to_thread(self._revision, account)

    async def accounts(self) -> list[str]:
        """Every account with an entry."""
        return await asyncio.to_thread(self._accounts)

    async def put(self, account: str, flavour: str, url: str, credentials: Credentials) -> SourceEntry:
        return await asyncio.to_thread(self._put, account, flavour, url, credentials)

    async def delete(self, account: str) -> bool:
        """Whether there was an entry."""
        return await asyncio.to_thread(self._delete, account)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database, one caller at a time.

        Raises:
            RegistryError: full, locked for too long, gone.
        """
        with self._lock:
            try:
                yield self._database
            except sqlite3.Error as problem:
                raise RegistryError(f"the registry of sources cannot be used: {problem}") from None

    def _get(self, account: str) -> SourceEntry | None:
        with self._opened() as database:
            row = database.execute(
                "SELECT cloud_account_id, flavour, url, sealed, revision FROM kubecost_sources"
                " WHERE cloud_account_id = ?",
                (account,),
            ).fetchone()
        if row is None:
            return None
        try:
            credentials = _CREDENTIALS.decode(self._fernet.decrypt(row[3]))
        except InvalidToken:
            raise RegistryError("stored credentials do not open with this ENCRYPTION_KEY") from None
        return SourceEntry(row[0], row[1], row[2], credentials, row[4])

    def _revision(self, account: str) -> int | None:
        with self._opened() as database:
            row = database.execute(
                "SELECT revision FROM kubecost_sources WHERE cloud_account_id = ?", (account,)
            ).fetchone()
        return None if row is None else row[0]

    def _accounts(self) -> list[str]:
        with self._opened() as database:
            rows = database.execute("SELECT cloud_account_id FROM kubecost_sources ORDER BY 1").fetchall()
        return [row[0] for row in rows]

    def _put(self, account: str, flavour: str, url: str, credentials: Credentials) -> SourceEntry:
        sealed = self._fernet.encrypt(msgspec.json.encode(credentials))
        revision = secrets.randbits(62)
        with self._opened() as database:
            database.execute(
                "INSERT INTO kubecost_sources VALUES (?, ?, ?, ?, ?) ON CONFLICT (cloud_account_id) DO UPDATE SET"
                " flavour = excluded.flavour, url = excluded.url, sealed = excluded.sealed,"
                " revision = excluded.revision",
                (account, flavour, url, sealed, revision),
            )
        return SourceEntry(account, flavour, url, credentials, revision)

    def _delete(self, account: str) -> bool:
        with self._opened() as database:
            return database.execute("DELETE FROM kubecost_sources WHERE cloud_account_id = ?", (account,)).rowcount > 0
