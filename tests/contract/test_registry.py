"""One contract for the registry of sources, in a SQLite file and in a real etcd; keys, and moving from one to the other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet

from metroculus.config import MetroculusConfig
from metroculus.dependencies import open_registry
from metroculus.sources.errors import RegistryError
from metroculus.sources.registry.etcd import PREFIX, REMOVED, EtcdEntries
from metroculus.sources.registry.protocol import (
    KEY_FILE,
    Credentials,
    Entries,
    Keyring,
    Rekeyed,
    SourceRegistry,
    StoredEntry,
    TakenOver,
)
from metroculus.sources.registry.sqlite import SqliteEntries
from optscale_client.config_client import EtcdConfig
from tests.conftest import free_port
from tests.support import BIN, command, until

FIRST, SECOND = Fernet.generate_key().decode(), Fernet.generate_key().decode()
Open = Callable[[], Entries]


@pytest.fixture(params=["sqlite", "etcd"])
def open_entries(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same entries again and again, as several processes would."""
    opened: list[Entries] = []
    etcd = request.getfixturevalue("etcd_of_module") if request.param == "etcd" else None
    if etcd is not None:
        for prefix in (PREFIX, REMOVED):
            EtcdConfig(etcd.url).client().delete_prefix(prefix)

    def make() -> Entries:
        made: Entries = EtcdEntries(EtcdConfig(etcd.url)) if etcd else SqliteEntries(tmp_path / "sources.sqlite")
        opened.append(made)
        return made

    yield make
    for one in opened:
        one.close()


def registry(entries: Entries, *keys: str) -> SourceRegistry:
    return SourceRegistry(entries, Keyring(keys or (FIRST,)))


def entry(account: str, revision: int = 1, url: str = "http://kubecost:9090") -> StoredEntry:
    return StoredEntry(account, "kubecost", url, b"sealed", revision)


def test_what_was_written_is_read_by_everybody_and_gone_when_removed(open_entries: Open) -> None:
    async def use() -> None:
        ours, theirs = registry(open_entries()), registry(open_entries())
        account = str(uuid4())
        assert await ours.get(account) is None and await ours.revision(account) is None
        secret = Credentials({"Authorization": "Bearer s3cret"}, None, None)
        written = await ours.put(account, "kubecost", "http://é.example/ü?'\"", secret)
        assert await theirs.get(account) == written
        assert await theirs.revision(account) == written.revision
        assert await theirs.accounts() == [account]
        again = await theirs.put(account, "opencost", "http://opencost", Credentials())
        assert again.revision != written.revision and await ours.get(account) == again
        assert await ours.delete(account) and not await theirs.delete(account)
        assert await theirs.get(account) is None and await theirs.accounts() == []
        anew = await ours.put(account, "opencost", "http://opencost", Credentials())
        assert anew.revision != again.revision

    asyncio.run(use())


def test_a_removed_account_is_told_until_it_is_purged_or_there_again(open_entries: Open) -> None:
    ours, theirs = open_entries(), open_entries()
    for account in ("a", "b", "c"):
        ours.write(entry(account))
    assert not ours.remove("absent", 5) and ours.removed() == {}
    assert ours.remove("a", 10) and ours.remove("b", 20) and theirs.removed() == {"a": 10, "b": 20}
    assert not theirs.remove("a", 99), "the first removal is the one that counts"
    theirs.mark_removed("b", None)
    theirs.mark_removed("never", None)
    assert ours.removed() == {"a": 10} and ours.accounts() == ["c"]


