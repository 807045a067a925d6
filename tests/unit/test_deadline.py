"""A deadline, and a part of it."""

from __future__ import annotations

from tools.deadline import Deadline


def test_a_part_passes_earlier_and_is_ended_with_the_whole() -> None:
    whole = Deadline(100.0, "a-request")
    part = whole.part(0.5)
    assert 49.0 < part.left() <= 50.0 < whole.left() and part.request_id == "a-request"
    ended: list[str] = []
    part.add_callback(lambda: ended.append("part"))
    whole.expire()
    assert part.left() <= 0 and ended == ["part"]


def test_a_part_of_what_has_passed_has_passed() -> None:
    assert Deadline(-1.0).part(0.5).left() <= 0
