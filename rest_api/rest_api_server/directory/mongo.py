"""The directory in MongoDB: for many instances of the service. Uses no transactions, TTL or partial indexes.

Where two requests could race, a unique index decides; every write is acknowledged by a majority. A cluster that is no
more gives its name free by taking its id in ``live_name``, which is what has to be unique.
"""

from __future__ import annotations

import hmac
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import msgspec
from pymongo import ASCENDING, DESCENDING, MongoClient
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError, InvalidURI, OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

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
from tools.migrations import TooNew, to_apply

Document = dict[str, Any]
DATABASE = "metroculus"
TIMEOUTS: dict[str, Any] = {"timeoutMS": 4000, "serverSelectionTimeoutMS": 3000, "connectTimeoutMS": 3000}
"""For one call, finding a server and waiting for its majority together; the URL may say others."""


@dataclass(frozen=True)
class MongoMigration:
    """A numbered migration: indexes as ``(collection, keys, unique)``; what is there already stays."""

    number: int
    readable_from: int
    indexes: tuple[tuple[str, tuple[str, ...], bool], ...]


MIGRATIONS = (
    MongoMigration(
        number=1,
        readable_from=1,
        indexes=(
            ("users", ("name",), True),
            ("roles", ("user_id",), False),
            ("tokens", ("digest",), True),
            ("tokens", ("user_id",), False),
            ("clusters", ("organization_id", "live_name"), True),
            ("resources", ("cluster_id", "fetched_at"), True),
        ),
    ),
    MongoMigration(number=2, readable_from=1, indexes=(("sign_ins", ("expires_at",), False),)),
    MongoMigration(number=3, readable_from=1, indexes=(("sign_ins", ("token_id", "kind", "expires_at"), False),)),
)