def test_the_grace_counts_from_the_last_removal_by_whatever_program_and_clock(open_entries: Open) -> None:
    entries, now = open_entries(), [2_000_000_000.9]
    known = SourceRegistry(open_entries(), Keyring((FIRST,)), now=lambda: now[0])

    async def use() -> None:
        start = int(now[0])
        for account in ("a", "b", "c", "past", "future"):
            entries.write(entry(account))
        assert entries.remove("a", start - 100) and entries.remove("b", start - 50)
        assert await known.removed_for(60) == ["a"] and await known.removed_for(200) == []
        assert await known.delete("c") and not await known.is_there("c")
        now[0] += 61
        assert await known.removed_for(60) == ["a", "b", "c"]
        await known.put("a", "push", "", Credentials())
        assert await known.is_there("a") and await known.removed_for(60) == ["b", "c"] and "a" not in entries.removed()
        entries.write(entry("b", 2))  # by a program that knows no marks, which then removes it again
        assert await known.removed_for(60) == ["c"]
        entries.remove("b", int(now[0]))
        assert await known.removed_for(60) == ["c"]
        await known.purged("c")
        assert entries.remove("past", 5) and entries.remove("future", int(now[0]) + 10**7)
        assert await known.removed_for(60) == []
        now[0] += 61
        assert await known.removed_for(60) == ["b", "future", "past"], "marked by wrong clocks, they count from now"

    asyncio.run(use())


def test_credentials_are_never_kept_in_the_clear(open_entries: Open) -> None:
    async def use() -> StoredEntry | None:
        ours = registry(open_entries())
        await ours.put("a", "kubecost", "http://kubecost", Credentials({"Authorization": "Bearer s3cret"}))
        return ours.entries.read("a")

    stored = asyncio.run(use())
    assert stored is not None and b"s3cret" not in stored.sealed


def test_of_writers_that_race_for_one_revision_one_wins(open_entries: Open) -> None:
    entries = [open_entries() for _ in range(4)]
    entries[0].write(entry("a", 1))
    with ThreadPoolExecutor(8) as racing:
        won = list(racing.map(lambda n: entries[n % 4].replace(entry("a", n + 2), 1), range(8)))
    assert won.count(True) == 1
    assert entries[0].revision("a") == won.index(True) + 2
    assert not entries[0].replace(entry("absent", 2), 1)


def test_a_change_ends_the_waiting_and_silence_ends_it_too(open_entries: Open) -> None:
    ours, theirs = open_entries(), open_entries()
    ours.accounts(), theirs.accounts()
    began = time.monotonic()
    ours.wait_for_change(0.5)
    assert 0.4 <= time.monotonic() - began < 5
    writer = threading.Timer(0.5, theirs.write, (entry("a"),))
    writer.start()
    began = time.monotonic()
    ours.wait_for_change(20)
    assert time.monotonic() - began < 15
    writer.join()
    assert ours.accounts() == ["a"] == list(ours.entry_versions()) and ours.revision("a") == 1


def test_every_key_opens_and_rekey_leaves_the_first_alone(open_entries: Open) -> None:
    async def use() -> None:
        before, both = registry(open_entries(), FIRST), registry(open_entries(), SECOND, FIRST)
        for account in ("a", "b", "c"):
            await before.put(account, "kubecost", "http://kubecost", Credentials({"X": account}))
        await both.put("d", "kubecost", "http://kubecost", Credentials({"X": "d"}))
        assert both.rekey() == Rekeyed(3) and both.rekey() == Rekeyed(0)
        after = registry(open_entries(), SECOND)
        assert [(await after.get(account)).credentials.headers["X"] for account in "abcd"] == list("abcd")
        with pytest.raises(RegistryError, match="do not open"):
            await before.get("a")

    asyncio.run(use())


def test_entries_of_before_keys_had_ids_open_and_are_sealed_anew(open_entries: Open) -> None:
    token = Fernet(FIRST).encrypt(b'{"headers":{"X":"old"}}')
    entries = open_entries()
    entries.write(StoredEntry("a", "kubecost", "http://kubecost", token, 7))
    ours = registry(entries)
    assert asyncio.run(ours.get("a")).credentials.headers == {"X": "old"}
    assert ours.rekey() == Rekeyed(1) and asyncio.run(ours.get("a")).credentials.headers == {"X": "old"}


