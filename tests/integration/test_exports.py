"""Files to take away: whole or cut, safe to open, and the API's own figures."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import tempfile
import time
from math import fsum
from pathlib import Path
from typing import Any

import pytest
import requests

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Costs
from optscale_client.metroculus_client import Client, MetroculusError
from rest_api.rest_api_server.controllers import expenses
from rest_api.rest_api_server.exports import csv_file, files, workbook
from simulator.server import Habits
from tests.exported import Exported, read
from tests.integration.test_services import link
from tests.organizations import NOVEMBER, OCTOBER, Organization
from tests.support import END, NOW, SECRET, Stack, ask, exact_world, make_tenant, until
from tools.window import HOUR

WORLD = exact_world(7, days=3)
FORMATS = ("csv", "xlsx")
MONTH = f"start_date={OCTOBER}&end_date={NOVEMBER}"
HOSTILE = (
    "=cmd|'/C calc'!A0", "+1+1", "-2", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", " =1+1", 'a"b', "a,b", "a\nb", "<script>", "\u202eabc",
    "naïve 🦊", "'", "#x", "\x01bell", "x" * 253,
)  # fmt: skip


class Acme(Organization):
    october = range(OCTOBER, OCTOBER + 48 * HOUR, HOUR)

    def export(self, form: str = "csv", role: str = "viewer", **query: Any) -> requests.Response:
        return self.clean(f"{MONTH}&format={form}" + "".join(f"&{k}={v}" for k, v in query.items()), role)

    def clean(self, query: str, role: str = "viewer") -> requests.Response:
        path = f"/restapi/v2/organizations/{self.tenant.organization_id}/clean_expenses?{query}"
        return ask(self.running, self.tenant.tokens[role], path)


@pytest.fixture
def acme(stack):
    return Acme(stack)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """One cluster of a Kubecost that is asked live; what asks for its views."""
    stack = Stack(tmp_path_factory.mktemp("views"))
    _, url = stack.simulate(WORLD, Habits())
    running = stack.start()
    tenant = make_tenant(running, "acme")
    cluster = link(running, tenant, "prod =1", "kubecost", url)

    def view(path: str, role: str = "viewer", method: str = "GET", **headers: str) -> requests.Response:
        target = f"/restapi/v2/kubecost/clusters/{cluster}/{path}"
        return ask(running, tenant.tokens[role], target, method, headers=headers)

    yield view
    stack.close()


def known_of(found: Exported) -> dict[str, str]:
    return {name: found.about[name] for name in ("window", "timezone", "as_of", "currency", "complete", "cells")}


@pytest.mark.parametrize("form", FORMATS)
def test_costs_are_the_statement_row_by_row(views, form):
    window = f"window={WORLD.start},{END}"
    body = views(f"costs?{window}&aggregate=namespace&limit=1000").json()
    found = read(views(f"costs?{window}&aggregate=namespace&format={form}"))
    assert found.sum("total_cost (USD)") == pytest.approx(body["total_cost"], rel=1e-12)
    named = [row["name"] for row in body["costs"]]
    assert [row["name"] for row in found.rows] == [*named, "__idle__", "__management__", "__unmounted__"]
    for row, own in zip(found.rows[: len(named)], body["costs"], strict=True):
        for column, key in (
            ("ram_cost (USD)", "ram_cost"),
            ("ram_byte_usage_average (bytes)", "ram_byte_usage_average"),
        ):
            assert row[column] is None if own[key] is None else float(row[column]) == own[key]
    assert known_of(found)["currency"] == "USD" and found.about["complete"] == "yes"
    assert found.about["filters"] == "aggregate = namespace"
    assert found.about["total_cost"] == f"{body['total_cost']!r} USD"
    assert found.about["cluster"].startswith("prod =1 (")


def test_the_order_of_rows_is_the_one_that_is_asked_for(views):
    asked = "costs?window=2d&aggregate=pod"
    for order in ("", "&sort=name", "&sort=ram_cost&order=asc"):
        body = views(f"{asked}&limit=1000{order}").json()
        found = read(views(f"{asked}&format=csv{order}"))
        assert [row["name"] for row in found.rows][:-3] == [row["name"] for row in body["costs"]]


@pytest.mark.parametrize("idle", ["separate", "share", "hide"])
def test_rows_add_up_to_the_total_however_idle_cost_is_told(views, idle):
    asked = f"costs?window={WORLD.start},{END}&idle={idle}"
    body, found = views(asked).json(), read(views(f"{asked}&format=csv"))
    hidden = body["idle_cost"] if idle == "hide" else 0.0
    assert found.sum("total_cost (USD)") == pytest.approx(body["total_cost"] - hidden, rel=1e-12)
    assert found.about["idle_cost"] == f"{body['idle_cost']!r} USD"


@pytest.mark.parametrize("form", FORMATS)
def test_steps_are_rows_where_steps_are_asked_for(views, form):
    body = views(f"costs?window={WORLD.start},{END}&step=day").json()
    found = read(views(f"costs?window={WORLD.start},{END}&step=day&format={form}"))
    assert [row["start"] for row in found.rows] == [point["start"] for point in body["data_points"]]
    assert found.sum("total_cost (USD)") == pytest.approx(body["total_cost"], rel=1e-12)


@pytest.mark.parametrize("form", FORMATS)
def test_assets_and_savings(views, form):
    window = f"window={WORLD.start},{END}"
    body = views(f"assets?{window}&limit=1000").json()
    found = read(views(f"assets?{window}&format={form}"))
    assert found.sum("total_cost (USD)") == pytest.approx(body["total_cost"], rel=1e-12)
    assert len(found.rows) == body["total_count"]
    nodes = read(views(f"assets?{window}&asset_type=node&format={form}"))
    assert {row["type"] for row in nodes.rows} == {"node"} and nodes.about["filters"] == "asset_type = node"

    body = views(f"optimization?{window}").json()
    found = read(views(f"optimization?{window}&format={form}"))
    assert found.rows and found.about["potential_savings"] == f"{body['potential_savings']!r} USD a month"
    assert all(json.loads(row["evidence"]) for row in found.rows)
    listed = [one for kind in ("right_sizing", "under_provisioned", "abandoned_workloads", "unclaimed_volumes", "idle_nodes")
              for one in body[kind]]  # fmt: skip
    assert found.sum("monthly_saving (USD a month)") == pytest.approx(fsum(one["monthly_saving"] for one in listed))


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_not_known_is_an_empty_cell_and_never_zero(stack: Stack, form: str) -> None:
    """An OpenCost whose answers have no RAM cost, and which tells no management cost."""

    def without_ram(path: str, body: Any) -> Any:
        for rows in body["data"] if path == "/allocation" else ():
            for row in rows.values():
                row.pop("ramCost")
        return body

    _, url = stack.simulate(WORLD, Habits(serves=frozenset({"opencost"}), rewrite=without_ram))
    running = stack.start()
    tenant = make_tenant(running, "acme")
    cluster = link(running, tenant, "c", "opencost", url)
    path = f"/restapi/v2/kubecost/clusters/{cluster}/costs?window={WORLD.start},{END}"
    body = ask(running, tenant.tokens["viewer"], path).json()
    assert body["total_cost"] is None and body["summary"]["ram_cost"] is None and body["complete"] is False
    found = read(ask(running, tenant.tokens["viewer"], f"{path}&format={form}"))
    assert found.about["total_cost"] == "not known" and found.about["complete"] == "no"
    assert found.about["not_covered"] == "; ".join(body["not_covered"])
    for row, own in zip(found.rows, body["costs"], strict=False):
        known = row["ram_cost (USD)"]
        assert (float(known) if known is not None else None) == own["ram_cost"]
    assert None in {row["ram_cost (USD)"] for row in found.rows}
    assert found.rows[-2]["name"] == "__management__" and found.rows[-2]["total_cost (USD)"] is None


@pytest.mark.parametrize("form", FORMATS)
def test_expenses_months_and_chargeback_add_up(acme, form):
    body = acme.clean(f"{MONTH}&limit=1000").json()
    found = read(acme.export(form))
    assert len(found.rows) == body["total_count"]
    assert found.sum("total_cost (USD)") == pytest.approx(body["total_cost"], rel=1e-12)
    assert found.about["total_cost"] == f"{body['total_cost']!r} USD" and found.about["complete"] == "no"
    assert sum(name.startswith("not complete c") for name in found.about) == 2
    keys = ("cloud_account_id", "k8s_namespace", "k8s_controller", "resource_name", "k8s_node")
    of_file = {tuple(row[key] or "" for key in keys): float(row["total_cost (USD)"]) for row in found.rows}
    assert of_file == {tuple(row[key] for key in keys): row["cost"] for row in body["clean_expenses"]}

    filtered = read(acme.export(form, k8s_namespace="search", cloud_account_id=acme.ids[0]))
    assert {row["k8s_namespace"] for row in filtered.rows} == {"search"}
    assert filtered.about["filters"] == "k8s_namespace = search" and filtered.about["expenses"] == "stored of 1 cluster"

    months = acme.call("GET", "monthly", role="viewer", months=3).json()
    found = read(acme.call("GET", "monthly", role="viewer", months=3, format=form))
    told = [one["total_cost"] for month in months["months"] for one in month["clusters"] if one["total_cost"]]
    assert found.sum("total_cost (USD)") == pytest.approx(fsum(told)) and len(found.rows) == 6

    body = acme.chargeback(by="namespace")
    found = read(acme.call("GET", "chargeback", role="viewer", month="2026-10", by="namespace", format=form))
    assert found.sum("total_cost (USD)") == pytest.approx(body["totals"]["USD"], rel=1e-12)
    assert [row["name"] for row in found.rows] == [row["name"] for row in body["rows"]]
    assert found.about["closed"] == "no" and found.about["month"] == "2026-10"


class Hostile(Acme):
    def build(self):
        super().build()
        rows = [
            Allocation(name=f"n/{one}", namespace="n", pod=one, controller=one, costs=Costs(cpu=0.5)) for one in HOSTILE
        ]
        self.store(self.ids[0], rows, range(OCTOBER + 100 * HOUR, OCTOBER + 102 * HOUR, HOUR))


def test_no_name_is_a_formula_and_each_is_itself(stack):
    acme = Hostile(stack)
    found = read(acme.export("csv", k8s_namespace="n"))
    names = [row["resource_name"] for row in found.rows]
    assert not [name for name in names if name.lstrip(" ")[:1] in csv_file.FORMULA_STARTS]
    assert {name.removeprefix("'") if name != "'" else name for name in names} == set(HOSTILE)
    found = read(acme.export("xlsx", k8s_namespace="n"))
    assert {str(row["resource_name"]) for row in found.rows} >= {one for one in HOSTILE if one.isprintable()}
    assert len(found.rows) == len(HOSTILE)


def test_a_file_is_of_what_was_stored_when_it_began(acme, monkeypatch):
    """Hours that are stored, and stored again, while a file is made are not in it; they are in the next one."""
    before = acme.clean(f"{MONTH}&limit=1000").json()
    monkeypatch.setattr(expenses, "EXPORTED_AT_ONCE", 2)
    pages = _between_pages(acme, lambda: acme.store(
        acme.ids[1], [Allocation(name="new", namespace="new", pod="new", costs=Costs(cpu=9.0))],
        range(OCTOBER, OCTOBER + 96 * HOUR, HOUR),
    ))  # fmt: skip
    found = read(acme.export())
    assert pages[0] > 3
    assert found.sum("total_cost (USD)") == pytest.approx(before["total_cost"], rel=1e-12)
    assert "new" not in {row["k8s_namespace"] for row in found.rows}
    assert "new" in {row["k8s_namespace"] for row in read(acme.export()).rows}


def test_a_file_whose_rows_are_gone_is_cut(acme, monkeypatch):
    monkeypatch.setattr(expenses, "EXPORTED_AT_ONCE", 2)
    store = acme.running.metroculus.dependencies.store

    def purge() -> None:
        store.maintenance.purge(acme.ids[1])
        until(lambda: not store.ledger.committed(acme.ids[1], OCTOBER, NOVEMBER).hours)

    _between_pages(acme, purge)
    with pytest.raises(requests.RequestException):
        acme.export()
    assert _in_flight_ends(acme.running)


def test_a_failure_before_the_first_byte_is_an_ordinary_error(acme, monkeypatch):
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise MetroculusError("down")

    client = acme.running.rest_api.metroculus.client
    monkeypatch.setattr(client, "get_k8s_expense_rows", broken)
    answer = acme.export()
    assert answer.status_code == 502 and answer.json()["error"]["error_code"] == "OE0905"
    assert "Content-Disposition" not in answer.headers


@pytest.mark.parametrize("when", ["between pages", "while rows are read"])
def test_rows_that_are_swept_or_purged_never_leave_a_short_file(acme, monkeypatch, when):
    """Restated hours whose first batches are swept, and rows that go away after they were counted."""
    monkeypatch.setattr(expenses, "EXPORTED_AT_ONCE", 2)
    store, account = acme.running.metroculus.dependencies.store, acme.ids[1]

    def restate() -> None:
        acme.store(account, [Allocation(name="new", namespace="new", pod="new", costs=Costs(cpu=9.0))], acme.october)
        store.maintenance.clean(NOW + 2 * 86400, 4000)

    if when == "between pages":
        _between_pages(acme, restate)
    else:
        read_rows = store.history.rows_between

        def purged(committed: Any, *args: Any) -> Any:
            if committed.account == account:
                store.maintenance.purge(account)
                until(lambda: not store.ledger.span(account))
            return read_rows(committed, *args)

        monkeypatch.setattr(store.history, "rows_between", purged)
    with pytest.raises(requests.RequestException):
        acme.export()
    assert _in_flight_ends(acme.running)


def test_a_page_of_many_accounts_that_have_no_such_row_ends(acme, monkeypatch):
    """Each page has a time of its own, also where it finds nothing."""
    monkeypatch.setattr("metroculus.metroculus_api.controllers.expense_rows.PAGE_SECONDS", 0.0)
    client = Client(url=acme.running.metroculus_listener.url, secret=SECRET)
    pages = list(client.expense_pages(acme.ids, OCTOBER, NOVEMBER, ("cluster", "pod"), k8s_namespace="none-such"))
    assert len(pages) == len(acme.ids) and not any(page["rows"] for page in pages)
    client.close()


def test_a_window_that_moves_on_is_one_list(acme):
    """Of ``today`` and the like: the list stays that of its first page."""
    client, asked = Client(url=acme.running.metroculus_listener.url, secret=SECRET), []
    ask_page = client.get_k8s_expense_rows

    def page(*args: Any, **kwargs: Any) -> Any:
        asked.append((args[1:3], kwargs["window"]))
        return ask_page(*args, **kwargs)

    client.get_k8s_expense_rows = page
    rows = [
        row
        for one in client.expense_pages(acme.ids, group_by=("cluster", "pod"), window="60d", limit=2)
        for row in one["rows"]
    ]
    assert rows and asked[0][1] == "60d" and {window for _, window in asked[1:]} == {None} and len(set(asked[1:])) == 1
    client.close()


def test_over_http_1_0_the_end_of_the_connection_is_that_of_the_file(acme):
    host, port = acme.running.rest_api_listener.url.removeprefix("http://").split(":")
    path = f"/restapi/v2/organizations/{acme.tenant.organization_id}/kubecost/monthly?months=2&format=csv"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        token = acme.tenant.tokens["viewer"]
        connection.sendall(
            f"GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: keep-alive\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        told = b"".join(iter(lambda: connection.recv(65536), b""))
    assert told.split(b"\r\n\r\n", 1)[1].rstrip().split(b"\r\n")[-1].startswith(b"# rows,")


def test_no_room_for_a_workbook_is_said(acme, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    answer = acme.export("xlsx")
    assert answer.status_code == 503 and "format=csv" in answer.json()["error"]["reason"]
    assert read(acme.export("csv")).rows


def _between_pages(acme: Acme, work: Any) -> list[int]:
    """Call ``work`` once, after the first page; how many pages were asked for."""
    client, count = acme.running.rest_api.metroculus.client, [0]
    ask_page = client.get_k8s_expense_rows

    def page(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            work()
        return ask_page(*args, **kwargs)

    client.get_k8s_expense_rows = page
    return count


def _in_flight_ends(running: Any) -> bool:
    until(lambda: running.rest_api.service.in_flight == 0)
    return True


def test_a_reader_that_stops_reading_is_let_go(views, acme, monkeypatch):
    """Its place is free again, and others are served meanwhile."""
    monkeypatch.setattr("tools.tornado_service.streamed.SEND_SECONDS", 0.5)
    monkeypatch.setattr(csv_file, "UNKNOWN", "x" * (64 << 20))
    token = acme.tenant.tokens["viewer"]
    url = (
        f"{acme.running.rest_api_listener.url}/restapi/v2/clean_expenses?organization_id={acme.tenant.organization_id}"
    )
    with requests.get(
        f"{url}&{MONTH}&format=csv", headers={"Authorization": f"Bearer {token}"}, stream=True, timeout=30
    ):
        assert acme.clean(f"{MONTH}&limit=1").status_code == 200
        assert _in_flight_ends(acme.running)


def test_pages_are_no_files_and_a_workbook_has_an_end(views, acme, monkeypatch):
    for given in ("limit=5", "cursor=x", "limit=5&cursor=x"):
        answer = views(f"costs?window=1d&format=csv&{given}")
        assert answer.status_code == 400, given
    assert acme.export(limit=5).json()["error"]["params"] == ["limit"]
    assert acme.export("ods").status_code == 400
    assert acme.export(sort="cpu_cost", order="asc").json()["error"]["params"] == ["sort", "order"]
    for idle in ("share", "hide"):
        assert views(f"costs?window=1d&step=hour&idle={idle}&format=csv").status_code == 400
    monkeypatch.setattr(workbook, "MOST_ROWS", 3)
    answer = acme.export("xlsx")
    assert answer.status_code == 400 and "format=csv" in answer.json()["error"]["reason"]
    assert len(read(acme.export()).rows) > 3


def test_head_gzip_and_too_many_at_once(views, acme, monkeypatch):
    answer = views("costs?window=1d&format=csv", method="HEAD")
    assert answer.status_code == 200 and answer.content == b""
    assert answer.headers["Content-Type"].startswith("text/csv")
    packed = views("costs?window=1d&format=csv", **{"Accept-Encoding": "gzip"})
    plain = views("costs?window=1d&format=csv", **{"Accept-Encoding": "identity"})
    assert packed.headers["Content-Encoding"] == "gzip" and "Content-Encoding" not in plain.headers
    assert packed.content == plain.content
    assert "Content-Length" not in answer.headers
    for name in ("AT_ONCE", "OF_ONE_ORGANIZATION"):
        with monkeypatch.context() as patched:
            patched.setattr(files, name, 0)
            answer = acme.export()
            assert answer.status_code == 503 and answer.headers["Retry-After"] == "10"
    assert read(acme.export()).rows


def test_a_file_is_behind_the_same_wall_as_the_answer(acme):
    strange = acme.other.tokens["admin"]
    for path in (f"clean_expenses?{MONTH}", "kubecost/monthly?months=1", "kubecost/chargeback?month=2026-10"):
        target = f"/restapi/v2/organizations/{acme.tenant.organization_id}/{path}&format=csv"
        assert ask(acme.running, strange, target).status_code == 404
        assert ask(acme.running, None, target).status_code == 401
    foreign = acme.export(cloud_account_id=acme.foreign)
    assert foreign.status_code == 404 and "Content-Disposition" not in foreign.headers


def test_each_account_is_one_row_whatever_a_page_holds(acme):
    client = Client(url=acme.running.metroculus_listener.url, secret=SECRET)
    for limit in (1, 2, 3, 10):
        pages = list(client.expense_pages(acme.ids, OCTOBER, NOVEMBER, "cluster", limit=limit))
        rows = [row for page in pages for row in page["rows"]]
        assert [row["cluster"] for row in rows] == acme.ids
        assert fsum(row["total_cost"] for row in rows) == pytest.approx(pages[0]["whole"]["total_cost"])
    client.close()


class Lacking(Acme):
    def build(self):
        super().build()
        rows = [Allocation(name="n/p", namespace="n", pod="p", costs=Costs(cpu=0.5), unknown=("ram",))]
        self.store(self.ids[0], rows, range(OCTOBER + 100 * HOUR, OCTOBER + 102 * HOUR, HOUR), unknown=("ram",))


@pytest.mark.parametrize("form", FORMATS)
def test_a_component_that_stored_hours_do_not_tell_is_empty_everywhere(stack, form):
    """In files and answers, of rows that lack it and of those that were never told to have any."""
    acme = Lacking(stack)
    body = acme.clean(f"{MONTH}&limit=1000&k8s_namespace=n").json()
    assert {row["ram_cost"] for row in body["clean_expenses"]} == {None} and body["total_cost"] is None
    found = read(acme.export(form, k8s_namespace="n"))
    assert {row["ram_cost (USD)"] for row in found.rows} == {None} and found.about["total_cost"] == "not known"
    rows = {row["name"]: row for row in acme.chargeback(by="namespace")["rows"]}
    assert rows["n"]["ram_cost"] is None and rows["n"]["cpu_cost"] == 1.0
    path = f"/restapi/v2/kubecost/clusters/{acme.ids[0]}/costs?{MONTH}"
    costs = ask(acme.running, acme.tenant.tokens["viewer"], path).json()
    assert costs["summary"]["ram_cost"] is None and {row["ram_cost"] for row in costs["costs"]} == {None}


def test_cursors_are_of_one_list(acme):
    """What another question's cursor, or a forged one, would show is refused."""
    client = Client(url=acme.running.metroculus_listener.url, secret=SECRET)
    asked = {"start_date": OCTOBER, "end_date": NOVEMBER, "group_by": ("cluster", "namespace")}
    _, first = client.get_k8s_expense_rows(acme.ids, **asked, limit=2)
    assert first["whole"]["row_count"] > 2 and len(first["rows"]) == 2
    others = (
        (acme.ids[:1], asked),
        (acme.ids[::-1], asked),
        ([acme.foreign, acme.ids[1]], asked),
        (acme.ids, asked | {"k8s_namespace": "lab"}),
        (acme.ids, asked | {"group_by": ("cluster", "pod")}),
        (acme.ids, asked | {"end_date": NOVEMBER - HOUR}),
    )
    for accounts, question in others:
        with pytest.raises(MetroculusError) as refused:
            client.get_k8s_expense_rows(accounts, **question, cursor=first["next_cursor"])
        assert refused.value.status == 400 and refused.value.params == ("cursor",)
    for forged in ("x", "AAAA", first["next_cursor"][:-4], "_" * 40_000, "_" * 40_001):
        with pytest.raises(MetroculusError) as refused:
            client.get_k8s_expense_rows(acme.ids, **asked, cursor=forged)
        assert refused.value.status == 400
    rows = [row for page in client.expense_pages(acme.ids, **asked, limit=2) for row in page["rows"]]
    assert fsum(row["total_cost"] for row in rows) == pytest.approx(first["whole"]["total_cost"], rel=1e-12)
    assert [row["cluster"] for row in rows] == sorted((row["cluster"] for row in rows), key=acme.ids.index)
    client.close()


