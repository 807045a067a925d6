"""The directory in one SQLite file: the default, for one machine."""

from __future__ import annotations

import hmac
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from rest_api.rest_api_server.directory.model import (
    FORGOTTEN_SECONDS,
    KUBERNETES,
    LONGEST_SESSION_SECONDS,
    RESOURCES,
    SIGN_INS_OF_A_TOKEN,
    AlreadyExists,
    Changed,
    Cluster,
    DirectoryError,
    Flavour,
    Identity,
    LinkState,
    Missing,
    Organization,
    Resources,
    Role,
    SignIn,
    Token,
    User,
    digest,
    narrowed,
    new_token,
)
from tools.migrations import AddColumn, SqliteMigration, Statement, TooNew, migrate_sqlite, write_ahead

MIGRATIONS = (
    SqliteMigration(
        number=1,
        readable_from=1,
        steps=(
            Statement("PRAGMA user_version = 1"),  # by which programs before numbered migrations know it
            AddColumn("organizations", "deleted", "INTEGER NOT NULL DEFAULT 0"),
            AddColumn("tokens", "organizations", "TEXT"),
            AddColumn("tokens", "read_only", "INTEGER NOT NULL DEFAULT 0"),
            Statement(
                "CREATE TABLE IF NOT EXISTS organizations"
                " (id TEXT PRIMARY KEY, name TEXT NOT NULL, deleted INTEGER NOT NULL DEFAULT 0)"
            ),
            Statement(
                "CREATE TABLE IF NOT EXISTS users"
                " (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, disabled INTEGER NOT NULL DEFAULT 0)"
            ),
            Statement(
                "CREATE TABLE IF NOT EXISTS roles (user_id TEXT NOT NULL REFERENCES users (id),"
                " organization_id TEXT NOT NULL REFERENCES organizations (id), role INTEGER NOT NULL,"
                " PRIMARY KEY (user_id, organization_id))"
            ),
            Statement(
                "CREATE TABLE IF NOT EXISTS tokens (id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users (id),"
                " digest BLOB NOT NULL UNIQUE, expires_at INTEGER, revoked INTEGER NOT NULL DEFAULT 0,"
                " organizations TEXT, read_only INTEGER NOT NULL DEFAULT 0)"
            ),
            Statement(
                "CREATE TABLE IF NOT EXISTS clusters (id TEXT PRIMARY KEY,"
                " organization_id TEXT NOT NULL REFERENCES organizations (id), name TEXT NOT NULL,"
                " flavour TEXT NOT NULL, url TEXT NOT NULL, state TEXT NOT NULL,"
                " type TEXT NOT NULL DEFAULT 'kubernetes_cnr', deleted INTEGER NOT NULL DEFAULT 0)"
            ),
            Statement(
                "CREATE UNIQUE INDEX IF NOT EXISTS cluster_names ON clusters (organization_id, name) WHERE deleted = 0"
            ),
            Statement(
                "CREATE TABLE IF NOT EXISTS resources (cluster_id TEXT PRIMARY KEY REFERENCES clusters (id),"
                " fetched_at INTEGER NOT NULL, body BLOB NOT NULL)"
            ),
        ),
    ),
    SqliteMigration(
        number=2, readable_from=1, steps=(AddColumn("clusters", "revision", "INTEGER NOT NULL DEFAULT 0"),)
    ),
    SqliteMigration(
        number=3,
        readable_from=1,
        steps=(
            Statement(
                "CREATE TABLE IF NOT EXISTS sign_ins (digest BLOB PRIMARY KEY, kind TEXT NOT NULL,"
                " token_id TEXT NOT NULL REFERENCES tokens (id), expires_at INTEGER NOT NULL)"
            ),
        ),
    ),
    SqliteMigration(
        number=4,
        readable_from=1,
        steps=(
            Statement("CREATE INDEX IF NOT EXISTS sign_ins_of_tokens ON sign_ins (token_id, kind, expires_at)"),
            Statement("CREATE INDEX IF NOT EXISTS sign_in_ends ON sign_ins (expires_at)"),
        ),
    ),
)
"""Files that were made before migrations had numbers are brought on by the first, too."""

