"""Into a real InfluxDB: sums are the store's, after restatements, removals, outages and kills between."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from math import fsum

import pytest
import requests

from metroculus.config import SETTINGS, InfluxConfig
from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.assets import Asset
from metroculus.cost_model.line_protocol import series_key
from metroculus.metroculus_worker import influx as influx_round
from metroculus.metroculus_worker.influx import NotTaken, Refused
from metroculus.storage.engine import StoreError
from metroculus.storage.influx import UNSURE
from tests.conftest import free_port, need, wait_until_ready
from tests.organizations import NOVEMBER, Organization, row
from tests.support import END
from tools.settings import SettingsError, load
from tools.window import DAY, HOUR, iso

pytestmark = pytest.mark.watch

KILLS = int(os.environ.get("INFLUX_KILLS", "4"))
HOSTILE = ["a,b", "c=d", "e f", "g\\h", '"quoted"', "j,k=l m", "\\,n", "ünï", "'--;DROP", "p\\", "x" * 400]


class Influx:
    """An InfluxDB on ports of its own, with a folder that outlives it."""

    def __init__(self, folder, max_values=100_000):
        folder.mkdir(exist_ok=True)
        need("influxd", package="influxdb")
        self.port, backup = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "influx.conf").write_text(
            f'reporting-disabled = true\nbind-address = "127.0.0.1:{backup}"\n'
            f'[meta]\ndir = "{folder}/influx/meta"\n'
            f'[data]\ndir = "{folder}/influx/data"\nwal-dir = "{folder}/influx/wal"\n'
            f"max-values-per-tag = {max_values}\n"
            f'[http]\nbind-address = "127.0.0.1:{self.port}"\nlog-enabled = false\n'
        )
        self.command = ["influxd", "-config", str(folder / "influx.conf")]
        self.start()
        requests.post(f"{self.url}/query", params={"q": "CREATE DATABASE costs"}, timeout=20)

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until_ready(f"{self.url}/ping", self.process, 30)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def ask(self, question):
        params = {"q": question, "db": "costs", "epoch": "s"}
        (result,) = requests.get(f"{self.url}/query", params=params, timeout=20).json()["results"]
        found = result.get("series", [])
        assert "error" not in result, result
        return [
            dict(zip(one["columns"], values, strict=True)) | one.get("tags", {})
            for one in found
            for values in one["values"]
        ]

    def total(self, account, measurement="cost_allocations", **tags):
        where = "".join(f" AND {name} = '{value}'" for name, value in tags.items())
        rows = self.ask(f"SELECT sum(total_cost) AS usd FROM {measurement} WHERE cluster = '{account}'{where}")
        return rows[0]["usd"] if rows else 0.0


@pytest.fixture
def influx(tmp_path):
    made = Influx(tmp_path)
    yield made
    made.kill()


class Acme(Organization):
    october = range(NOVEMBER - 3 * DAY, NOVEMBER, HOUR)

    def __init__(self, stack, influx):
        stack.plan["influx"] = InfluxConfig(url=f"{influx.url}/write?db=costs")
        super().__init__(stack)
        self.kept = self.running.metroculus.dependencies.store
        self.round = self.running.worker.influx

    def send(self):
        self.stack.thread.run(self.round.send())

    def total(self, account):
        start, end = self.kept.ledger.span(account)
        return fsum(one.total for one in self.kept.summaries.sums(account, start, end, (), Filters()).sums)


@pytest.fixture
def acme(stack, influx):
    return Acme(stack, influx)


def test_sums_are_the_stores_after_restatements_and_removals(acme, influx):
    first, second = acme.ids
    acme.send()
    for account in (first, second, acme.foreign):
        assert influx.total(account) == pytest.approx(acme.total(account), rel=1e-9)
    hours = range(END, END + 3 * HOUR, HOUR)
    acme.store(first, [row("gone", 8.0), row("web", 1.0), row("", 0.5, idle=True)], hours)
    acme.send()
    assert influx.total(first, namespace="gone") == 24.0 and influx.total(first, resource_type="idle") > 0
    acme.store(first, [row("web", 2.0), row("web", 0.25)], hours)
    acme.send()
    assert influx.total(first, namespace="gone") == 0.0
    assert influx.total(first, namespace="web") == 3 * 2.25  # two containers of one pod are one point
    assert influx.total(first) == pytest.approx(acme.total(first), rel=1e-9)
    asked = len(influx.ask(f"SELECT total_cost FROM cost_allocations WHERE namespace = 'web' AND cluster = '{first}'"))
    acme.send()
    assert asked == 3


def test_only_what_changed_is_sent(acme, influx, monkeypatch):
    acme.send()
    posts = []
    post = acme.round._post

    async def counted(body):
        posts.append(body)
        await post(body)

    monkeypatch.setattr(acme.round, "_post", counted)
    acme.send()
    assert posts == []
    acme.store(acme.ids[0], [row("web", 1.0)], [END, END + HOUR])
    acme.send()
    (body,) = posts
    assert {line.rsplit(b" ", 1)[1] for line in body.splitlines()} == {b"%d" % END, b"%d" % (END + HOUR)}


def test_an_influx_that_is_away_is_caught_up(acme, influx):
    influx.kill()
    acme.store(acme.ids[0], [row("web", 1.0)], range(END, END + 5 * HOUR, HOUR))
    acme.send()
    acme.send()
    influx.start()
    acme.send()
    for account in acme.ids:
        assert influx.total(account) == pytest.approx(acme.total(account), rel=1e-9)


def test_kills_between_sending_and_noting_lose_and_double_nothing(acme, influx, monkeypatch):
    rng = random.Random(3)
    note, fails = acme.kept.influx_sent.note, []

    def killed(*args):
        if len(fails) < KILLS and rng.random() < 0.3:
            fails.append(args)
            raise StoreError("killed")
        note(*args)

    monkeypatch.setattr(acme.kept.influx_sent, "note", killed)
    number = 0
    while len(fails) < KILLS:
        number += 1
        namespace = f"n{number % 3}"
        acme.store(acme.ids[0], [row(namespace, 1.0 + number)], range(END, END + 4 * HOUR, HOUR))
        if number % 2:
            influx.kill()
            influx.start()
        acme.send()
    while True:
        acme.send()
        if not acme.kept.influx_sent.owed("cost_allocations", acme.ids[0]):
            break
    print(f"{KILLS} kills between sending and noting, {number} restatements: sums are the store's")
    assert influx.total(acme.ids[0]) == pytest.approx(acme.total(acme.ids[0]), rel=1e-9)


def test_what_was_sent_and_not_noted_is_written_as_zero_when_it_is_restated(acme, influx, monkeypatch):
    """Also half of what was to be sent, and a post that was taken though its answer never came."""
    account, note, post = acme.ids[0], acme.kept.influx_sent.note, acme.round._post
    failing = []

    def final_fails(measurement, of, sent, now):
        if failing and any(one.batch != UNSURE for one in sent):
            raise StoreError("killed")
        note(measurement, of, sent, now)

    async def half(body):
        await post(body)
        if failing:
            raise NotTaken("no answer")

    for team, patched in (
        ("first", (acme.kept.influx_sent, "note", final_fails)),
        ("second", (acme.round, "_post", half)),
    ):
        with monkeypatch.context() as broken:
            broken.setattr(*patched)
            failing.append(1)
            acme.store(account, [row("web", 8.0, team)], [END])
            acme.send()
            failing.clear()
        acme.store(account, [row("web", 8.0, f"not {team}")], [END])
        acme.send()
        assert influx.total(account) == pytest.approx(acme.total(account), rel=1e-9)
        assert influx.total(account, team=team) == 0.0


@pytest.mark.parametrize("size", [1 << 20, 1], ids=["after the last post", "between two posts"])
def test_one_who_sends_no_more_leaves_what_it_sent_to_the_next(acme, influx, monkeypatch, size):
    account, post, held = acme.ids[0], acme.round._post, [True]
    monkeypatch.setattr(influx_round, "BYTES_AT_ONCE", size)
    acme.send()
    acme.store(account, [row("late", 8.0)], [END])

    async def loses(body):
        await post(body)
        held.clear()

    with monkeypatch.context() as lost:
        lost.setattr(acme.round, "_post", loses)
        lost.setattr(type(acme.round._lease), "held", property(lambda lease: bool(held)))
        acme.send()
    acme.store(account, [row("web", 1.0)], [END])
    acme.send()
    assert influx.total(account, namespace="late") == 0.0
    assert influx.total(account) == pytest.approx(acme.total(account), rel=1e-9)


def test_points_that_are_refused_hold_back_their_own_hour_alone(acme, influx, monkeypatch, caplog):
    """Of whatever account: the others are sent, and the hour is named with InfluxDB's reason."""
    first, second = acme.ids
    post = acme.round._post

    async def refuses(body):
        if b"poison" in body:
            raise Refused("status 400: partial write")
        await post(body)

    acme.store(first, [row("poison", 8.0)], [END])
    acme.store(first, [row("web", 8.0)], [END + HOUR])
    acme.store(second, [row("web", 1.0)], [END, END + HOUR])
    with monkeypatch.context() as refusing:
        refusing.setattr(acme.round, "_post", refuses)
        acme.send()
    assert acme.kept.influx_sent.owed("cost_allocations", first) == [END]
    assert f"account {first}: InfluxDB refuses points of {iso(END)}: status 400: partial write" in caplog.text
    for account in (second, acme.foreign):
        assert influx.total(account) == pytest.approx(acme.total(account), rel=1e-9)
    assert influx.total(first) == pytest.approx(acme.total(first) - 8.0625, rel=1e-9)
    acme.send()
    assert acme.kept.influx_sent.owed("cost_allocations", first) == [END], "not before an hour"
    acme.round._held.clear()
    acme.send()
    assert influx.total(first) == pytest.approx(acme.total(first), rel=1e-9)