ROWS = int(os.environ.get("EXPORT_ROWS", "20000"))
"""``make test-long`` exports a million."""


class Large(Organization):
    october = range(0)

    def build(self):
        super().build()
        pods = range(ROWS // 2)
        rows = [
            Allocation(name=f"ns-{n % 50}/{n}", namespace=f"ns-{n % 50}", pod=f"pod-{n}", controller=f"c-{n % 999}",
                       costs=Costs(cpu=0.25 + n % 7, ram=0.125))
            for n in pods
        ]  # fmt: skip
        for account in self.ids:
            self.store(account, rows, range(OCTOBER, OCTOBER + 2 * HOUR, HOUR))


def test_a_large_file_is_whole_and_takes_little_memory(stack):
    acme = Large(stack)
    body = ask(acme.running, acme.tenant.tokens["viewer"],
               f"/restapi/v2/organizations/{acme.tenant.organization_id}/clean_expenses?{MONTH}&limit=1").json()  # fmt: skip
    url = (
        f"{acme.running.rest_api_listener.url}/restapi/v2/clean_expenses?organization_id={acme.tenant.organization_id}"
    )
    token, before, began = acme.tenant.tokens["viewer"], _memory_mib(), time.monotonic()
    total, rows, highest, first = 0.0, 0, 0.0, 0.0
    with requests.get(
        f"{url}&{MONTH}&format=csv", headers={"Authorization": f"Bearer {token}"}, stream=True, timeout=600
    ) as answer:
        answer.raw.decode_content = True
        lines = csv.reader(io.TextIOWrapper(answer.raw, "utf-8", newline=""))
        for line in lines:
            first = first or time.monotonic() - began
            if line[0].startswith("# ") or line[0] == "cloud_account_id":
                last = line
                continue
            rows, total = rows + 1, total + float(line[7])
            if rows % 5000 == 0:
                highest = max(highest, _memory_mib())
    assert last == ["# rows", str(rows)] and rows == body["total_count"] == ROWS + len(acme.ids)
    assert total == pytest.approx(body["total_cost"], rel=1e-9)
    print(f"{rows} rows, first byte {first:.2f} s, {time.monotonic() - began:.1f} s, {highest - before:.0f} MiB more")
    assert highest - before < 100, "50 MB of each of the two services, which are one process here"


def _memory_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
