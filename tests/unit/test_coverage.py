"""Accounts in groups whose hours may be held at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metroculus.storage.coverage import HOURS_AT_ONCE, in_groups_of_hours


@given(st.dictionaries(st.uuids().map(str), st.integers(0, 2 * HOURS_AT_ONCE), max_size=30))
def test_each_account_is_in_one_group_and_no_group_has_too_many_hours(hours_of: dict[str, int]) -> None:
    groups = list(in_groups_of_hours(hours_of))
    assert [account for group in groups for account in group] == list(hours_of)
    for group in groups:
        assert len(group) == 1 or sum(hours_of[account] for account in group) <= HOURS_AT_ONCE
    for one, following in zip(groups, groups[1:], strict=False):
        assert sum(hours_of[account] for account in (*one, following[0])) > HOURS_AT_ONCE, "none is split for nothing"
