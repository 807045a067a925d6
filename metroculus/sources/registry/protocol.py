"""Which upstream an account has, wherever that is kept; credentials are sealed and never read back by callers."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from msgspec import Struct

from metroculus.cost_model.prices import CustomPrices
from metroculus.sources.errors import EntryUnreadable, RegistryError

T = TypeVar("T")

ID_LENGTH = 8
REKEY_PASSES = 5
ASK_AGAIN_SECONDS = 5.0
REMEMBERED_SECONDS = 3600.0
MARKED_SECONDS = 10 * 366 * 86400
"""A removal that was longer ago than this was marked by a clock that was wrong."""
REVISION_SECONDS = 5.0
"""For so long nobody asks again which revision an entry has; what this process changes it knows at once."""
MOST_REVISIONS = 100_000
MOST_PUSH_TOKENS = 8
"""Of one account, those that still run out included."""


class MetricsCluster(Struct, frozen=True, forbid_unknown_fields=True):
    """The label that says which cluster a series is of, and the account's value of it."""

    value: str
    label: str = "cluster_id"


class PushToken(Struct, frozen=True):
    """A credential of an account's agent, as it is kept."""

    digest: str
    """SHA-256, hexadecimal."""
    until: int | None = None
    """Until when it is good (Unix seconds); None is until it is replaced."""


class Credentials(Struct, frozen=True):
    """What is known of an upstream beside its URL, sealed as one.

    What it asks for, the authority that signed its certificate (PEM), prices where it has none, the names of the
    account's cluster there, its series among those of other clusters, and the currency that it does not tell itself.
    """

    headers: dict[str, str] = {}
    ca: str | None = None
    custom_prices: CustomPrices | None = None
    clusters: tuple[str, ...] = ()
    thanos: MetricsCluster | None = None
    currency: str = ""
    managed_by: str = ""
    """The service that wrote the entry; empty where it did not say."""
    managed_version: int = 0
    """The manager's own number: an entry is never replaced by one of the same manager with a lower number."""
    push_tokens: tuple[PushToken, ...] = ()
    """What the account's agent may show, the newest first; only of accounts that push."""


class TooManyTokens(Exception):
    """Too many of an account's push tokens are still good."""


class Outdated(Exception):
    """The entry was written already by the same manager with a higher version."""


_ENCODER = msgspec.json.Encoder()
_CREDENTIALS = msgspec.json.Decoder(Credentials)


class SourceEntry(Struct, frozen=True):
    cloud_account_id: str
    flavour: str
    url: str
    credentials: Credentials
    revision: int
    """A number that changes whenever the entry does, also where it was removed and written again."""


class StoredEntry(Struct, frozen=True):
    """An entry as it is kept, its credentials sealed."""

    cloud_account_id: str
    flavour: str
    url: str
    sealed: bytes
    revision: int


class Keyring:
    """Keys that credentials are sealed under: the first one seals, every one of them opens.

    What is sealed begins with the id of its key, so that it can be told which entries an old key still holds.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        try:
            self._keys = [Fernet(key) for key in keys]
        except ValueError:
            raise RegistryError("ENCRYPTION_KEY must be 32 bytes in URL-safe base64, or several with commas") from None
        self._all = MultiFernet(self._keys)
        self._all.decrypt(self._keys[0].encrypt(b""))  # the first use loads the library: 40 ms
        self.id = sha256(keys[0].encode()).hexdigest()[:ID_LENGTH].encode()

    def seal(self, credentials: Credentials) -> bytes:
        return self.id + b":" + self._keys[0].encrypt(_ENCODER.encode(credentials))

    def sealed_by_the_first(self, sealed: bytes) -> bool:
        return sealed.startswith(self.id + b":")

    def open(self, sealed: bytes) -> Credentials:
        """Raises: EntryUnreadable: it was sealed under none of these keys."""
        token = sealed.partition(b":")[2] or sealed  # entries of before keys had ids are the token alone
        try:
            return _CREDENTIALS.decode(self._all.decrypt(token))
        except InvalidToken:
            raise EntryUnreadable("stored credentials do not open with this ENCRYPTION_KEY") from None


class Rekeyed(Struct, frozen=True):
    """How many entries were sealed anew; the accounts of those that others sealed under another key again and again."""

    anew: int
    left: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Accounts whose entries no key opens."""


class TakenOver(Struct, frozen=True):
    """How many entries were taken over, and the accounts of those that no key opens."""

    taken: int
    unreadable: tuple[str, ...] = ()