def test_a_series_limit_of_one_is_no_limit_of_others(tmp_path, stack):
    influx = Influx(tmp_path / "limited", max_values=30)
    acme = Acme(stack, influx)
    acme.send()
    acme.store(acme.ids[0], [row(f"n{n}", 1.0) for n in range(60)], [END - HOUR])
    acme.send()
    acme.store(acme.ids[0], [row(f"other{n}", 1.0) for n in range(60)], [END])
    acme.store(acme.ids[1], [row("search", 1.0)], [END])
    acme.send()
    for account in (acme.ids[1], acme.foreign):
        assert influx.total(account) == pytest.approx(acme.total(account), rel=1e-9)
    assert acme.kept.influx_sent.owed("cost_allocations", acme.ids[0]) == [END]
    influx.kill()


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, "points beyond retention policy dropped=5"),
        (422, "partial write: dropped 3 points outside retention policy"),
    ],
)
def test_what_is_too_old_counts_as_sent(acme, monkeypatch, status, told):
    async def too_old(*args):
        return status, told.encode()

    monkeypatch.setattr(influx_round, "post", too_old)
    acme.send()
    for account in acme.ids:
        assert acme.kept.influx_sent.owed("cost_allocations", account) == []


def test_a_body_that_is_too_large_is_halved(acme, influx, monkeypatch):
    sizes, post = [], influx_round.post

    async def limited(client, url, body, *more):
        sizes.append(len(body))
        return (413, b"") if len(body) > 2_000 else await post(client, url, body, *more)

    monkeypatch.setattr(influx_round, "post", limited)
    acme.send()
    assert max(sizes) > 2_000
    for account in acme.ids:
        assert influx.total(account) == pytest.approx(acme.total(account), rel=1e-9)


