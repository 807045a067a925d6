"""One suite for every directory."""

from __future__ import annotations

import threading

import pytest

from rest_api.rest_api_server.directory.model import AlreadyExists, Directory, Missing, Role
from rest_api.rest_api_server.directory.sqlite import SqliteDirectory


@pytest.fixture(params=["sqlite"])
def directory(request, tmp_path):
    made = {"sqlite": SqliteDirectory}[request.param](tmp_path / "directory.sqlite")
    yield made
    made.close()


def test_a_token_is_its_users_until_it_expires_or_is_revoked(directory: Directory):
    organization = directory.create_organization("o")
    user = directory.create_user("u")
    directory.set_role("u", organization.id, Role.MANAGER)
    token_id, token = directory.create_token("u", 1000)
    identity = directory.identity(token.encode(), 999)
    assert identity.user_id == user.id and identity.roles == {organization.id: Role.MANAGER}
    assert directory.identity(token.encode(), 1000) is None
    assert directory.identity(b"\xff\xfe", 0) is None and directory.identity(b"", 0) is None
    assert directory.revoke_token(token_id) and not directory.revoke_token("nothing")
    assert directory.identity(token.encode(), 0) is None


def test_roles_change_and_go(directory: Directory):
    organization = directory.create_organization("o")
    directory.create_user("u")
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
    with pytest.raises(AlreadyExists):
        directory.create_cluster(organization.id, "c", "kubecost", "http://y")
    changed = directory.update_cluster(made.id, name="d", flavour="opencost", url="http://z", state="linked")
    assert directory.clusters(organization.id) == [changed]
    assert directory.delete_cluster(made.id) and not directory.delete_cluster(made.id)
    assert directory.cluster(made.id) is None and directory.clusters(organization.id) == []
    directory.create_cluster(organization.id, "d", "push", "")
    with pytest.raises(Missing):
        directory.update_cluster(made.id, name="d", flavour="push", url="", state="linked")


def test_of_thirty_two_that_race_for_a_name_one_wins(directory: Directory):
    organization = directory.create_organization("o")
    outcomes = []

    def race():
        try:
            outcomes.append(directory.create_cluster(organization.id, "same", "push", ""))
        except AlreadyExists:
            outcomes.append(None)

    threads = [threading.Thread(target=race) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in outcomes if one]) == 1 and len(outcomes) == 32


def test_another_kind_of_cloud_account_is_no_cluster(tmp_path):
    directory = SqliteDirectory(tmp_path / "d.sqlite")
    organization = directory.create_organization("o")
    made = directory.create_cluster(organization.id, "aws", "push", "")
    directory._rows("UPDATE clusters SET type = 'aws_cnr'")
    assert directory.cluster(made.id) is None and directory.clusters(organization.id) == []
    directory.close()
