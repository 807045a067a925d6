"""Which upstream an account has, wherever that is kept; credentials are sealed and never read back by callers."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from msgspec import Struct

from metroculus.cost_model.prices import CustomPrices
from metroculus.sources.errors import RegistryError

ID_LENGTH = 8


class Credentials(Struct, frozen=True):
    """What an upstream asks for, the authority that signed its certificate (PEM), prices where it has none."""

    headers: dict[str, str] = {}
    ca: str | None = None
    custom_prices: CustomPrices | None = None


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
        self.id = sha256(keys[0].encode()).hexdigest()[:ID_LENGTH].encode()

    def seal(self, credentials: Credentials) -> bytes:
        return self.id + b":" + self._keys[0].encrypt(_ENCODER.encode(credentials))

    def sealed_by_the_first(self, sealed: bytes) -> bool:
        return sealed.startswith(self.id + b":")

    def open(self, sealed: bytes) -> Credentials:
        """Raises: RegistryError: it was sealed under none of these keys."""
        token = sealed.partition(b":")[2] or sealed  # entries of before keys had ids are the token alone
        try:
            return _CREDENTIALS.decode(self._all.decrypt(token))
        except InvalidToken:
            raise RegistryError("stored credentials do not open with this ENCRYPTION_KEY") from None


class Entries(Protocol):
    """Where entries are kept; every method blocks and raises RegistryError."""

    def read(self, account: str) -> StoredEntry | None: ...

    def revision(self, account: str) -> int | None:
        """Of the account's entry, without reading the rest of it."""
        ...

    def revisions(self) -> Mapping[str, int]:
        """Of every account with an entry."""
        ...

    def write(self, entry: StoredEntry) -> None: ...

    def replace(self, entry: StoredEntry, revision: int) -> bool:
        """Write where the entry still has this revision; whether it had."""
        ...

    def remove(self, account: str) -> bool:
        """Whether there was an entry."""
        ...

    def wait_for_change(self, seconds: float) -> None:
        """Until some entry may have changed, at most so long."""
        ...

    def close(self) -> None: ...


class SourceRegistry:
    """The entries; every method may be called from the loop and works on a thread."""

    def __init__(self, entries: Entries, keys: Keyring) -> None:
        self.entries = entries
        self._keys = keys

    def close(self) -> None:
        self.entries.close()

    async def get(self, account: str) -> SourceEntry | None:
        """Raises: RegistryError"""
        stored = await asyncio.to_thread(self.entries.read, account)
        return None if stored is None else self._opened(stored)

    async def revision(self, account: str) -> int | None:
        """Of the account's entry, without opening what is sealed in it."""
        return await asyncio.to_thread(self.entries.revision, account)

    async def accounts(self) -> list[str]:
        """Every account with an entry."""
        return sorted(await asyncio.to_thread(self.entries.revisions))

    async def put(self, account: str, flavour: str, url: str, credentials: Credentials) -> SourceEntry:
        """Write an entry under a new revision."""
        stored = StoredEntry(account, flavour, url, self._keys.seal(credentials), new_revision())
        await asyncio.to_thread(self.entries.write, stored)
        return SourceEntry(account, flavour, url, credentials, stored.revision)

    async def delete(self, account: str) -> bool:
        """Whether there was an entry."""
        return await asyncio.to_thread(self.entries.remove, account)

    def rekey(self) -> int:
        """Seal every entry under the first key; how many were not.

        An entry that changes meanwhile was written under the first key by whoever changed it.
        """
        anew = 0
        for account in self.entries.revisions():
            stored = self.entries.read(account)
            if stored is None or self._keys.sealed_by_the_first(stored.sealed):
                continue
            sealed = self._keys.seal(self._keys.open(stored.sealed))
            changed = msgspec.structs.replace(stored, sealed=sealed, revision=new_revision())
            anew += self.entries.replace(changed, stored.revision)
        return anew

    def take_over(self, others: Entries) -> int:
        """Take the entries of another place that are lacking here, sealed as they are; how many."""
        known = self.entries.revisions()
        taken = 0
        for account in others.revisions():
            stored = others.read(account)
            if stored is not None and account not in known:
                self._keys.open(stored.sealed)
                self.entries.write(stored)
                taken += 1
        return taken

    def _opened(self, stored: StoredEntry) -> SourceEntry:
        credentials = self._keys.open(stored.sealed)
        return SourceEntry(stored.cloud_account_id, stored.flavour, stored.url, credentials, stored.revision)


def new_revision() -> int:
    """Drawn at random, so that an entry that was removed and written again never has the one that it had."""
    return secrets.randbits(62)


def load_keys(data_dir: Path, given: str | None) -> Keyring:
    """The keys given, by commas; else a key file of mode 0600, made where there is none.

    Raises:
        RegistryError
    """
    if given is not None:
        return Keyring([key.strip() for key in given.split(",") if key.strip()] or [""])
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
    return Keyring(file.read_text().split() or [""])
