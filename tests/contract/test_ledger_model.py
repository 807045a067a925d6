"""A ledger of dictionaries stands beside the real one and must agree, whatever is done to both in whatever order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from metroculus.cost_model.allocation import Filters
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.store import Store, open_store
from tests.stores import allocation
from tests.support import DAY, END, HOUR, NOW

HOURS = [END - DAY - HOUR, END - DAY, END - DAY + HOUR, END - HOUR]
"""On either side of midnight, so that days and hours both have to be right."""

pods = st.lists(st.integers(0, 320).map(lambda n: n / 32), max_size=3)
hours = st.sampled_from(HOURS)
fences = st.integers(1, 4)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    opened = open_store(migrated_url, lambda: NOW)
    yield opened
    opened.close()


class Machine(RuleBasedStateMachine):
    """Each run has an account of its own in the one self.store."""

    @initialize()
    def begin(self) -> None:
        self.account = str(uuid4())
        self.writers: dict[int, FencedWriter] = {}
        self.model: dict[int, list[tuple[int, float, int, bool]]] = {hour: [] for hour in HOURS}
        """Per hour: sequence, total, time read, whether the rows are all there."""

    def writer(self, fence: int) -> FencedWriter:
        return self.writers.setdefault(fence, FencedWriter(fence))

    def batch(self, hour: int, costs: list[float], read: int = NOW) -> HourBatch:
        rows = [allocation(f"web-{n}", usd, hour=hour) for n, usd in enumerate(costs)]
        return HourBatch(account=self.account, hour=hour, allocations=rows, fetched_at=read)

    @rule(hour=hours, costs=pods, fence=fences)
    def commit(self, hour: int, costs: list[float], fence: int) -> None:
        one = self.batch(hour, costs)
        (marker,) = self.store.ledger.commit([one], self.writer(fence))
        assert marker.total == sum(one.sums().values())
        self.model[hour].append((marker.sequence, marker.total, NOW, True))

    @rule(several=st.lists(hours, unique=True, min_size=2), costs=pods, fence=fences)
    def commit_several(self, several: list[int], costs: list[float], fence: int) -> None:
        for marker in self.store.ledger.commit([self.batch(hour, costs) for hour in several], self.writer(fence)):
            self.model[marker.hour].append((marker.sequence, marker.total, NOW, True))

    @rule(hour=hours, costs=pods)
    def die_before_the_marker(self, hour: int, costs: list[float]) -> None:
        real = self.store.ledger._mark
        self.store.ledger._mark = lambda markers: None  # type: ignore[method-assign]
        try:
            self.store.ledger.commit([self.batch(hour, costs)], FencedWriter(9))
        finally:
            self.store.ledger._mark = real  # type: ignore[method-assign]

    @rule(hour=hours, costs=pods, fence=fences)
    def lose_a_row(self, hour: int, costs: list[float], fence: int) -> None:
        (marker,) = self.store.ledger.commit([self.batch(hour, costs)], self.writer(fence))
        self.model[hour].append((marker.sequence, marker.total, NOW, True))
        broken = replace(marker, sequence=self.writer(fence).sequence(), rows=marker.rows + 1)
        self.store.ledger._mark([(self.account, broken)])
        self.model[hour].append((broken.sequence, broken.total, NOW, False))

    @rule(fence=fences, later=st.integers(1, 1000))
    def confirm_all(self, fence: int, later: int) -> None:
        committed = self.store.ledger.committed(self.account, HOURS[0], END)
        self.store.ledger.confirm(self.account, list(committed.hours.values()), self.writer(fence), NOW + later)
        for hour, marker in committed.hours.items():
            sequence = fence << 32 | (
                self.writers[fence]._counter - len(committed.hours) + 1 + list(committed.hours).index(hour)
            )
            self.model[hour].append((sequence, marker.total, NOW + later, True))

    @rule(fence=fences)
    def sum_up(self, fence: int) -> None:
        self.store.summaries.rebuild(self.account, HOURS[0], END, self.writer(fence))

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "model"):
            return
        expected = {
            hour: max(one for one in told if one[3]) for hour, told in self.model.items() if any(t[3] for t in told)
        }
        committed = self.store.ledger.committed(self.account, HOURS[0], END)
        seen = {hour: (m.sequence, m.total, m.fetched_at, True) for hour, m in committed.hours.items()}
        assert seen == expected
        total = sum(one[1] for one in expected.values())
        for group_by in ((), ("day",), ("namespace",), ("pod",)):
            answer = self.store.summaries.sums(self.account, HOURS[0], END, group_by, Filters())
            assert sum(one.total for one in answer.sums) == total, group_by
        days = self.store.summaries.sums(self.account, HOURS[0], END, ("day",), Filters()).sums
        by_day = {one.keys[0]: one.total for one in days}
        for day in (END - 2 * DAY, END - DAY):
            mine = sum(one[1] for hour, one in expected.items() if day <= hour < day + DAY)
            assert by_day.get(day, 0.0) == mine


def test_the_ledger_is_its_model(store: Store) -> None:
    class OfStore(Machine):
        pass

    OfStore.store = store
    run_state_machine_as_test(
        OfStore,
        settings=settings(
            max_examples=int(os.environ.get("LEDGER_EXAMPLES", "6")),
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
