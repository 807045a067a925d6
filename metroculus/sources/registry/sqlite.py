"""The registry of sources in one SQLite file, for one machine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metroculus.sources.errors import RegistryError
from metroculus.sources.registry.protocol import StoredEntry
from tools.migrations import SqliteMigration, Statement, TooNew, migrate_sqlite, write_ahead

MIGRATIONS = (
    SqliteMigration(
        number=1,
        readable_from=1,
        steps=(
            Statement(
                "CREATE TABLE IF NOT EXISTS kubecost_sources (cloud_account_id TEXT PRIMARY KEY,"
                " flavour TEXT NOT NULL, url TEXT NOT NULL, sealed BLOB NOT NULL, revision INTEGER NOT NULL)"
            ),
        ),
    ),
    SqliteMigration(
        number=2,
        readable_from=1,
        steps=(
            Statement(
                "CREATE TABLE IF NOT EXISTS removed_accounts"
                " (cloud_account_id TEXT PRIMARY KEY, removed_at INTEGER NOT NULL)"
            ),
        ),
    ),
)
_COLUMNS = "cloud_account_id, flavour, url, sealed, revision"
POLL_SECONDS = 0.2


class SqliteEntries:
    """Entries in a file.

    Raises:
        RegistryError: it cannot be opened; from every method: full, locked for too long, gone.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._closed = False
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=5)
            write_ahead(self._database)
            migrate_sqlite(self._database, "registry", MIGRATIONS)
        except (sqlite3.Error, OSError, TooNew) as problem:
            raise RegistryError(f"{file}: {problem}") from None

    def close(self) -> None:
        self._closed = True
        with self._lock:
            self._database.close()

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database, one caller at a time."""
        with self._lock:
            try:
                yield self._database
            except sqlite3.Error as problem:
                raise RegistryError(f"the registry of sources cannot be used: {problem}") from None

    def read(self, account: str) -> StoredEntry | None:
        with self._opened() as database:
            statement = f"SELECT {_COLUMNS} FROM kubecost_sources WHERE cloud_account_id = ?"
            row = database.execute(statement, (account,)).fetchone()
        return None if row is None else StoredEntry(**dict(zip(_COLUMNS.split(", "), row, strict=True)))

    def revision(self, account: str) -> int | None:
        with self._opened() as database:
            statement = "SELECT revision FROM kubecost_sources WHERE cloud_account_id = ?"
            row = database.execute(statement, (account,)).fetchone()
        return None if row is None else int(row[0])

    def accounts(self) -> list[str]:
        return sorted(self.entry_versions())

    def entry_versions(self) -> dict[str, int]:
        with self._opened() as database:
            return dict(database.execute("SELECT cloud_account_id, revision FROM kubecost_sources").fetchall())

    def create(self, entry: StoredEntry) -> bool:
        with self._opened() as database:
            statement = f"INSERT OR IGNORE INTO kubecost_sources ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)"
            return database.execute(statement, _row(entry)).rowcount > 0

    def write(self, entry: StoredEntry) -> None:
        with self._opened() as database:
            database.execute(
                f"INSERT OR REPLACE INTO kubecost_sources ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", _row(entry)
            )

    def replace(self, entry: StoredEntry, revision: int) -> bool:
        with self._opened() as database:
            changed = database.execute(
                "UPDATE kubecost_sources SET cloud_account_id = ?, flavour = ?, url = ?, sealed = ?, revision = ?"
                " WHERE cloud_account_id = ? AND revision = ?",
                (*_row(entry), entry.cloud_account_id, revision),
            )
            return changed.rowcount > 0

    def remove(self, account: str, at: int) -> bool:
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                gone = database.execute("DELETE FROM kubecost_sources WHERE cloud_account_id = ?", (account,)).rowcount
                if gone:
                    database.execute("INSERT OR REPLACE INTO removed_accounts VALUES (?, ?)", (account, at))
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
            return gone > 0

    def removed(self) -> dict[str, int]:
        with self._opened() as database:
            return dict(database.execute("SELECT cloud_account_id, removed_at FROM removed_accounts").fetchall())

    def mark_removed(self, account: str, at: int | None) -> None:
        with self._opened() as database:
            if at is None:
                database.execute("DELETE FROM removed_accounts WHERE cloud_account_id = ?", (account,))
            else:
                database.execute("INSERT OR REPLACE INTO removed_accounts VALUES (?, ?)", (account, at))

    def wait_for_change(self, seconds: float) -> None:
        """A file tells nobody of its changes: it is looked at some times a second."""
        ends, before = time.monotonic() + seconds, self.entry_versions()
        while not self._closed and time.monotonic() < ends and self.entry_versions() == before:
            time.sleep(min(POLL_SECONDS, max(0.0, ends - time.monotonic())))


def _row(entry: StoredEntry) -> tuple[Any, ...]:
    return entry.cloud_account_id, entry.flavour, entry.url, entry.sealed, entry.revision