def test_the_newest_hours_of_all_come_first(acme, influx, monkeypatch):
    bodies, post = [], acme.round._post

    async def seen(body):
        bodies.append(body)
        await post(body)

    monkeypatch.setattr(acme.round, "_post", seen)
    acme.send()
    first = {re.search(rb"cluster=([0-9a-f-]+)", body)[1].decode() for body in bodies[:3]}
    assert first == {*acme.ids, acme.foreign}


def test_one_that_cannot_be_read_holds_up_no_other(acme, influx, monkeypatch):
    points, first = acme.round._points_of_hours, acme.ids[0]

    def unreadable(account, hours):
        if account == first:
            raise StoreError("memory limit")
        return points(account, hours)

    monkeypatch.setattr(acme.round, "_points_of_hours", unreadable)
    acme.send()
    assert influx.total(acme.ids[1]) == pytest.approx(acme.total(acme.ids[1]), rel=1e-9)
    assert acme.running.worker.service.registry.get_sample_value("metroculus_influx_failing") == 1


def test_what_was_purged_is_zero_and_comes_back_once(acme, influx):
    account = acme.ids[0]
    acme.send()
    acme.kept.maintenance.purge(account)
    acme.send()
    assert influx.total(account) == 0.0
    acme.send()
    acme.store(account, [row("web", 1.0)], [END])
    acme.send()
    assert influx.total(account) == pytest.approx(acme.total(account), rel=1e-9)