_CLUSTER = (
    "SELECT id, organization_id, name, flavour, url, state, revision FROM clusters"
    f" WHERE deleted = 0 AND type = '{KUBERNETES}'"
    " AND organization_id IN (SELECT id FROM organizations WHERE deleted = 0)"
)


class SqliteDirectory:
    """See ``Directory``. Who reads never waits for who writes, in this process or in another."""

    def __init__(self, file: Path) -> None:
        self._reading, self._writing = threading.Lock(), threading.RLock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            self._writer, self._reader = (
                sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=5) for _ in range(2)
            )
            write_ahead(self._writer)
            self._writer.execute("PRAGMA foreign_keys=ON")
            migrate_sqlite(self._writer, "directory", MIGRATIONS)
        except (OSError, sqlite3.Error, TooNew) as problem:
            raise DirectoryError(f"{file}: {problem}") from None

    def close(self) -> None:
        for lock, database in ((self._reading, self._reader), (self._writing, self._writer)):
            with lock:
                database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._opened(self._writing, self._writer) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    @staticmethod
    @contextmanager
    def _opened(lock: AbstractContextManager[Any], database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        """A connection, one caller at a time; a broken constraint is the caller's to name."""
        with lock:
            try:
                yield database
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as problem:
                raise DirectoryError(f"the directory cannot be used: {problem}") from None

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._opened(self._reading, self._reader) as database:
            return database.execute(query, values).fetchall()

    def _write(self, statement: str, *values: Any) -> None:
        with self._transaction() as database:
            database.execute(statement, values)

    def create_organization(self, name: str) -> Organization:
        made = Organization(str(uuid4()), name)
        self._write("INSERT INTO organizations (id, name) VALUES (?, ?)", made.id, made.name)
        return made

    def organization(self, organization_id: str) -> Organization | None:
        rows = self._rows("SELECT id, name FROM organizations WHERE id = ? AND deleted = 0", organization_id)
        return Organization(*rows[0]) if rows else None

    def organizations(self) -> list[Organization]:
        rows = self._rows("SELECT id, name FROM organizations WHERE deleted = 0 ORDER BY name, id")
        return [Organization(*row) for row in rows]

    def delete_organization(self, organization_id: str) -> bool:
        with self._transaction() as database:
            statement = "UPDATE organizations SET deleted = 1 WHERE id = ? AND deleted = 0"
            return database.execute(statement, (organization_id,)).rowcount > 0

    def create_user(self, name: str) -> User:
        made = User(str(uuid4()), name)
        try:
            self._write("INSERT INTO users (id, name) VALUES (?, ?)", made.id, made.name)
        except sqlite3.IntegrityError:
            raise AlreadyExists(f"a user named {name!r} exists") from None
        return made

    def users(self) -> list[User]:
        rows = self._rows("SELECT id, name, disabled FROM users ORDER BY name")
        return [User(id, name, bool(disabled)) for id, name, disabled in rows]

    def disable_user(self, name: str) -> None:
        with self._transaction() as database:
            if not database.execute("UPDATE users SET disabled = 1 WHERE name = ?", (name,)).rowcount:
                raise Missing(f"there is no user {name!r}")

    def set_role(self, user_name: str, organization_id: str, role: Role | None) -> None:
        with self._transaction() as database:
            user = self._user_id(database, user_name)
            known = database.execute("SELECT 1 FROM organizations WHERE id = ? AND deleted = 0", (organization_id,))
            if known.fetchone() is None:
                raise Missing(f"there is no organization {organization_id}")
            if role is None:
                database.execute("DELETE FROM roles WHERE user_id = ? AND organization_id = ?", (user, organization_id))
            else:
                database.execute("INSERT OR REPLACE INTO roles VALUES (?, ?, ?)", (user, organization_id, int(role)))

    @staticmethod
    def _user_id(database: sqlite3.Connection, name: str) -> str:
        row = database.execute("SELECT id FROM users WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise Missing(f"there is no user {name!r}")
        return str(row[0])

    def create_token(
        self,
        user_name: str,
        expires_at: int | None,
        organizations: Sequence[str] | None = None,
        read_only: bool = False,
    ) -> tuple[str, str]:
        token, token_id = new_token(), str(uuid4())
        only = None if organizations is None else msgspec.json.encode(organizations).decode()
        with self._transaction() as database:
            user = self._user_id(database, user_name)
            database.execute(
                "INSERT INTO tokens (id, user_id, digest, expires_at, organizations, read_only)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (token_id, user, digest(token.encode()), expires_at, only, read_only),
            )
        return token_id, token

    def tokens(self, user_name: str) -> list[Token]:
        with self._opened(self._reading, self._reader) as database:
            user = self._user_id(database, user_name)
            rows = database.execute(
                "SELECT id, expires_at, revoked, organizations, read_only FROM tokens WHERE user_id = ? ORDER BY id",
                (user,),
            ).fetchall()
        return [
            Token(id, user_name, expires_at, bool(revoked), _listed(organizations), bool(read_only))
            for id, expires_at, revoked, organizations, read_only in rows
        ]

    def revoke_token(self, token_id: str) -> bool:
        with self._transaction() as database:
            return database.execute("UPDATE tokens SET revoked = 1 WHERE id = ?", (token_id,)).rowcount > 0

    def create_sign_in(self, token_id: str, kind: SignIn, expires_at: int) -> str:
        secret = new_token()
        try:
            with self._transaction() as database:
                database.execute(
                    "INSERT INTO sign_ins (digest, kind, token_id, expires_at) VALUES (?, ?, ?, ?)",
                    (digest(secret.encode()), kind, token_id, expires_at),
                )
                database.execute("DELETE FROM sign_ins WHERE expires_at <= ?", (expires_at - FORGOTTEN_SECONDS,))
                database.execute(
                    "DELETE FROM sign_ins WHERE digest IN (SELECT digest FROM sign_ins WHERE token_id = ? AND kind = ?"
                    " ORDER BY expires_at DESC, rowid DESC LIMIT -1 OFFSET ?)",
                    (token_id, kind, SIGN_INS_OF_A_TOKEN),
                )
        except sqlite3.IntegrityError:
            raise Missing(f"there is no token {token_id}") from None
        return secret

    def session(self, secret: bytes, now: float) -> Identity | None:
        rows = self._rows(
            "SELECT token_id FROM sign_ins WHERE digest = ? AND kind = 'session' AND expires_at BETWEEN ? AND ?",
            digest(secret), int(now) + 1, int(now) + LONGEST_SESSION_SECONDS,
        )  # fmt: skip
        return self._identity("tokens.id", rows[0][0], now) if rows else None

    def use_code(self, code: bytes, now: float) -> Identity | None:
        if not self._rows("SELECT 1 FROM sign_ins WHERE digest = ? AND kind = 'code'", digest(code)):
            return None  # who guesses does not write
        with self._transaction() as database:
            row = database.execute(
                "DELETE FROM sign_ins WHERE digest = ? AND kind = 'code' RETURNING token_id, expires_at",
                (digest(code),),
            ).fetchone()
        return self._identity("tokens.id", row[0], now) if row is not None and row[1] > now else None

    def end_session(self, secret: bytes) -> bool:
        with self._transaction() as database:
            statement = "DELETE FROM sign_ins WHERE digest = ? AND kind = 'session'"
            return database.execute(statement, (digest(secret),)).rowcount > 0

    def identity(self, token: bytes, now: float) -> Identity | None:
        return self._identity("tokens.digest", digest(token), now)

    def _identity(self, column: str, offered: bytes | str, now: float) -> Identity | None:
        """Of the token that has this in a column, where it is good."""
        with self._opened(self._reading, self._reader) as database:
            row = database.execute(
                f"SELECT {column}, tokens.expires_at, tokens.revoked, tokens.id, organizations, read_only,"
                " users.id, users.name, users.disabled"
                f" FROM tokens JOIN users ON users.id = tokens.user_id WHERE {column} = ?",
                (offered,),
            ).fetchone()
            if row is None or not hmac.compare_digest(row[0], offered):
                return None
            expires_at, revoked, token_id, organizations, read_only, user_id, name, disabled = row[1:]
            if revoked or disabled or (expires_at is not None and expires_at <= now):
                return None
            found = database.execute("SELECT organization_id, role FROM roles WHERE user_id = ?", (user_id,)).fetchall()
        roles = {organization: Role(role) for organization, role in found}
        return Identity(user_id, name, token_id, narrowed(roles, _listed(organizations)), bool(read_only))

    def create_cluster(
        self,
        organization_id: str,
        name: str,
        flavour: Flavour,
        url: str,
        cluster_id: str | None = None,
        kind: str = KUBERNETES,
    ) -> Cluster:
        made = Cluster(cluster_id or str(uuid4()), organization_id, name, flavour, url, "linking")
        try:
            self._write(
                "INSERT INTO clusters (id, organization_id, name, flavour, url, state, type)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                made.id,
                organization_id,
                name,
                flavour,
                url,
                made.state,
                kind,
            )
        except sqlite3.IntegrityError:
            raise AlreadyExists(f"a cluster named {name!r} exists") from None
        return made

    def cluster(self, cluster_id: str) -> Cluster | None:
        rows = self._rows(f"{_CLUSTER} AND id = ?", cluster_id)
        return Cluster(*rows[0]) if rows else None

    def clusters(self, organization_id: str) -> list[Cluster]:
        rows = self._rows(f"{_CLUSTER} AND organization_id = ? ORDER BY name, id", organization_id)
        return [Cluster(*row) for row in rows]

    def linked_clusters(self) -> list[Cluster]:
        return [Cluster(*row) for row in self._rows(f"{_CLUSTER} AND state = 'linked' ORDER BY id")]

    def update_cluster(
        self,
        cluster_id: str,
        *,
        name: str,
        flavour: Flavour,
        url: str,
        state: LinkState,
        revision: int | None = None,
    ) -> Cluster:
        try:
            with self._transaction() as database:
                changed = database.execute(
                    "UPDATE clusters SET name = ?, flavour = ?, url = ?, state = ?, revision = revision + 1"
                    " WHERE id = ? AND deleted = 0 AND (? IS NULL OR revision = ?)",
                    (name, flavour, url, state, cluster_id, revision, revision),
                ).rowcount
                row = database.execute(f"{_CLUSTER} AND id = ?", (cluster_id,)).fetchone()
        except sqlite3.IntegrityError:
            raise AlreadyExists(f"a cluster named {name!r} exists") from None
        if row is None:
            raise Missing(f"there is no cluster {cluster_id}")
        if not changed:
            raise Changed(f"cluster {cluster_id} was changed meanwhile")
        return Cluster(*row)

    def cluster_ids(self) -> dict[str, bool]:
        rows = self._rows(
            "SELECT id, deleted = 0 AND organization_id IN (SELECT id FROM organizations WHERE deleted = 0)"
            f" FROM clusters WHERE type = '{KUBERNETES}'"
        )
        return {id: bool(live) for id, live in rows}

    def delete_cluster(self, cluster_id: str) -> bool:
        with self._transaction() as database:
            database.execute("DELETE FROM resources WHERE cluster_id = ?", (cluster_id,))
            statement = "UPDATE clusters SET deleted = 1 WHERE id = ? AND deleted = 0"
            return database.execute(statement, (cluster_id,)).rowcount > 0

    def put_resources(self, cluster_id: str, resources: Resources) -> None:
        with self._transaction() as database:
            database.execute(
                "INSERT INTO resources SELECT id, ?, ? FROM clusters WHERE id = ? AND deleted = 0"
                " ON CONFLICT (cluster_id) DO UPDATE SET fetched_at = excluded.fetched_at, body = excluded.body"
                " WHERE excluded.fetched_at > resources.fetched_at",
                (resources.fetched_at, msgspec.json.encode(resources), cluster_id),
            )

    def resources(self, cluster_id: str) -> Resources | None:
        rows = self._rows("SELECT body FROM resources WHERE cluster_id = ?", cluster_id)
        return RESOURCES.decode(rows[0][0]) if rows else None


_NAMES = msgspec.json.Decoder(tuple[str, ...])


def _listed(organizations: str | None) -> tuple[str, ...] | None:
    return None if organizations is None else _NAMES.decode(organizations)
