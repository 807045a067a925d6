"""What was read of committed hours is known until one of the accounts changes, and never longer."""

from __future__ import annotations

from metroculus.storage.known_hours import KnownHours
from metroculus.storage.ledger import CommittedHours

A, B = ("a",), ("b",)
STRETCH = (0, 3600, None)


def hours(*accounts: str, many: int = 0) -> dict[str, CommittedHours]:
    return {one: CommittedHours(one, 0, 3600, dict.fromkeys(range(many))) for one in accounts}  # type: ignore[arg-type]


def test_a_change_forgets_what_it_is_of_and_nothing_else() -> None:
    known = KnownHours(100)
    both = ("a", "b")
    for accounts in (A, B, both):
        known.keep(accounts, STRETCH, hours(*accounts), known.changes())
    known.changed(["a"])
    assert (known.find(A, STRETCH), known.find(both, STRETCH)) == (None, None)
    assert known.find(B, STRETCH) == hours("b") and known.find(B, (0, 3600, 7)) is None
    known.forget()
    assert known.find(B, STRETCH) is None


def test_what_changed_while_it_was_read_is_not_kept() -> None:
    known = KnownHours(100)
    for change in (lambda: known.changed(["a", "c"]), known.forget):
        since = known.changes()
        change()
        known.keep(A, STRETCH, hours("a"), since)
        assert known.find(A, STRETCH) is None
        known.keep(B, STRETCH, hours("b"), since)
    assert known.find(B, STRETCH) is None, "anything may have been forgotten"
    since = known.changes()
    known.changed(["c"])
    known.keep(A, STRETCH, hours("a"), since)
    assert known.find(A, STRETCH) == hours("a")


def test_no_more_is_kept_than_is_allowed_and_the_least_asked_for_goes_first() -> None:
    known = KnownHours(40)
    for number in range(4):
        known.keep(A, (number, number + 1, None), hours("a", many=9), known.changes())
    assert known.find(A, (0, 1, None)) is not None
    known.keep(A, (4, 5, None), hours("a", many=9), known.changes())
    assert [known.find(A, (one, one + 1, None)) is not None for one in range(5)] == [True, False, True, True, True]
    known.keep(B, STRETCH, hours("b", many=10), known.changes())
    assert known.find(B, STRETCH) is None, "more than a quarter of all is not kept"
