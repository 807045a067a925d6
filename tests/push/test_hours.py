"""Hours that an agent pushes: to the cent what its cluster cost, whatever came twice, late, or out of order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulator.server import Habits
from tests.pushing import Door
from tests.support import DAY, END, HOUR, NOW, Metroculus, Stack, exact_world

pytestmark = pytest.mark.push

WORLD = exact_world(prime=7, days=9)
OTHER = exact_world(prime=11, days=9)


@pytest.fixture
def door(stack: Stack) -> Iterator[Door]:
    made = Door(stack)
    yield made
    made.close()


@pytest.mark.parametrize("flavour", ["kubecost", "opencost"])
def test_a_week_is_pushed_and_stored_to_the_cent(door: Door, flavour: str) -> None:
    one = door.pusher(WORLD, flavour)  # type: ignore[arg-type]
    while door.pushed(one):
        pass
    door.worked()
    start = END - 7 * DAY
    assert set(range(start, END, HOUR)) <= set(door.hours(one.account))
    exact = one.true(start, END)
    assert door.total(one.account, start, END) == pytest.approx(
        exact["total_cost" if flavour == "kubecost" else "allocation_total"], abs=1e-9
    )
    asked = {"cloud_account_id": one.account, "start_date": start, "end_date": END}
    body = Metroculus(door.running).get("kubecost_cluster_costs", **asked, detail_level="namespace").json()
    assert body["complete"], body["sources"]
    rows = {row["namespace"]: row["total_cost"] for row in body["breakdown_by_namespace"]}
    assert rows == {name: pytest.approx(usd, abs=1e-6) for name, usd in exact["namespaces"].items()}
    assert not door.pushed(one), "nothing more is wanted"