def test_an_entry_that_no_key_opens_is_named_and_stops_nobody_else(open_entries: Open) -> None:
    async def use() -> None:
        foreign, ours = (
            registry(open_entries(), Fernet.generate_key().decode()),
            registry(open_entries(), SECOND, FIRST),
        )
        await foreign.put("a-lost", "kubecost", "http://kubecost", Credentials())
        await registry(open_entries(), FIRST).put("b-good", "kubecost", "http://kubecost", Credentials())
        assert ours.rekey() == Rekeyed(1, unreadable=("a-lost",))
        with pytest.raises(RegistryError, match="do not open"):
            await ours.get("a-lost")
        assert await ours.get("b-good") is not None

    asyncio.run(use())


def test_what_others_seal_under_an_older_key_meanwhile_is_sealed_anew_or_told(open_entries: Open) -> None:
    entries = open_entries()
    older, ours = registry(open_entries(), FIRST, SECOND), registry(entries, SECOND, FIRST)
    asyncio.run(older.put("a", "kubecost", "http://kubecost", Credentials()))
    replaced, again = entries.replace, [3]

    def beside(entry: StoredEntry, revision: int) -> bool:
        """A service with the old list writes after each of our writes, for a while."""
        done = replaced(entry, revision)
        if again[0]:
            again[0] -= 1
            asyncio.run(older.put("a", "kubecost", "http://kubecost", Credentials()))
        return done

    entries.replace = beside  # type: ignore[method-assign]
    assert ours.rekey() == Rekeyed(4)
    again[0] = 99
    asyncio.run(older.put("a", "kubecost", "http://kubecost", Credentials()))
    assert ours.rekey().left == ("a",)


def test_taking_over_never_replaces_what_came_meanwhile(open_entries: Open, tmp_path: Path) -> None:
    entries = open_entries()
    assert entries.create(entry("a", 1)) and not entries.create(entry("a", 2))
    assert entries.revision("a") == 1


def test_entries_that_were_read_go_on_while_the_registry_is_away(open_entries: Open) -> None:
    async def use() -> None:
        now = [0.0]
        ours = SourceRegistry(open_entries(), Keyring((FIRST,)), lambda: now[0])
        written = await ours.put("a", "kubecost", "http://kubecost", Credentials())
        assert await ours.get("a") == written and await ours.get("b") is None
        asked = []

        def away(account: str) -> None:
            asked.append(account)
            raise RegistryError("it is away")

        ours.entries.read = ours.entries.revision = away  # type: ignore[method-assign,assignment]
        assert await ours.get("a") == written and await ours.revision("a") == written.revision
        assert await ours.get("b") is None and ours.failure == "it is away"
        assert len(asked) == 1, "everybody waits for what is away"
        with pytest.raises(RegistryError):
            await ours.get("c")
        now[0] = 4000.0
        with pytest.raises(RegistryError):
            await ours.get("a")

    asyncio.run(use())


def test_what_was_changed_here_is_not_remembered_as_it_was(open_entries: Open) -> None:
    async def use() -> None:
        ours = registry(open_entries())
        for account in ("a", "b"):
            await ours.put(account, "kubecost", "http://of-before", Credentials())
            assert await ours.get(account) is not None
        await ours.put("a", "kubecost", "http://of-now", Credentials())
        await ours.delete("b")

        def away(account: str) -> None:
            raise RegistryError("it is away")

        ours.entries.read = away  # type: ignore[method-assign,assignment]
        for account in ("a", "b"):
            with pytest.raises(RegistryError):
                await ours.get(account)

    asyncio.run(use())


def test_a_file_is_taken_over_and_what_is_there_already_is_kept(open_entries: Open, tmp_path: Path) -> None:
    async def use() -> None:
        file = registry(SqliteEntries(tmp_path / "of-before.sqlite"))
        for account in ("a", "b"):
            await file.put(account, "kubecost", "http://of-before", Credentials({"X": account}))
        ours = registry(open_entries())
        await ours.put("a", "kubecost", "http://of-now", Credentials())
        assert ours.take_over(file.entries) == TakenOver(1) and ours.take_over(file.entries) == TakenOver(0)
        assert (await ours.get("a")).url == "http://of-now"
        assert (await ours.get("b")).credentials.headers == {"X": "b"}

    asyncio.run(use())


