"""The directory and the registry of every earlier version open, keep what is in them, and are never made unreadable."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from pymongo import MongoClient

from metroculus.sources.errors import RegistryError
from metroculus.sources.registry import sqlite as registry_file
from metroculus.sources.registry.protocol import SourceRegistry, StoredEntry, load_keys
from metroculus.sources.registry.sqlite import SqliteEntries
from rest_api.rest_api_server.directory import mongo as directory_mongo
from rest_api.rest_api_server.directory import sqlite as directory_file
from rest_api.rest_api_server.directory.model import DirectoryError, Role
from rest_api.rest_api_server.directory.mongo import MongoDirectory
from rest_api.rest_api_server.directory.sqlite import SqliteDirectory
from tests.support import ACCOUNT
from tools.migrations import AddColumn, SqliteMigration, Statement, migrate_sqlite

STORES = Path(__file__).parent.parent / "data" / "stores"
TOKEN = b"fUoE_OZRphW9Sn8HL7zFcCxwmxBQSXyxKKrUXcikX4k"
KEY = "Zm9yIHR3byB3b3JrZXJzIG9mIHR3byBtYWNoaW5lcyE="
RELEASED = {
    "directory, SQLite": {1: "7a0418aac3720454", 2: "1fe8d76ab22008dd", 3: "cf92c558a521a881", 4: "820a4ddb53b953d1"},
    "directory, MongoDB": {1: "ad78ec7806c5ef3a", 2: "e910a07df0e24144", 3: "0a15fc7c7d422883"},
    "registry, SQLite": {1: "057f207c13c64749", 2: "609fc2f8f748c749"},
}
"""SHA-256 of each migration that was released."""
MIGRATIONS = {
    "directory, SQLite": directory_file.MIGRATIONS,
    "directory, MongoDB": directory_mongo.MIGRATIONS,
    "registry, SQLite": registry_file.MIGRATIONS,
}


NUMBERS = [(one.number, one.readable_from) for one in directory_file.MIGRATIONS]


def restored(name: str, folder: Path) -> Path:
    file = folder / f"{name}.sqlite"
    with sqlite3.connect(file) as database:
        database.executescript((STORES / f"{name}.sql").read_text())
    database.close()
    return file


def applied(file: Path) -> list[tuple[int, int]]:
    database = sqlite3.connect(file)
    try:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE name LIKE '%_migrations'")]
        return [row for table in tables for row in database.execute(f"SELECT number, readable_from FROM {table}")]
    finally:
        database.close()


@pytest.mark.parametrize("kind", RELEASED)
def test_a_released_migration_is_frozen(kind):
    found = {one.number: sha256(msgspec.json.encode(one)).hexdigest()[:16] for one in MIGRATIONS[kind]}
    assert found == RELEASED[kind]
    assert [one.number for one in MIGRATIONS[kind]] == list(range(1, len(found) + 1))
    assert all(1 <= one.readable_from <= one.number for one in MIGRATIONS[kind])


@pytest.mark.parametrize("version", ["directory-0", "directory-1", "directory-2"])
def test_a_directory_of_every_earlier_version_keeps_who_may_what(version, tmp_path):
    file = restored(version, tmp_path)
    for _ in range(2):  # the second time there is nothing to do
        directory = SqliteDirectory(file)
        identity = directory.identity(TOKEN, 0)
        assert identity is not None and list(identity.roles.values()) == [Role.ADMIN] and not identity.read_only
        (organization,) = directory.organizations()
        (cluster,) = directory.clusters(organization.id)
        assert (organization.name, cluster.name, cluster.state) == ("acme", "prod", "linked")
        assert directory.resources(cluster.id).nodes == [{"name": "n1"}]
        assert {one.name: one.disabled for one in directory.users()} == {"ann": False, "bob": True}
        directory.close()
    assert applied(file) == NUMBERS


def test_a_registry_of_before_numbers_keeps_its_credentials(tmp_path):
    registry = SourceRegistry(SqliteEntries(restored("registry-1", tmp_path)), load_keys(tmp_path, KEY))
    entry = asyncio.run(registry.get(ACCOUNT))
    registry.close()
    assert entry is not None and entry.credentials.headers == {"Authorization": "Bearer abc"}


@pytest.fixture(params=["directory, SQLite", "directory, MongoDB", "registry, SQLite"])
def store(request, tmp_path) -> Iterator[tuple]:
    """Opens and uses one kind of store; and what a program that is newer writes down in it."""
    if request.param == "directory, MongoDB":
        url = request.getfixturevalue("mongo").url(f"m{uuid4().hex}")

        def use() -> None:
            directory = MongoDirectory(url)
            try:
                directory.create_user(uuid4().hex)
            finally:
                directory.close()

        def note(number: int, readable_from: int) -> None:
            with MongoClient(url) as client:
                client.get_default_database()["schema_migrations"].insert_one(
                    {"_id": number, "readable_from": readable_from}
                )

        yield use, note, DirectoryError
        return
    file = tmp_path / "store.sqlite"
    kind, error = {
        "directory, SQLite": (SqliteDirectory, DirectoryError),
        "registry, SQLite": (SqliteEntries, RegistryError),
    }[request.param]

    series = request.param.partition(",")[0]

    def note_in_file(number: int, readable_from: int) -> None:
        with sqlite3.connect(file) as database:
            database.execute(f"INSERT INTO {series}_migrations VALUES (?, ?)", (number, readable_from))
        database.close()

    yield lambda: kind(file).close(), note_in_file, error


def test_a_newer_programs_store_is_used_while_it_allows_it_and_refused_with_what_to_do_after(store):
    use, note, error = store
    use()
    note(8, 1)
    use()
    note(9, 9)
    with pytest.raises(error, match=r"schema is number 9, which programs from number 9 on can use; .* upgrade it"):
        use()


NEXT = SqliteMigration(
    number=NUMBERS[-1][0] + 1,
    readable_from=1,
    steps=(
        AddColumn("users", "mail", "TEXT"),
        *(Statement(f"CREATE TABLE IF NOT EXISTS t{n} (id TEXT)") for n in range(50)),
    ),
)
KILLED = """
import os, signal, sqlite3, sys
from tests.contract.test_file_migrations import NEXT
from rest_api.rest_api_server.directory.sqlite import MIGRATIONS
from tools import migrations
file, dies_at = sys.argv[1], int(sys.argv[2])
count = 0
apply = migrations.Statement.apply
def counted(self, database):
    global count
    count += 1
    if count == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    apply(self, database)
