"""Linking, changing and unlinking at once: what the directory and Metroculus say is the same, and no source is nobody's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import requests

from simulator.server import Habits
from tests.support import Stack, exact_world, make_tenant, until

WORLD = exact_world(days=1)


class Linked:
    """An organization whose upstreams are told apart by their path."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.running = stack.start(rounds=False)
        self.tenant = make_tenant(self.running, "acme")
        _, self.url = stack.simulate(WORLD, Habits())
        self.client = self.running.rest_api.metroculus.client
        self.path = (
            f"{self.running.rest_api_listener.url}/restapi/v2/organizations/{self.tenant.organization_id}"
            "/kubecost/clusters"
        )

    def ask(self, method: str, path: str = "", **body: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.tenant.tokens['admin']}"}
        return requests.request(method, f"{self.path}{path}", headers=headers, json=body or None, timeout=30)

    def link(self, name: str) -> str:
        answer = self.ask("POST", name=name, flavour="kubecost", url=f"{self.url}/0")
        assert answer.status_code == 201, answer.text
        return str(answer.json()["cluster_id"])

    def sources(self) -> dict[str, str]:
        return {one["cloud_account_id"]: one["url"] for one in self.client.get_kubecost_sources()[1]["sources"]}

    def directory(self) -> dict[str, str]:
        found = self.running.rest_api.directory.clusters(self.tenant.organization_id)
        return {one.id: one.url for one in found if one.state == "linked"}

    def sweep(self) -> Any:
        return self.stack.thread.run(self.running.rest_api.sweep.sweep())


@pytest.fixture
def linked(stack: Stack) -> Iterator[Linked]:
    yield Linked(stack)


def at_once(*calls: Callable[[], requests.Response]) -> list[int]:
    """The statuses of calls that begin together."""
    gate, statuses = threading.Barrier(len(calls)), []

    def run(call: Callable[[], requests.Response]) -> None:
        gate.wait()
        statuses.append(call().status_code)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def test_changes_at_once_leave_one_answer_everywhere(linked: Linked) -> None:
    cluster = linked.link("c")
    for _ in range(6):
        changes = [lambda n=n: linked.ask("PATCH", f"/{cluster}", url=f"{linked.url}/{n}") for n in range(1, 5)]
        statuses = at_once(*changes)
        assert set(statuses) <= {200, 409} and 200 in statuses, statuses
        assert linked.sources() == linked.directory()
    refused = linked.client.get_kubecost_source(cluster)[1]
    assert refused["managed_by"] == "rest-api" and refused["version"] > 0


def test_what_is_unlinked_while_it_is_changed_leaves_no_source(linked: Linked) -> None:
    for _ in range(6):
        cluster = linked.link(f"c{uuid4().hex[:6]}")
        statuses = at_once(
            lambda c=cluster: linked.ask("PATCH", f"/{c}", url=f"{linked.url}/1"),
            lambda c=cluster: linked.ask("DELETE", f"/{c}"),
            lambda c=cluster: linked.ask("PATCH", f"/{c}", url=f"{linked.url}/2"),
        )
        assert set(statuses) <= {200, 404, 409}, statuses
        assert linked.sources() == linked.directory() == {}


def test_an_older_entry_of_the_same_manager_is_refused(linked: Linked) -> None:
    account = str(uuid4())
    put = linked.client.put_kubecost_source
    put(account, "kubecost", linked.url, managed_by="me", version=3)
    with pytest.raises(requests.HTTPError, match="newer"):
        put(account, "kubecost", f"{linked.url}/old", managed_by="me", version=2)
    put(account, "kubecost", f"{linked.url}/same", managed_by="me", version=3)
    put(account, "kubecost", f"{linked.url}/operator")
    put(account, "kubecost", f"{linked.url}/mine", managed_by="me", version=1)
    assert linked.sources() == {account: f"{linked.url}/mine"}


def test_sources_are_listed_by_pages_and_by_who_manages_them(linked: Linked) -> None:
    accounts = sorted(str(uuid4()) for _ in range(7))
    for number, account in enumerate(accounts):
        linked.client.put_kubecost_source(account, "push", managed_by="me" if number % 2 else None)
    seen, after = [], None
    while True:
        page = linked.client.get_kubecost_sources("me", after, 3)[1]
        seen += [one["cloud_account_id"] for one in page["sources"]]
        after = page["after"]
        if after is None:
            break
    assert seen == accounts[1::2]
    assert all("auth" not in one and "headers" not in one for one in page["sources"])


def test_sources_of_an_organization_that_is_gone_are_forgotten(linked: Linked) -> None:
    kept = linked.link("kept")
    other = make_tenant(linked.running, "other")
    made = requests.post(
        linked.path.replace(linked.tenant.organization_id, other.organization_id),
        headers={"Authorization": f"Bearer {other.tokens['admin']}"},
        json={"name": "c", "flavour": "kubecost", "url": linked.url},
        timeout=30,
    ).json()["cluster_id"]
    linked.client.put_kubecost_source(str(uuid4()), "push", managed_by="somebody")
    assert linked.sweep() == []
    linked.running.rest_api.directory.delete_organization(other.organization_id)
    assert linked.sweep() == [made]
    assert made not in linked.sources() and kept in linked.sources() and len(linked.sources()) == 2
    assert until(lambda: linked.sweep() == [])


def test_a_directory_that_is_another_forgets_nothing(linked: Linked) -> None:
    linked.link("c")
    strangers = [str(uuid4()) for _ in range(3)]
    for account in strangers:
        linked.client.put_kubecost_source(account, "push", managed_by="rest-api", version=1)
    assert linked.sweep() == [] and len(linked.sources()) == 4, "three of four: it may be the wrong directory"
    for number in range(40):
        linked.link(f"more{number}")
    assert sorted(linked.sweep()) == sorted(strangers)
    linked.running.rest_api.directory.cluster_ids = dict  # type: ignore[method-assign]
    assert linked.sweep() == [] and len(linked.sources()) == 41, "an empty directory is no reason to forget all"