class Entries(Protocol):
    """Where entries are kept; every method blocks and raises RegistryError."""

    def read(self, account: str) -> StoredEntry | None: ...

    def revision(self, account: str) -> int | None:
        """Of the account's entry, without reading the rest of it."""
        ...

    def accounts(self) -> list[str]:
        """Every account with an entry, in order, without reading the entries."""
        ...

    def entry_versions(self) -> dict[str, int]:
        """Every account with an entry, with a number that changes whenever the entry does; entries are not read."""
        ...

    def create(self, entry: StoredEntry) -> bool:
        """Write where the account has no entry; whether it had none."""
        ...

    def write(self, entry: StoredEntry) -> None: ...

    def replace(self, entry: StoredEntry, revision: int) -> bool:
        """Write where the entry still has this revision; whether it had."""
        ...

    def remove(self, account: str, at: int) -> bool:
        """Remove the account's entry, and keep when that was (Unix seconds); whether there was one."""
        ...

    def removed(self) -> dict[str, int]:
        """When entries were removed (Unix seconds), by account; some of these may have an entry again."""
        ...

    def mark_removed(self, account: str, at: int | None) -> None:
        """Keep that an account's entry was removed then (Unix seconds); with None forget it."""
        ...

    def wait_for_change(self, seconds: float) -> None:
        """Until some entry may have changed, at most so long."""
        ...

    def close(self) -> None: ...


