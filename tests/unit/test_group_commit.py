"""What is written at once is written together, by one thread, and fails together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from metroculus.storage.group_commit import MOST_TOGETHER, FailedTogether, GroupCommit
from tests.support import until


class Written:
    """Groups as they were written; the first waits until it is let."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.open = threading.Event()
        self.fail_with: Exception | None = None
        self.at_once = 0
        self.most_at_once = 0

    def __call__(self, group: Sequence[int]) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.groups.append(list(group))
        assert self.open.wait(20)
        self.at_once -= 1
        if self.fail_with is not None and 0 not in group:
            raise self.fail_with


@pytest.mark.parametrize("count", [2, 10, MOST_TOGETHER + 10])
def test_what_comes_while_one_is_written_goes_together(count: int) -> None:
    written = Written()
    commits: GroupCommit[int] = GroupCommit(written)
    with ThreadPoolExecutor(count + 1) as threads:
        first = threads.submit(commits.commit, 0)
        assert until(lambda: bool(written.groups))
        others = [threads.submit(commits.commit, n + 1) for n in range(count)]
        assert until(lambda: len(commits._waiting) == count)
        written.open.set()
        for one in (first, *others):
            one.result(20)
    assert written.groups[0] == [0] and len(written.groups) == 2 + (count > MOST_TOGETHER)
    assert sorted(n for group in written.groups for n in group) == list(range(count + 1))
    assert written.most_at_once == 1
    commits.commit(99)
    assert written.groups[-1] == [99], "nobody is waited for where nothing is under way"


def test_a_group_that_fails_fails_for_all_of_it_and_the_next_goes_on() -> None:
    written = Written()
    commits: GroupCommit[int] = GroupCommit(written)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(commits.commit, 0)
        assert until(lambda: bool(written.groups))
        others = [threads.submit(commits.commit, n) for n in range(1, 4)]
        assert until(lambda: len(commits._waiting) == 3)
        written.fail_with = OSError("full")
        written.open.set()
        first.result(20)
        for one in others:
            with pytest.raises(FailedTogether) as failed:
                one.result(20)
            assert isinstance(failed.value.cause, OSError)
    written.fail_with = None
    commits.commit(5)
    assert written.groups[-1] == [5]


def test_threads_that_are_interrupted_stop_nobody_else() -> None:
    """While it writes, and while it waits for its turn."""

    def interrupted(group: Sequence[int]) -> None:
        if group == [1]:
            raise SystemExit

    commits: GroupCommit[int] = GroupCommit(interrupted)
    with pytest.raises(SystemExit):
        commits.commit(1)
    commits.commit(2)

    written = Written()
    commits = GroupCommit(written)
    wait = commits._changed.wait_for
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(commits.commit, 0)
        assert until(lambda: bool(written.groups))

        def interrupted_wait(check: object, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

        commits._changed.wait_for = interrupted_wait  # type: ignore[method-assign,assignment]
        with pytest.raises(KeyboardInterrupt):
            commits.commit(1)
        commits._changed.wait_for = wait  # type: ignore[method-assign]
        third = threads.submit(commits.commit, 3)
        assert until(lambda: len(commits._waiting) == 1)
        written.open.set()
        first.result(20)
        third.result(20)
    assert written.groups == [[0], [3]]