migrations.Statement.apply = counted
database = sqlite3.connect(file, isolation_level=None)
migrations.migrate_sqlite(database, "registry", (*MIGRATIONS, NEXT))
"""


@pytest.mark.parametrize("dies_at", [1, 25, 50])
def test_a_migration_that_is_killed_half_way_left_nothing_and_is_done_by_the_next(dies_at, tmp_path):
    file = restored("directory-1", tmp_path)
    SqliteDirectory(file).close()
    died = subprocess.run([sys.executable, "-c", KILLED, str(file), str(dies_at)], cwd=STORES.parent.parent.parent)
    assert died.returncode == -signal.SIGKILL
    SqliteDirectory(file).close()
    assert applied(file) == NUMBERS
    database = sqlite3.connect(file, isolation_level=None)
    migrate_sqlite(database, "directory", (*directory_file.MIGRATIONS, NEXT))
    assert database.execute("SELECT name, mail FROM users WHERE name = 'ann'").fetchall() == [("ann", None)]
    database.close()
    directory = SqliteDirectory(file)  # a program one number older goes on beside it
    assert directory.identity(TOKEN, 0) is not None
    directory.create_user("carl")
    directory.close()


def test_many_that_open_one_file_at_once_migrate_it_once(tmp_path):
    file = restored("directory-0", tmp_path)
    failures: list[BaseException] = []

    def open_it() -> None:
        try:
            SqliteDirectory(file).close()
        except BaseException as failure:  # noqa: BLE001  (whatever it is, the test names it)
            failures.append(failure)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == [] and applied(file) == NUMBERS


def test_one_file_holds_the_directory_and_the_registry(tmp_path):
    file = tmp_path / "one.sqlite"
    directory = SqliteDirectory(file)
    organization = directory.create_organization("acme")
    entries = SqliteEntries(file)
    entries.write(StoredEntry("a", "kubecost", "http://kubecost", b"sealed", 1))
    directory.close(), entries.close()
    again, theirs = SqliteEntries(file), SqliteDirectory(file)
    assert again.accounts() == ["a"] and [one.id for one in theirs.organizations()] == [organization.id]
    again.close(), theirs.close()
