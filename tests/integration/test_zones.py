"""Days and months of a caller's time zone: live, stored, in the REST API; they tile and add up to the truth."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from simulator.costs import truth
from simulator.field import make_field_world
from simulator.world import World
from tests.support import ACCOUNT, END, NOW, Metroculus, Stack, ask, make_tenant
from tools.zones import zone_of

WORLD: World = make_field_world(["sidecars", "autoscaling"], seed=11, days=5, end=END, prime=7)
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati")


def true(start: int, end: int) -> float:
    return float(truth(WORLD, start, end, now=NOW, adjusted=True)["total_cost"])  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["live", "stored"])
def running(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Any]:
    stack = Stack(tmp_path_factory.mktemp("zones"))
    _, url = stack.simulate(WORLD)
    plan: dict[str, Any] = {"kubecost_api_url": url, "kubecost_account_id": ACCOUNT}
    if request.param == "stored":
        plan["clickhouse_url"] = f"embedded:{stack.folder / 'store'}"
    started = stack.start(**plan)
    if request.param == "stored":
        assert stack.fill(started, WORLD.start, END, 2).complete
    yield started
    stack.close()


@pytest.mark.parametrize("name", ZONES)
def test_yesterday_is_the_zones_own(running: Any, name: str) -> None:
    zone = zone_of(name)
    today, _ = zone.period(NOW, "day")
    start, end = zone.period(today - 1, "day")
    asked = {"cloud_account_id": ACCOUNT, "window": "yesterday", "timezone": name}
    body = Metroculus(running).get("kubecost_cluster_costs", **asked).json()
    assert (body["start_date"], body["end_date"]) == (start, end)
    assert body["window"]["start"] == zone.iso(start)
    assert body["window"]["timezone"] == name
    assert bool(body["window"]["warnings"]) is (name == "Asia/Kolkata")
    assert body["complete"], body["sources"]
    assert body["total_cost"] == pytest.approx(true(start, end), abs=2e-3)


@pytest.mark.parametrize("name", ZONES)
def test_days_of_a_zone_add_up_to_their_window(running: Any, name: str) -> None:
    zone = zone_of(name)
    end, _ = zone.period(NOW, "day")
    start = zone.first_hour(zone.day(end) - timedelta(days=3))
    asked = {"cloud_account_id": ACCOUNT, "start_date": start, "end_date": end, "timezone": name}
    metroculus = Metroculus(running)
    body = metroculus.get("kubecost_cluster_costs", **asked, step="day").json()
    points = body["data_points"]
    assert [point["start"] for point in points] == [
        zone.iso(zone.first_hour(zone.day(start) + timedelta(days=n))) for n in range(3)
    ]
    for point, day in zip(points, range(3), strict=True):
        first = zone.first_hour(zone.day(start) + timedelta(days=day))
        assert point["total_cost"] == pytest.approx(true(*zone.period(first, "day")), abs=2e-3)
    assert sum(point["total_cost"] for point in points) == pytest.approx(body["total_cost"], abs=2e-3)


@pytest.mark.parametrize("running", ["stored"], indirect=True)
@pytest.mark.parametrize("name", ZONES)
def test_expenses_and_months_are_of_the_zone(running: Any, name: str) -> None:
    zone, metroculus = zone_of(name), Metroculus(running)
    end, _ = zone.period(NOW, "day")
    start = zone.first_hour(zone.day(end) - timedelta(days=3))
    asked = {"cloud_account_id": ACCOUNT, "start_date": start, "end_date": end, "timezone": name, "group_by": "day"}
    found = metroculus.get("k8s_expenses", **asked).json()
    assert found["complete"]
    assert {row["day"]: row["total_cost"] for row in found["expenses"]} == {
        zone.iso(first): pytest.approx(true(*zone.period(first, "day")), abs=2e-3)
        for first in (zone.first_hour(zone.day(start) + timedelta(days=n)) for n in range(3))
    }
    months = metroculus.get("k8s_monthly", cloud_account_id=ACCOUNT, months="2", timezone=name).json()
    assert months["timezone"] == name
    for month in months["months"]:
        if month["costs"] is None:
            continue
        first, last = (max(zone.period(NOW, "month")[0], WORLD.start), min(END, NOW))
        if month["month"] == zone.day(NOW).isoformat()[:7]:
            assert month["costs"]["known_cost"] == pytest.approx(true(first, last), abs=1e-2)


def test_the_rest_api_asks_in_the_zone(stack: Stack) -> None:
    running, name = stack.start(), "Asia/Kolkata"
    tenant = make_tenant(running, "acme")
    _, url = stack.simulate(WORLD)
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    link = {"name": "c", "flavour": "kubecost", "url": url}
    cluster = ask(running, tenant.tokens["admin"], path, "POST", json=link).json()["cluster_id"]
    start, end = zone_of(name).period(zone_of(name).period(NOW, "day")[0] - 1, "day")
    asked = {"window": "yesterday", "timezone": name}
    listed = ask(running, tenant.tokens["viewer"], path, params=asked).json()
    assert (listed["start_date"], listed["end_date"]) == (start, end)
    assert listed["total_cost"] == pytest.approx(true(start, end), abs=2e-3)
    costs = ask(running, tenant.tokens["viewer"], f"/restapi/v2/kubecost/clusters/{cluster}/costs", params=asked).json()
    assert costs["window"]["timezone"] == name and costs["window"]["start"].endswith("T23:30:00+05:30")
    refused = ask(running, tenant.tokens["viewer"], path, params={"window": "yesterday", "timezone": "Mars/Base"})
    assert refused.status_code == 400 and refused.json()["error"]["params"] == ["timezone"]


@pytest.mark.parametrize("text", ["2026-11-18T00:00:00+05:30,2026-11-19T00:00:00+05:30"])
def test_stamps_with_an_offset_are_read(running: Any, text: str) -> None:
    body = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, window=text).json()
    assert body["window"]["start"] == "2026-11-17T18:00:00Z", "down to the hour"
    assert body["window"]["end"] == "2026-11-18T19:00:00Z", "up to the hour: no zone was named"
    spaced = Metroculus(running).get("kubecost_cluster_costs", cloud_account_id=ACCOUNT, window=text.replace("+", " "))
    assert spaced.status_code == 400 and "%2B" in spaced.text