def test_a_quote_behind_a_backslash_hides_no_other_line(acme, influx):
    names = ['\\ \\="', 'a\\ b"=', '"\\', "x" * 70_000]
    acme.store(acme.ids[0], [row(f"n{n}", 1.0, team=name) for n, name in enumerate(names)], [END])
    acme.send()
    assert acme.kept.influx_sent.owed("cost_allocations", acme.ids[0]) == []
    assert influx.total(acme.ids[0]) == pytest.approx(acme.total(acme.ids[0]), rel=1e-9)


def test_hostile_names_come_back_as_they_were(acme, influx):
    account = acme.ids[0]
    rows = [row(name, 1.0, team=name) for name in HOSTILE]
    acme.store(account, rows, [END])
    acme.send()
    found = influx.ask(
        f"SELECT total_cost FROM cost_allocations WHERE time = {END}s AND cluster = '{account}' GROUP BY namespace, team"
    )
    told = {(one["namespace"], one["team"]) for one in found if one["namespace"] != "__management__"}
    # A backslash cannot end a tag: there is no way to write it.
    assert told == {(name, name) if not name.endswith("\\") else (f"{name} ", f"{name} ") for name in HOSTILE}


def test_days_of_assets_are_sent_and_replaced(acme, influx):
    account, day = acme.ids[0], END - END % DAY - DAY
    store = acme.kept

    def commit(*assets):
        store.assets.commit(account, day, assets, store.ledger.new_batch(), END, acme.writer)

    node = Asset(
        type="node", name="n 1", instance_type="m5.large", zone="a", cpu_cores=2.0, ram_bytes=8e9, total_cost=4.0
    )
    disk = Asset(type="disk", name="d", storage_bytes=5e9, total_cost=1.5)
    commit(node, disk, disk)
    acme.send()
    assert influx.total(account, "asset_costs") == 7.0
    (one,) = influx.ask("SELECT cpu_cores, memory_gb, total_cost FROM asset_costs WHERE asset_type = 'node'")
    assert (one["cpu_cores"], one["memory_gb"], one["total_cost"]) == (2.0, 8.0, 4.0)
    commit(node)
    acme.send()
    assert influx.total(account, "asset_costs") == 4.0


def test_what_it_refuses_is_said_without_its_address(acme, influx, caplog):
    acme.round._config = InfluxConfig(url=f"{influx.url}/write?db=nothing&u=me&p=of-the-url")
    acme.send()
    assert "status 404" in caplog.text and "of-the-url" not in caplog.text
    assert acme.kept.influx_sent.owed("cost_allocations", acme.ids[0])


@pytest.mark.parametrize(
    "url", ["http://x:8086", "http://x:8086/write", "http://x/write?db=", "ftp://x/write?db=a", "http://x/write?db=a&q=DROP",
            "http://u:p@x/write?db=a", "http://x/write?db=a b", "http://x/query?db=a"],
)  # fmt: skip
def test_a_url_that_cannot_be_written_to_stops_the_start(url):
    with pytest.raises(SettingsError, match="INFLUX_URL: must be") as problem:
        load(SETTINGS, {}, {"INFLUX_URL": url})
    assert url not in str(problem.value)


def test_empty_tags_are_left_out():
    assert series_key("m", {"b": "", "a": "x y"}) == "m,a=x\\ y"
    assert issubclass(NotTaken, Exception)