def test_an_etcd_that_is_away_is_told_and_used_again_when_it_is_back(etcd) -> None:
    entries = EtcdEntries(EtcdConfig(etcd.url))
    entries.write(entry("a"))
    etcd.stop()
    with pytest.raises(RegistryError, match="etcd"):
        entries.read("a")
    etcd.start()

    def back() -> bool:
        try:
            return entries.revision("a") == 1
        except RegistryError:
            return False

    assert until(back)
    entries.close()


@pytest.mark.parametrize("keys", [("short",), ("",), (FIRST, "nonsense")])
def test_keys_that_are_none_are_refused(keys) -> None:
    with pytest.raises(RegistryError, match="ENCRYPTION_KEY must be"):
        Keyring(keys)


def test_the_commands_move_a_file_into_etcd_and_seal_anew(etcd, tmp_path) -> None:
    import subprocess

    async def fill() -> None:
        await registry(SqliteEntries(tmp_path / "sources.sqlite")).put(
            str(uuid4()), "kubecost", "http://kubecost:9090", Credentials({"X": "y"})
        )

    asyncio.run(fill())
    environment = {"REGISTRY_URL": etcd.url, "ENCRYPTION_KEY": f"{SECOND},{FIRST}", "PATH": "/usr/bin"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [BIN / "metroculus", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "1 copied" in run("import-sources", str(tmp_path / "sources.sqlite"))
    assert "1 encrypted again" in run("rekey") and "0 encrypted again" in run("rekey")
    refused = subprocess.run(
        [BIN / "metroculus", "rekey"], env={"REGISTRY_URL": etcd.url, "PATH": "/usr/bin"}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 1 and "needs ENCRYPTION_KEY" in refused.stderr


def test_two_services_on_two_folders_see_the_same_clusters(etcd, tmp_path) -> None:
    import requests

    account, headers = str(uuid4()), {"Secret": "a-secret-of-two"}
    environment = {"REGISTRY_URL": etcd.url, "ENCRYPTION_KEY": FIRST, "CLUSTER_SECRET": "a-secret-of-two",
                   "UPSTREAM_ALLOW": "127.0.0.0/8"}  # fmt: skip

    def serve(name: str):
        listen = f"127.0.0.1:{free_port()}"
        return command(tmp_path / name, "metroculus", "serve", "--metroculus-listen", listen, **environment)

    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    with serve("one") as (one, _), serve("two") as (two, _):
        path = f"/metroculus/v2/kubecost_sources/{account}"
        body = {"flavour": "kubecost", "url": "http://127.0.0.1:9090"}
        assert requests.put(one + path, json=body, headers=headers, timeout=10).status_code == 200
        assert requests.get(two + path, headers=headers, timeout=10).json()["url"] == body["url"]
        assert requests.delete(two + path, headers=headers, timeout=10).status_code == 200
        assert requests.get(one + path, headers=headers, timeout=10).status_code == 404


def test_a_key_that_was_lost_stops_the_start_and_no_new_one_is_made(tmp_path: Path) -> None:
    config = MetroculusConfig(cluster_secret="a" * 20, data_dir=tmp_path)
    first = open_registry(config)
    asyncio.run(first.put("a", "kubecost", "http://kubecost", Credentials({"Authorization": "Bearer s3cret"})))
    first.close()
    key = (tmp_path / KEY_FILE).read_text()
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(RegistryError, match=r"encryption\.key is missing"):
        open_registry(config)
    assert not (tmp_path / KEY_FILE).exists()
    (tmp_path / KEY_FILE).write_text(key)
    again = open_registry(config)
    assert asyncio.run(again.get("a")) is not None
    again.close()