class SourceRegistry:
    """The entries; every method may be called from the loop and works on a thread.

    Where the entries cannot be asked, those that were read within the hour go on.

    Args:
        clock: seconds that only rise.
        now: Unix seconds.
    """

    def __init__(
        self,
        entries: Entries,
        keys: Keyring,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.entries = entries
        self._keys = keys
        self._clock = clock
        self._now = now
        self._remembered: dict[str, tuple[float, StoredEntry | None]] = {}
        self._revisions: dict[str, tuple[float, int | None]] = {}
        """When an account's revision was seen, and what it was."""
        self._changes = 0
        self.failure: str | None = None
        """Why the entries could not be asked, the last time; None where they could."""
        self._failed_at = 0.0

    def close(self) -> None:
        self.entries.close()

    async def get(self, account: str) -> SourceEntry | None:
        """Raises: RegistryError"""
        stored = await self._read(account)
        return None if stored is None else self._opened(stored)

    async def look_up(self, accounts: Sequence[str]) -> None:
        """Read the entries of many accounts in one go, so that asking for each of them a moment later reads nothing.

        What cannot be read is left to whoever asks for it.
        """
        lacking = [one for one in accounts if self.remembered_revision(one) is None or one not in self._remembered]
        if len(lacking) < 2:
            return
        began, changes = self._clock(), self._changes

        def read() -> dict[str, StoredEntry | None]:
            found = {}
            for account in lacking:
                with suppress(EntryUnreadable):
                    found[account] = self.entries.read(account)
            return found

        for account, stored in (await self._ask(read, lambda _: {})).items():
            if changes == self._changes:
                self._remembered[account] = (began, stored)
                self._note_revision(account, began, None if stored is None else stored.revision)

    async def read_now(self, account: str) -> SourceEntry | None:
        """The entry as it is at this moment; nothing that is remembered stands in.

        Raises:
            RegistryError
        """
        stored = await asyncio.to_thread(self.entries.read, account)
        return None if stored is None else self._opened(stored)

    async def revision(self, account: str) -> int | None:
        """Of the account's entry, without opening what is sealed in it.

        Raises:
            RegistryError
        """

        known = self.remembered_revision(account)
        if known is not None:
            return known[0]
        began, changes = self._clock(), self._changes

        def remembered(failure: RegistryError) -> int | None:
            stored = self._remembered_entry(account, failure)
            return None if stored is None else stored.revision

        revision = await self._ask(lambda: self.entries.revision(account), remembered)
        if changes == self._changes:
            self._note_revision(account, began, revision)
        return revision

    def _note_revision(self, account: str, seen_at: float, revision: int | None) -> None:
        if len(self._revisions) >= MOST_REVISIONS:
            self._revisions.clear()
        self._revisions[account] = (seen_at, revision)

    def remembered_revision(self, account: str) -> tuple[int | None] | None:
        """``revision`` as it was seen a moment ago; None where it was not."""
        seen_at, revision = self._revisions.get(account, (float("-inf"), None))
        return (revision,) if self._clock() - seen_at < REVISION_SECONDS else None

    def _changed(self, account: str) -> None:
        """This process changed an entry: what is remembered of it is over."""
        self._changes += 1
        self._remembered.pop(account, None)
        self._revisions.pop(account, None)

    async def _read(self, account: str) -> StoredEntry | None:
        """The entry; where it cannot be asked for now, as it was when it was last read.

        Raises:
            RegistryError
        """

        known, remembered = self.remembered_revision(account), self._remembered.get(account)
        if known is not None and remembered is not None:
            entry = remembered[1]
            if known[0] == (None if entry is None else entry.revision):
                return entry

        def read() -> StoredEntry | None:
            stored = self.entries.read(account)
            self._remembered[account] = (self._clock(), stored)
            return stored

        return await self._ask(read, lambda failure: self._remembered_entry(account, failure))

    async def _ask(self, question: Callable[[], T], remembered: Callable[[RegistryError], T]) -> T:
        """What the entries say, or what is remembered of them while they are away.

        Raises:
            RegistryError: of a single entry; or they are away, and nothing is remembered.
        """
        if self.failure is not None and self._away():
            return remembered(RegistryError(self.failure))
        try:
            answer = await asyncio.to_thread(question)
        except EntryUnreadable:
            raise
        except RegistryError as failure:
            self.failure, self._failed_at = str(failure), self._clock()
            return remembered(failure)
        self.failure = None
        return answer

    def _away(self) -> bool:
        """Whether it failed a moment ago: then nobody waits for it again."""
        return self._clock() - self._failed_at < ASK_AGAIN_SECONDS

    def _remembered_entry(self, account: str, failure: RegistryError) -> StoredEntry | None:
        read_at, stored = self._remembered.get(account, (-REMEMBERED_SECONDS, None))
        if self._clock() - read_at >= REMEMBERED_SECONDS:
            raise failure
        return stored

    async def accounts(self) -> list[str]:
        """Every account with an entry."""
        return await asyncio.to_thread(self.entries.accounts)

    async def entry_versions(self) -> dict[str, int]:
        """Every account with an entry, and a number that changes whenever its entry does."""
        return await asyncio.to_thread(self.entries.entry_versions)

    async def put(self, account: str, flavour: str, url: str, credentials: Credentials) -> SourceEntry:
        """Write an entry under a new revision.

        Raises:
            Outdated: the same manager has written a newer one.
            RegistryError
        """
        wanted = SourceEntry(account, flavour, url, credentials, new_revision())
        try:
            entry = await asyncio.to_thread(self._write, wanted)
            await asyncio.to_thread(self.entries.mark_removed, account, None)
        finally:
            self._changed(account)
        return entry

    def _write(self, wanted: SourceEntry) -> SourceEntry:
        """The entry as it was written: one that pushes keeps the tokens that it had."""
        while True:
            try:
                known = self.entries.read(wanted.cloud_account_id)
                before = self._keys.open(known.sealed) if known is not None else Credentials()
            except EntryUnreadable:  # neither its version nor its tokens can be read
                self.entries.write(self._sealed(wanted))
                return wanted
            new = wanted.credentials
            if new.managed_by and before.managed_by == new.managed_by and before.managed_version > new.managed_version:
                raise Outdated
            kept = before.push_tokens if known is not None and known.flavour == wanted.flavour else ()
            entry = msgspec.structs.replace(wanted, credentials=msgspec.structs.replace(new, push_tokens=kept))
            stored = self._sealed(entry)
            if self.entries.create(stored) if known is None else self.entries.replace(stored, known.revision):
                return entry

    async def add_push_token(self, account: str, digest: str, good_for: int, flavour: str) -> bool:
        """Give an account that pushes a new token; those that it had are good for so many seconds more.

        Returns:
            whether there is such an account.

        Raises:
            TooManyTokens: others are still good, and none of them ends before its time.
            RegistryError
        """

        def add() -> bool:
            now = int(self._now())
            while True:
                known = self.entries.read(account)
                if known is None or known.flavour != flavour:
                    return False
                entry = self._opened(known)
                older = (
                    PushToken(one.digest, now + good_for if one.until is None else one.until)
                    for one in entry.credentials.push_tokens
                )
                tokens = (PushToken(digest), *(one for one in older if one.until is None or one.until > now))
                if len(tokens) > MOST_PUSH_TOKENS:
                    raise TooManyTokens
                changed = msgspec.structs.replace(
                    entry,
                    credentials=msgspec.structs.replace(entry.credentials, push_tokens=tokens),
                    revision=new_revision(),
                )
                if self.entries.replace(self._sealed(changed), known.revision):
                    return True

        try:
            return await asyncio.to_thread(add)
        finally:
            self._changed(account)

    def _sealed(self, entry: SourceEntry) -> StoredEntry:
        sealed = self._keys.seal(entry.credentials)
        return StoredEntry(entry.cloud_account_id, entry.flavour, entry.url, sealed, entry.revision)

    async def page(self, after: str, limit: int) -> tuple[list[SourceEntry], str | None]:
        """Entries of the accounts that come after one, in order, and the last account where there are more of them.

        One that no key opens is left out; ``rekey`` names those.

        Raises:
            RegistryError
        """

        def read() -> tuple[list[SourceEntry], str | None]:
            accounts = [one for one in self.entries.accounts() if one > after]
            found = []
            for account in accounts[:limit]:
                with suppress(EntryUnreadable):
                    stored = self.entries.read(account)
                    if stored is not None:
                        found.append(self._opened(stored))
            return found, accounts[limit - 1] if len(accounts) > limit else None

        return await asyncio.to_thread(read)

    async def delete(self, account: str) -> bool:
        """Whether there was an entry."""
        try:
            return await asyncio.to_thread(self.entries.remove, account, int(self._now()))
        finally:
            self._changed(account)

    async def removed_for(self, seconds: float) -> list[str]:
        """The accounts that have had no entry for so long.

        A mark whose account has an entry again is dropped, also where a program wrote the entry that knows no marks.
        One with a time that cannot be (of a clock that was wrong) is of now.

        Raises:
            RegistryError
        """

        def read() -> list[str]:
            now, here, found = int(self._now()), self.entries.entry_versions(), []
            for account, at in sorted(self.entries.removed().items()):
                if account in here:
                    self.entries.mark_removed(account, None)
                elif not now - MARKED_SECONDS <= at <= now:
                    self.entries.mark_removed(account, now)
                elif at < now - seconds:
                    found.append(account)
            return found

        return await asyncio.to_thread(read)

    async def is_there(self, account: str) -> bool:
        """Whether an account has an entry at this moment.

        Raises:
            RegistryError
        """
        return await asyncio.to_thread(self.entries.revision, account) is not None

    async def purged(self, account: str) -> None:
        """The history of a removed account is gone.

        Raises:
            RegistryError
        """
        await asyncio.to_thread(self.entries.mark_removed, account, None)

    def rekey(self) -> Rekeyed:
        """Seal every entry under the first key; one that no key opens is left, and named.

        Entries that others write meanwhile under another key are seen by the next pass; as long as a service does
        that, some are left.
        """
        anew, unreadable = 0, set[str]()
        left: list[str] = []
        for _ in range(REKEY_PASSES):
            left = []
            for account in self.entries.accounts():
                try:
                    stored = self.entries.read(account)
                    if stored is None or self._keys.sealed_by_the_first(stored.sealed):
                        continue
                    sealed = self._keys.seal(self._keys.open(stored.sealed))
                except EntryUnreadable:
                    unreadable.add(account)
                    continue
                left.append(account)
                changed = msgspec.structs.replace(stored, sealed=sealed, revision=new_revision())
                anew += self.entries.replace(changed, stored.revision)
            if not left:
                break
        return Rekeyed(anew, tuple(left), tuple(sorted(unreadable)))

    def take_over(self, others: Entries) -> TakenOver:
        """Take the entries of another place that are lacking here, sealed as they are."""
        taken, unreadable = 0, []
        for account in others.accounts():
            try:
                stored = others.read(account)
                if stored is not None:
                    self._keys.open(stored.sealed)
                    taken += self.entries.create(stored)
            except EntryUnreadable:
                unreadable.append(account)
        return TakenOver(taken, tuple(unreadable))

    def _opened(self, stored: StoredEntry) -> SourceEntry:
        credentials = self._keys.open(stored.sealed)
        return SourceEntry(stored.cloud_account_id, stored.flavour, stored.url, credentials, stored.revision)


def new_revision() -> int:
    """Drawn at random, so that an entry that was removed and written again never has the one that it had."""
    return secrets.randbits(62)


KEY_FILE = "encryption.key"


def load_keys(data_dir: Path, given: str | None) -> Keyring:
    """The keys given, by commas; else a key file of mode 0600, made where there is none.

    Raises:
        RegistryError
    """
    if given is not None:
        return Keyring([key.strip() for key in given.split(",") if key.strip()] or [""])
    file = data_dir / KEY_FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(Fernet.generate_key())
    except FileExistsError:
        pass
    except OSError as problem:
        raise RegistryError(f"{data_dir}: {problem.strerror}") from None
    return Keyring(file.read_text().split() or [""])