class MongoDirectory:
    """See ``Directory``. Opens without a server; each call that needs one says so where it is away.

    Raises:
        DirectoryError: a URL that is none.
    """

    def __init__(self, url: str) -> None:
        try:
            said = {name.lower() for name, _ in parse_qsl(urlsplit(url).query)}
            timeouts = {name: value for name, value in TIMEOUTS.items() if name.lower() not in said}
            self._client: MongoClient[Document] = MongoClient(url, **timeouts)
            name = self._client.get_default_database(DATABASE).name
        except (InvalidURI, PyMongoError, ValueError) as problem:
            raise DirectoryError(f"DIRECTORY_URL cannot be used: {type(problem).__name__}") from None
        self._database = database = self._client.get_database(name, write_concern=WriteConcern("majority"))
        self._organizations: Collection[Document] = database["organizations"]
        self._users: Collection[Document] = database["users"]
        self._roles: Collection[Document] = database["roles"]
        self._tokens: Collection[Document] = database["tokens"]
        self._sign_ins: Collection[Document] = database["sign_ins"]
        self._clusters: Collection[Document] = database["clusters"]
        self._resources: Collection[Document] = database["resources"]
        self._lock = threading.Lock()
        self._migrations: Collection[Document] = database["schema_migrations"]
        self._migrated = False

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Failures of the server as ``DirectoryError``; the first call that reaches it migrates the database."""
        try:
            if not self._migrated:
                self._migrate()
            yield
        except TooNew as problem:
            raise DirectoryError(f"the directory cannot be used: {problem}") from None
        except DuplicateKeyError:
            raise
        except PyMongoError as problem:
            if "UNIQUE constraint failed" in str(problem):  # FerretDB's word for it in an update, without the number
                raise DuplicateKeyError(str(problem)) from None
            code = f" (code {problem.code})" if isinstance(problem, OperationFailure) and problem.code else ""
            raise DirectoryError(f"the directory cannot be used: {type(problem).__name__}{code}") from None

    def _migrate(self) -> None:
        with self._lock:
            if self._migrated:
                return
            applied = {one["_id"]: one["readable_from"] for one in self._migrations.find()}
            wanted = to_apply(applied, [migration.number for migration in MIGRATIONS])
            for migration in MIGRATIONS:
                if migration.number not in wanted:
                    continue
                for name, keys, unique in migration.indexes:
                    self._database[name].create_index([(key, ASCENDING) for key in keys], unique=unique)
                self._migrations.update_one(
                    {"_id": migration.number}, {"$set": {"readable_from": migration.readable_from}}, upsert=True
                )
            self._migrated = True

    def create_organization(self, name: str) -> Organization:
        made = Organization(str(uuid4()), name)
        with self._asking():
            self._organizations.insert_one({"_id": made.id, "name": name, "deleted": False})
        return made

    def organization(self, organization_id: str) -> Organization | None:
        with self._asking():
            found = self._organizations.find_one({"_id": organization_id, "deleted": False})
        return Organization(found["_id"], found["name"]) if found else None

    def organizations(self) -> list[Organization]:
        with self._asking():
            found = list(self._organizations.find({"deleted": False}))
        return sorted((Organization(one["_id"], one["name"]) for one in found), key=lambda one: (one.name, one.id))

    def delete_organization(self, organization_id: str) -> bool:
        with self._asking():
            done = self._organizations.update_one(
                {"_id": organization_id, "deleted": False}, {"$set": {"deleted": True}}
            )
        return done.modified_count > 0

    def create_user(self, name: str) -> User:
        made = User(str(uuid4()), name)
        try:
            with self._asking():
                self._users.insert_one({"_id": made.id, "name": name, "disabled": False})
        except DuplicateKeyError:
            raise AlreadyExists(f"a user named {name!r} exists") from None
        return made

    def users(self) -> list[User]:
        with self._asking():
            found = list(self._users.find())
        return sorted((User(one["_id"], one["name"], one["disabled"]) for one in found), key=lambda one: one.name)

    def disable_user(self, name: str) -> None:
        with self._asking():
            if not self._users.update_one({"name": name}, {"$set": {"disabled": True}}).matched_count:
                raise Missing(f"there is no user {name!r}")

    def set_role(self, user_name: str, organization_id: str, role: Role | None) -> None:
        user = self._user_id(user_name)
        if self.organization(organization_id) is None:
            raise Missing(f"there is no organization {organization_id}")
        key = {"_id": f"{user} {organization_id}"}
        if role is None:
            with self._asking():
                self._roles.delete_one(key)
            return
        change = {"$set": {"user_id": user, "organization_id": organization_id, "role": int(role)}}

        def put() -> None:
            with self._asking():
                self._roles.update_one(key, change, upsert=True)

        try:
            put()
        except DuplicateKeyError:  # of two that race for a new document, the loser finds it there
            put()

    def _user_id(self, name: str) -> str:
        with self._asking():
            found = self._users.find_one({"name": name})
        if found is None:
            raise Missing(f"there is no user {name!r}")
        return str(found["_id"])

    def create_token(
        self,
        user_name: str,
        expires_at: int | None,
        organizations: Sequence[str] | None = None,
        read_only: bool = False,
    ) -> tuple[str, str]:
        token, token_id = new_token(), str(uuid4())
        made = {
            "_id": token_id,
            "user_id": self._user_id(user_name),
            "digest": digest(token.encode()),
            "expires_at": expires_at,
            "revoked": False,
            "organizations": None if organizations is None else list(organizations),
            "read_only": read_only,
        }
        with self._asking():
            self._tokens.insert_one(made)
        return token_id, token

    def tokens(self, user_name: str) -> list[Token]:
        user = self._user_id(user_name)
        with self._asking():
            found = list(self._tokens.find({"user_id": user}))
        made = [
            Token(one["_id"], user_name, one["expires_at"], one["revoked"], _only(one), one["read_only"])
            for one in found
        ]
        return sorted(made, key=lambda one: one.id)

    def revoke_token(self, token_id: str) -> bool:
        with self._asking():
            return self._tokens.update_one({"_id": token_id}, {"$set": {"revoked": True}}).matched_count > 0

    def create_sign_in(self, token_id: str, kind: SignIn, expires_at: int) -> str:
        secret = new_token()
        with self._asking():
            if self._tokens.find_one({"_id": token_id}) is None:
                raise Missing(f"there is no token {token_id}")
            made = {"_id": digest(secret.encode()).hex(), "kind": kind, "token_id": token_id, "expires_at": expires_at}
            self._sign_ins.insert_one(made)
            self._sign_ins.delete_many({"expires_at": {"$lte": expires_at - FORGOTTEN_SECONDS}})
            newest = self._sign_ins.find({"token_id": token_id, "kind": kind}).sort("expires_at", -1)
            oldest = [one["_id"] for one in newest.skip(SIGN_INS_OF_A_TOKEN) if one["_id"] != made["_id"]]
            if oldest:
                self._sign_ins.delete_many({"_id": {"$in": oldest}})
        return secret

    def session(self, secret: bytes, now: float) -> Identity | None:
        with self._asking():
            found = self._sign_ins.find_one({"_id": digest(secret).hex(), "kind": "session"})
        if found is None or found["expires_at"] > now + LONGEST_SESSION_SECONDS:
            return None
        return self._signed_in(found, now)

    def use_code(self, code: bytes, now: float) -> Identity | None:
        which = {"_id": digest(code).hex(), "kind": "code"}
        with self._asking():
            found = self._sign_ins.find_one(which)
            if found is None or not self._sign_ins.delete_one(which).deleted_count:  # who deletes it has used it
                return None
        return self._signed_in(found, now)

    def end_session(self, secret: bytes) -> bool:
        with self._asking():
            return self._sign_ins.delete_one({"_id": digest(secret).hex(), "kind": "session"}).deleted_count > 0

    def _signed_in(self, found: Document | None, now: float) -> Identity | None:
        if found is None or found["expires_at"] <= now:
            return None
        return self._identity({"_id": found["token_id"]}, now)

    def identity(self, token: bytes, now: float) -> Identity | None:
        return self._identity({"digest": digest(token)}, now)

    def _identity(self, which: Document, now: float) -> Identity | None:
        """Of the token that is meant, where it is good."""
        with self._asking():
            found = self._tokens.find_one(which)
            offered = which.get("digest")
            if found is None or (offered is not None and not hmac.compare_digest(bytes(found["digest"]), offered)):
                return None
            if found["revoked"] or (found["expires_at"] is not None and found["expires_at"] <= now):
                return None
            user = self._users.find_one({"_id": found["user_id"], "disabled": False})
            if user is None:
                return None
            roles = {one["organization_id"]: Role(one["role"]) for one in self._roles.find({"user_id": user["_id"]})}
        return Identity(user["_id"], user["name"], found["_id"], narrowed(roles, _only(found)), found["read_only"])

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
        values = msgspec.structs.asdict(made)
        values["_id"] = values.pop("id")
        try:
            with self._asking():
                self._clusters.insert_one(values | {"live_name": name, "type": kind, "deleted": False})
        except DuplicateKeyError:
            raise AlreadyExists(f"a cluster named {name!r} exists") from None
        return made

    def _found(self, **which: Any) -> list[Cluster]:
        """Clusters of organizations that are there."""
        with self._asking():
            found = list(self._clusters.find({"type": KUBERNETES, "deleted": False} | which))
            of = sorted({one["organization_id"] for one in found})
            live = {one["_id"] for one in self._organizations.find({"_id": {"$in": of}, "deleted": False})}
        return [_cluster(one) for one in found if one["organization_id"] in live]

    def cluster(self, cluster_id: str) -> Cluster | None:
        return next(iter(self._found(_id=cluster_id)), None)

    def clusters(self, organization_id: str) -> list[Cluster]:
        return sorted(self._found(organization_id=organization_id), key=lambda one: (one.name, one.id))

    def linked_clusters(self) -> list[Cluster]:
        return sorted(self._found(state="linked"), key=lambda one: one.id)

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
        values = {"name": name, "live_name": name, "flavour": flavour, "url": url, "state": state}
        which: Document = {"_id": cluster_id, "deleted": False}
        if revision == 0:  # of before there were revisions
            which["$or"] = [{"revision": 0}, {"revision": {"$exists": False}}]
        elif revision is not None:
            which["revision"] = revision
        try:
            with self._asking():
                done = self._clusters.update_one(which, {"$set": values, "$inc": {"revision": 1}})
        except DuplicateKeyError:
            raise AlreadyExists(f"a cluster named {name!r} exists") from None
        found = self.cluster(cluster_id)
        if found is None:
            raise Missing(f"there is no cluster {cluster_id}")
        if not done.matched_count:
            raise Changed(f"cluster {cluster_id} was changed meanwhile")
        return found

    def cluster_ids(self) -> dict[str, bool]:
        with self._asking():
            live = {one["_id"] for one in self._organizations.find({"deleted": False}, {"_id": 1})}
            found = list(self._clusters.find({"type": KUBERNETES}, {"organization_id": 1, "deleted": 1}))
        return {one["_id"]: not one["deleted"] and one["organization_id"] in live for one in found}

    def delete_cluster(self, cluster_id: str) -> bool:
        gone = {"deleted": True, "live_name": cluster_id}
        with self._asking():
            done = self._clusters.update_one({"_id": cluster_id, "deleted": False}, {"$set": gone})
            self._resources.delete_many({"cluster_id": cluster_id})
        return done.modified_count > 0

    def put_resources(self, cluster_id: str, resources: Resources) -> None:
        if self.cluster(cluster_id) is None:
            return
        # One opaque value: names out of a cluster are never keys here, and a document holds at most 16 MB.
        body = zlib.compress(msgspec.json.encode(resources))
        row = {"_id": str(uuid4()), "cluster_id": cluster_id, "fetched_at": resources.fetched_at, "body": body}
        with suppress(DuplicateKeyError), self._asking():
            self._resources.insert_one(row)
        with self._asking():  # the newest is read, whoever wrote last: no two writers race for one document
            newest = self._newest_resources(cluster_id)
            if newest is not None:
                self._resources.delete_many({"cluster_id": cluster_id, "fetched_at": {"$lt": newest["fetched_at"]}})

    def resources(self, cluster_id: str) -> Resources | None:
        with self._asking():
            found = self._newest_resources(cluster_id)
        return RESOURCES.decode(zlib.decompress(found["body"])) if found else None

    def _newest_resources(self, cluster_id: str) -> Document | None:
        return self._resources.find_one({"cluster_id": cluster_id}, sort=[("fetched_at", DESCENDING)])


def _cluster(found: Document) -> Cluster:
    names = ("organization_id", "name", "flavour", "url", "state")
    return Cluster(id=found["_id"], revision=found.get("revision", 0), **{name: found[name] for name in names})


def _only(token: Document) -> tuple[str, ...] | None:
    organizations = token["organizations"]
    return None if organizations is None else tuple(organizations)
