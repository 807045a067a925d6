"""One suite for every directory: SQLite, a server that speaks MongoDB's protocol, and wherever MONGO_URL points."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_api.rest_api_server.directory.connect import open_directory
from rest_api.rest_api_server.directory.model import (
    FORGOTTEN_SECONDS,
    AlreadyExists,
    Changed,
    Directory,
    DirectoryError,
    Missing,
    Resources,
    Role,
    narrowed,
)
from tests.conftest import free_port

QUOTA = {"namespace": "shop", "name": "q", "resource": "requests.cpu", "hard": 8.0, "used": None}
HOSTILE = ["$where", "a.b.c", '{"$ne": null}', "x' OR '1'='1", "\u202ename", "a" * 128]


@pytest.fixture
def directory(directory_url):
    made = open_directory(directory_url)
    yield made
    made.close()


def people(directory: Directory, role: Role = Role.MANAGER):
    organization = directory.create_organization("o")
    user = directory.create_user("u")
    directory.set_role("u", organization.id, role)
    return organization, user


def test_a_token_is_its_users_until_it_expires_or_is_revoked(directory: Directory):
    organization, user = people(directory)
    token_id, token = directory.create_token("u", 1000)
    identity = directory.identity(token.encode(), 999)
    assert identity.user_id == user.id and identity.roles == {organization.id: Role.MANAGER}
    assert identity.token_id == token_id and not identity.read_only
    assert directory.identity(token.encode(), 1000) is None
    assert directory.identity(b"\xff\xfe", 0) is None and directory.identity(b"", 0) is None
    assert directory.revoke_token(token_id) and not directory.revoke_token("nothing")
    assert directory.identity(token.encode(), 0) is None


def test_a_session_is_as_good_as_its_token(directory: Directory):
    organization, user = people(directory)
    token_id, token = directory.create_token("u", 1000)
    secret = directory.create_sign_in(token_id, "session", 900).encode()
    identity = directory.session(secret, 899)
    assert identity == directory.identity(token.encode(), 899) and identity.user_id == user.id
    assert directory.session(secret, 900) is None and directory.use_code(secret, 0) is None
    for nothing in (b"", b"\xff", token.encode(), token_id.encode()):
        assert directory.session(nothing, 0) is None and not directory.end_session(nothing)
    assert directory.identity(secret, 0) is None, "a session is no token"
    late = directory.create_sign_in(token_id, "session", 5000).encode()
    assert directory.session(late, 999) is not None and directory.session(late, 1000) is None
    directory.set_role("u", organization.id, None)
    assert directory.session(secret, 0).roles == {}
    assert directory.end_session(late) and not directory.end_session(late) and directory.session(late, 0) is None
    assert directory.revoke_token(token_id) and directory.session(secret, 0) is None
    with pytest.raises(Missing):
        directory.create_sign_in("nothing", "session", 900)


def test_a_code_is_good_once(directory: Directory):
    people(directory)
    token_id, token = directory.create_token("u", None)
    code, late = (directory.create_sign_in(token_id, "code", 600).encode() for _ in range(2))
    assert directory.session(code, 0) is None and not directory.end_session(code)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: directory.use_code(code, 0), range(16)))
    assert [one for one in found if one is not None] == [directory.identity(token.encode(), 0)]
    assert directory.use_code(late, 600) is None and directory.use_code(late, 0) is None
    for nothing in (b"", b"\xff", token.encode()):
        assert directory.use_code(nothing, 0) is None


def test_sign_ins_that_ended_long_ago_are_forgotten(directory: Directory):
    people(directory)
    token_id, _ = directory.create_token("u", None)
    old, newer = (directory.create_sign_in(token_id, "session", at).encode() for at in (1000, 2000))
    directory.create_sign_in(token_id, "session", 1000 + FORGOTTEN_SECONDS)
    assert directory.session(old, 0) is None and directory.session(newer, 0) is not None


def test_a_disabled_user_has_no_token(directory: Directory):
    people(directory)
    _, token = directory.create_token("u", None)
    directory.disable_user("u")
    assert directory.identity(token.encode(), 0) is None
    assert [one.disabled for one in directory.users()] == [True]
    with pytest.raises(Missing):
        directory.disable_user("nobody")


def test_a_token_can_be_narrowed_and_never_widened(directory: Directory):
    organization, _ = people(directory, Role.ADMIN)
    other = directory.create_organization("p")
    directory.set_role("u", other.id, Role.VIEWER)
    token_id, token = directory.create_token("u", None, [other.id, "no role there"], read_only=True)
    identity = directory.identity(token.encode(), 0)
    assert identity.roles == {other.id: Role.VIEWER} and identity.read_only
    assert directory.identity(directory.create_token("u", None, [])[1].encode(), 0).roles == {}
    (listed,) = [one for one in directory.tokens("u") if one.id == token_id]
    assert listed.organizations == (other.id, "no role there") and listed.read_only and not listed.revoked
    directory.revoke_token(token_id)
    assert [one.revoked for one in directory.tokens("u") if one.id == token_id] == [True]
    with pytest.raises(Missing):
        directory.tokens("nobody")
    assert organization.id not in identity.roles


@given(
    roles=st.dictionaries(st.sampled_from("abcd"), st.sampled_from(list(Role))),
    only=st.none() | st.lists(st.sampled_from("abcdef")),
)
def test_narrowing_only_ever_takes_away(roles, only):
    left = narrowed(roles, only)
    assert left.items() <= roles.items() and (only is None or set(left) <= set(only))


def test_roles_change_and_go(directory: Directory):
    organization, _ = people(directory)
    _, token = directory.create_token("u", None)
    for role in (Role.VIEWER, Role.ADMIN):
        directory.set_role("u", organization.id, role)
        assert directory.identity(token.encode(), 0).roles[organization.id] is role
    directory.set_role("u", organization.id, None)
    assert directory.identity(token.encode(), 0).roles == {}
    with pytest.raises(Missing):
        directory.set_role("nobody", organization.id, Role.VIEWER)
    with pytest.raises(Missing):
        directory.set_role("u", "nowhere", Role.VIEWER)
    with pytest.raises(Missing):
        directory.create_token("nobody", None)
    with pytest.raises(AlreadyExists):
        directory.create_user("u")


def test_a_cluster_is_linked_changed_and_gone(directory: Directory):
    organization = directory.create_organization("o")
    made = directory.create_cluster(organization.id, "c", "kubecost", "http://x")
    assert made.state == "linking" and directory.cluster(made.id) == made
    assert directory.linked_clusters() == []
    with pytest.raises(AlreadyExists):
        directory.create_cluster(organization.id, "c", "kubecost", "http://y")
    changed = directory.update_cluster(made.id, name="d", flavour="opencost", url="http://z", state="linked")
    assert directory.clusters(organization.id) == directory.linked_clusters() == [changed]
    second = directory.create_cluster(organization.id, "c", "push", "")
    with pytest.raises(AlreadyExists):
        directory.update_cluster(second.id, name="d", flavour="push", url="", state="linked")
    assert directory.delete_cluster(made.id) and not directory.delete_cluster(made.id)
    assert directory.cluster(made.id) is None and directory.clusters(organization.id) == [second]
    directory.create_cluster(organization.id, "d", "push", "")
    with pytest.raises(Missing):
        directory.update_cluster(made.id, name="d", flavour="push", url="", state="linked")


def test_another_kind_of_cloud_account_is_no_cluster(directory: Directory):
    organization = directory.create_organization("o")
    made = directory.create_cluster(organization.id, "aws", "push", "", kind="aws_cnr")
    assert directory.cluster(made.id) is None and directory.clusters(organization.id) == []


def test_with_an_organization_its_clusters_are_gone(directory: Directory):
    organization, _ = people(directory)
    kept = directory.create_organization("kept")
    made = directory.create_cluster(organization.id, "c", "push", "")
    directory.update_cluster(made.id, name="c", flavour="push", url="", state="linked")
    assert directory.delete_organization(organization.id) and not directory.delete_organization(organization.id)
    assert directory.organization(organization.id) is None and directory.organizations() == [kept]
    assert directory.cluster(made.id) is None and directory.linked_clusters() == []
    assert directory.clusters(organization.id) == []
    with pytest.raises(Missing):
        directory.set_role("u", organization.id, Role.VIEWER)


def test_what_a_cluster_is_made_of_is_kept_and_the_newer_wins(directory: Directory):
    organization = directory.create_organization("o")
    cluster = directory.create_cluster(organization.id, "c", "push", "")
    assert directory.resources(cluster.id) is None
    named = [{"namespace": text, "name": text, text: text} for text in HOSTILE]
    newer = Resources(200, [QUOTA], named, [])
    for told in (Resources(100, [], [], []), newer, Resources(150, [], [], [])):
        directory.put_resources(cluster.id, told)
    assert directory.resources(cluster.id) == newer
    directory.put_resources("00000000-0000-4000-8000-000000000000", newer)
    assert directory.resources("00000000-0000-4000-8000-000000000000") is None
    directory.delete_cluster(cluster.id)
    assert directory.resources(cluster.id) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_text_and_never_a_query(directory: Directory, text):
    organization = directory.create_organization(text)
    assert directory.organization(organization.id).name == text
    directory.create_user(text)
    directory.set_role(text, organization.id, Role.VIEWER)
    assert directory.identity(directory.create_token(text, None)[1].encode(), 0).user_name == text
    cluster = directory.create_cluster(organization.id, text, "push", "")
    assert directory.clusters(organization.id) == [cluster] and directory.cluster(text) is None
    assert directory.organization(text) is None and directory.identity(text.encode(), 0) is None


@pytest.mark.parametrize("what", ["cluster", "user", "role", "resources"])
def test_of_thirty_two_that_race_one_wins(directory: Directory, what):
    organization = directory.create_organization("o")
    directory.create_user("there")
    cluster = directory.create_cluster(organization.id, "there", "push", "")
    at_once = threading.Barrier(32)

    def race(number):
        at_once.wait()
        try:
            if what == "cluster":
                directory.create_cluster(organization.id, "same", "push", "")
            elif what == "user":
                directory.create_user("same")
            elif what == "role":
                directory.set_role("there", organization.id, Role.ADMIN)
            else:
                directory.put_resources(cluster.id, Resources(number + 1, [], [], []))
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(32) as threads:
        outcomes = list(threads.map(race, range(32)))
    if what in ("cluster", "user"):
        assert sum(outcomes) == 1
    elif what == "role":
        _, token = directory.create_token("there", None)
        assert directory.identity(token.encode(), 0).roles == {organization.id: Role.ADMIN}
    else:
        assert directory.resources(cluster.id).fetched_at == 32


def test_what_is_written_is_there_for_the_next_to_open(directory_url):
    first = open_directory(directory_url)
    _, user = people(first)
    _, token = first.create_token("u", None)
    first.close()
    second = open_directory(directory_url)
    assert second.identity(token.encode(), 0).user_id == user.id
    second.close()


@pytest.mark.parametrize(
    "url", ["sqlite:/proc/nowhere/d.sqlite", "mongodb://host:port:port/", "mongodb+srv://no.such.name.invalid/x"]
)
def test_a_directory_that_cannot_be_opened_is_told_in_a_line(url):
    with pytest.raises(DirectoryError) as problem:
        open_directory(url).organizations()
    assert "\n" not in str(problem.value)


def test_a_server_that_is_away_is_told_in_time_and_without_its_password():
    directory = open_directory(f"mongodb://user:canary-of-the-directory@127.0.0.1:{free_port()}/x")
    with pytest.raises(DirectoryError) as problem:
        directory.organizations()
    assert "canary" not in str(problem.value)
    directory.close()


def test_a_file_of_the_first_version_is_brought_up_to_date(tmp_path):
    import sqlite3

    file = tmp_path / "old.sqlite"
    with sqlite3.connect(file) as old:
        old.executescript(
            "CREATE TABLE organizations (id TEXT PRIMARY KEY, name TEXT NOT NULL);"
            "CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, disabled INTEGER NOT NULL DEFAULT 0);"
            "CREATE TABLE tokens (id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users (id),"
            " digest BLOB NOT NULL UNIQUE, expires_at INTEGER, revoked INTEGER NOT NULL DEFAULT 0);"
            "INSERT INTO organizations VALUES ('1', 'acme');"
        )
    for _ in range(2):
        directory = open_directory(f"sqlite:{file}")
        assert [one.name for one in directory.organizations()] == ["acme"]
        directory.close()
    directory = open_directory(f"sqlite:{file}")
    people(directory)
    assert directory.identity(directory.create_token("u", None, [], read_only=True)[1].encode(), 0).read_only
    directory.close()


def test_of_two_changes_from_one_state_one_is_refused(directory):
    organization = directory.create_organization("o")
    made = directory.create_cluster(organization.id, "c", "kubecost", "http://x")
    about = {"name": "c", "flavour": "kubecost", "state": "linked"}
    changed = directory.update_cluster(made.id, **about, url="http://y", revision=made.revision)
    assert changed.revision == made.revision + 1
    with pytest.raises(Changed):
        directory.update_cluster(made.id, **about, url="http://z", revision=made.revision)
    assert directory.cluster(made.id) == changed
    assert directory.update_cluster(made.id, **about, url="http://w").revision == changed.revision + 1
    assert directory.cluster_ids() == {made.id: True}
    other = directory.create_cluster(organization.id, "d", "push", "")
    directory.delete_cluster(made.id)
    assert directory.cluster_ids() == {made.id: False, other.id: True}
    directory.delete_organization(organization.id)
    assert directory.cluster_ids() == {made.id: False, other.id: False}
