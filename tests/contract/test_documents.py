"""Versions of what organizations decide are kept, and of what passes as long as history is."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from metroculus.storage.documents import DocumentChanged
from metroculus.storage.store import Store, open_store
from metroculus.watch.alerts import Finding, advance, resolve_gone
from tests.support import until
from tools.window import DAY

pytestmark = pytest.mark.watch

NOW = 1795220400


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    made = open_store(migrated_url)
    yield made
    made.close()


def test_a_version_that_follows_another_than_the_last_is_refused(store: Store) -> None:
    documents = store.documents
    first = documents.put("acme", "budget", "b", "first", after=0)
    second = documents.put("acme", "budget", "b", "second", after=first.sequence)
    for after in (0, first.sequence):
        with pytest.raises(DocumentChanged):
            documents.put("acme", "budget", "b", "late", after=after)
    assert documents.newest("acme", "budget")["b"] == second
    assert documents.put("acme", "budget", "b", "third").sequence > second.sequence
    assert documents.put("other", "budget", "b", "theirs", after=0).body == "theirs"


def test_what_passes_is_forgotten_and_what_was_decided_is_not(store: Store) -> None:
    documents, kept = store.documents, 10

    def put(kind, name, body, at):
        store.documents._clock = lambda: at  # type: ignore[attr-defined]
        documents.put("acme", kind, name, body)

    for number in range(3):
        at = NOW - (30 - number) * DAY
        put("rules", "2026-11", f"rules {number}", at)
        put("budget", "b", f"budget {number}", at)
        put("accounts", "", f'["{number}"]', at)
        fired = advance("acme", None, Finding(kind="drift", subject="x", verdict="firing"), at)
        assert fired is not None
        put("alert", "firing", msgspec.json.encode(fired).decode(), at)
        put("alert", "over", msgspec.json.encode(resolve_gone(fired, at)).decode(), at)
        put("webhook_sent", "over", '{"transition": 2}', at)
    store.maintenance.clean(NOW, kept)
    left = {(one.kind, one.name, one.body[:8]) for one in documents.of_all(("rules", "budget"), False)}
    assert left == {
        (kind, name, f"{kind} {n}"[:8]) for kind, name in (("rules", "2026-11"), ("budget", "b")) for n in range(3)
    }

    def passing() -> list[tuple[str, str]]:
        return sorted((one.kind, one.name) for one in documents.of_all(("accounts", "alert", "webhook_sent"), False))

    assert until(lambda: passing() == [("accounts", ""), ("alert", "firing")], 30), passing()
    assert documents.newest("acme", "accounts")[""].body == '["2"]'
