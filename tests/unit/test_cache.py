"""The cache of answers: what is kept, who waits for whom, and what stands in when sources fail."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from metroculus.cost_model.reading import SourceReport
from metroculus.metroculus_api.cache import RETRY_SECONDS, STALE_SECONDS, AnswerCache
from metroculus.sources.errors import DeadlineExceeded, Unreachable
from tools.deadline import Deadline

FRESH = 300.0
ACCOUNT, QUESTION = "account", ("costs",)


class Figure(Struct, frozen=True, kw_only=True):
    total: float | None
    complete: bool = True
    sources: tuple[SourceReport, ...] = (SourceReport(name="allocation", status="ok", fetched_at=7),)


class Upstream:
    """Says ``figure``, or raises it, when it is let; counts how often it was asked."""

    def __init__(self, figure=None):
        self.figure = figure or Figure(total=1.0)
        self.asked = 0
        self.deadlines = []
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, deadline):
        self.asked += 1
        self.deadlines.append(deadline)
        await self.open.wait()
        if isinstance(self.figure, Exception):
            raise self.figure
        return self.figure


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def cache_of(fresh=FRESH, revisions=None, max_bytes=1 << 20):
    clock = Clock()

    return AnswerCache(Basis(revisions or {}), fresh, 30.0, max_bytes, clock=clock), clock


class Basis:
    def __init__(self, revisions):
        self._revisions = revisions

    async def of(self, account):
        return self.remembered(account)

    def remembered(self, account):
        return self._revisions.get(account), ()


async def ask(cache, work, account=ACCOUNT, question=QUESTION, seconds=20.0):
    return await cache.answer(account, question, work, Deadline(seconds, "a-request"))


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def read(answered):
    return json.loads(answered.prepared.body)


def run(test):
    return asyncio.run(asyncio.wait_for(test, 20))


def test_an_answer_is_fresh_for_its_time_and_then_given_once_more_while_it_is_asked_anew():
    async def check():
        cache, clock = cache_of()
        upstream = Upstream()
        assert (await ask(cache, upstream)).state == "miss"
        clock.now += FRESH - 1
        hit = await ask(cache, upstream)
        assert (hit.state, hit.age, upstream.asked) == ("hit", FRESH - 1, 1)
        upstream.figure = Figure(total=2.0)
        clock.now += 1
        old = await ask(cache, upstream)
        assert (old.state, old.age, read(old)["total"]) == ("stale", FRESH, 1.0)
        await settle()
        new = await ask(cache, upstream)
        assert (new.state, new.age, read(new)["total"], upstream.asked) == ("hit", 0, 2.0, 2)
        clock.now += 2 * FRESH  # nobody asked for so long: who asks now waits for what is true now
        upstream.figure = Figure(total=3.0)
        assert read(await ask(cache, upstream))["total"] == 3.0

    run(check())


def test_many_who_ask_the_same_at_once_are_one_question_and_share_what_comes_of_it():
    async def check(figure):
        cache, _ = cache_of()
        upstream = Upstream(figure)
        upstream.open.clear()
        asking = [asyncio.create_task(ask(cache, upstream)) for _ in range(50)]
        await settle()
        upstream.open.set()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert upstream.asked == 1 and len({str(one) for one in answers}) == 1
        assert cache.stats().coalesced == 49
        return answers[0]

    assert run(check(Figure(total=4.0))).state == "miss"
    assert isinstance(run(check(Unreachable("no"))), Unreachable)


def test_who_leaves_takes_the_question_along_only_where_nobody_else_waits():
    async def check():
        cache, _ = cache_of()
        upstream = Upstream()
        upstream.open.clear()
        first, second = Deadline(20.0), Deadline(20.0)
        asking = [asyncio.create_task(cache.answer(ACCOUNT, QUESTION, upstream, one)) for one in (first, second)]
        await settle()
        first.expire()
        assert upstream.deadlines[0].left() > 0
        second.expire()
        assert upstream.deadlines[0].left() <= 0
        third = asyncio.create_task(ask(cache, upstream))  # it is not told that another's time is over
        await settle()
        assert upstream.asked == 2 and upstream.deadlines[1].left() > 0
        upstream.open.set()
        assert (await third).state == "miss"
        await asyncio.gather(*asking)

    run(check())


def test_who_has_less_time_is_told_so_and_the_others_get_their_answer():
    async def check():
        cache, _ = cache_of()
        upstream = Upstream()
        upstream.open.clear()
        patient = asyncio.create_task(ask(cache, upstream))
        await settle()
        with pytest.raises(DeadlineExceeded):
            await ask(cache, upstream, seconds=0.01)
        upstream.open.set()
        assert (await patient).state == "miss" and upstream.asked == 1

    run(check())


FAILURES = [
    Unreachable("the cost source cannot be reached"),
    Figure(total=None, complete=False, sources=(SourceReport(name="allocation", status="no_data"),)),
    Figure(
        total=None, complete=False, sources=(SourceReport(name="allocation", status="unavailable", error="it is away"),)
    ),
    Figure(total=0.5, complete=True, sources=(SourceReport(name="allocation", status="partial"),)),
    Figure(total=None, complete=False, sources=(SourceReport(name="another", status="unavailable"),)),
]


@pytest.mark.parametrize("failure", FAILURES, ids=["raises", "no data", "unavailable", "partial", "another source"])
def test_while_sources_fail_the_last_whole_answer_stands_in_and_says_so(failure):
    async def check():
        cache, clock = cache_of()
        upstream = Upstream()
        await ask(cache, upstream)
        upstream.figure = failure
        clock.now += 2 * FRESH
        for _ in range(3):
            answer = await ask(cache, upstream)
            told = read(answer)
            assert (answer.state, told["total"], told["complete"]) == ("stale", 1.0, False)
            assert answer.age >= 2 * FRESH
            (source,) = told["sources"]
            assert source["status"] == "stale" and source["error"] and source["fetched_at"] == 7
        assert upstream.asked == 2, "the sources are left alone for a moment"
        clock.now += RETRY_SECONDS
        assert (await ask(cache, upstream)).state == "stale" and upstream.asked == 3
        upstream.figure = Figure(total=2.0)
        clock.now += RETRY_SECONDS
        healed = await ask(cache, upstream)
        assert (healed.state, read(healed)["total"], read(healed)["complete"]) == ("miss", 2.0, True)

    run(check())


def test_what_is_too_old_stands_in_for_nothing():
    async def check():
        cache, clock = cache_of()
        upstream = Upstream()
        await ask(cache, upstream)
        upstream.figure = Unreachable("no")
        clock.now += FRESH + STALE_SECONDS - 1
        assert (await ask(cache, upstream)).state == "stale"
        clock.now += 1
        with pytest.raises(Unreachable):
            await ask(cache, upstream)

    run(check())


def test_a_source_that_hangs_past_the_callers_time_leaves_the_last_whole_answer():
    async def check():
        cache, clock = cache_of()
        upstream = Upstream()
        await ask(cache, upstream)
        clock.now += 2 * FRESH
        upstream.open.clear()
        answer = await ask(cache, upstream, seconds=0.01)
        assert (answer.state, read(answer)["complete"]) == ("stale", False)
        upstream.open.set()
        upstream.figure = Figure(total=2.0)
        await settle()
        later = await ask(cache, upstream)  # that one had no time says nothing about the source
        assert later.state != "stale" and read(later)["total"] == 2.0

    run(check())


def test_a_defect_of_a_refresh_that_nobody_waits_for_is_told(caplog):
    async def check():
        cache, clock = cache_of()
        upstream = Upstream()
        await ask(cache, upstream)
        upstream.figure = ZeroDivisionError("a defect")
        clock.now += FRESH
        assert (await ask(cache, upstream)).state == "stale"
        await settle()

    run(check())
    assert "could not be asked anew" in caplog.text and "a defect" in caplog.text


@pytest.mark.parametrize("figure", FAILURES[1:], ids=["no data", "unavailable", "partial", "another source"])
def test_what_is_not_whole_is_never_kept(figure):
    async def check():
        cache, _ = cache_of()
        upstream = Upstream(figure)
        for turn in range(1, 4):
            assert (await ask(cache, upstream)).state == "miss" and upstream.asked == turn
        assert cache.stats().items == 0

    run(check())


def test_nothing_is_kept_where_that_is_turned_off_and_a_defect_is_not_hidden_by_what_is_kept():
    async def check():
        cache, _ = cache_of(fresh=0.0)
        upstream = Upstream()
        assert [(await ask(cache, upstream)).state for _ in range(3)] == ["miss"] * 3
        assert cache.stats().items == 0
        kept, clock = cache_of()
        await ask(kept, upstream)
        clock.now += 2 * FRESH
        upstream.figure = ZeroDivisionError("a defect")
        with pytest.raises(ZeroDivisionError):
            await ask(kept, upstream)

    run(check())


def test_it_holds_no_more_than_its_bytes_and_nothing_that_would_push_all_else_out():
    async def check():
        cache, _ = cache_of(max_bytes=20_000)
        upstream = Upstream()
        for number in range(400):
            await ask(cache, upstream, question=(number,))
            assert cache.stats().bytes <= 20_000
        assert 10 < cache.stats().items < 400
        items = cache.stats().items
        long = Figure(total=1.0, sources=(SourceReport(name="allocation", status="ok", error="x" * 20_000),))
        await ask(cache, Upstream(long), question=("long",))
        assert cache.stats().items == items

    run(check())


def test_what_is_kept_packed_is_the_same():
    async def check():
        cache, _ = cache_of()
        long = Figure(total=1.0, sources=tuple(SourceReport(name=f"s{n}", status="ok") for n in range(100)))
        made = (await ask(cache, Upstream(long))).prepared
        assert made.packed is not None and gzip.decompress(made.packed) == made.body
        again = (await ask(cache, Upstream(long), account="other")).prepared
        assert again.etag == made.etag and made.etag.startswith('"')

    run(check())


accounts = st.sampled_from(["a", "b", "c"])
steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "remove", "fail", "mend", "wait"]), accounts, st.sampled_from([1.0, FRESH, 3 * FRESH])
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_an_account_meets_only_its_own_figures_of_its_present_source(steps):
    """Against a model: each account's source has figures of its own, and so has each that it is given in its place."""

    async def check():
        revisions = dict.fromkeys("abc", 1)
        cache, clock = cache_of(revisions=revisions)
        numbers = {"a": 1000, "b": 2000, "c": 3000}
        failing = set()

        for what, account, seconds in steps:
            if what == "remove":
                revisions[account] += 1
            elif what == "fail":
                failing.add(account)
            elif what == "mend":
                failing.discard(account)
            elif what == "wait":
                clock.now += seconds
            else:
                own = numbers[account] + revisions[account]
                figure = Unreachable("no") if account in failing else Figure(total=float(own))
                try:
                    told = await ask(cache, Upstream(figure), account)
                except Unreachable:
                    assert account in failing
                    continue
                assert read(told)["total"] == own
                if told.state == "stale" and read(told)["complete"]:
                    assert told.age < 2 * FRESH
            await settle()

    run(check())


class Moving:
    """A question whose window moves on when it is told to; how often each was asked."""

    def __init__(self, upstream):
        self.upstream, self.moves_in = upstream, float("inf")

    def __call__(self, ahead):
        return (("costs", 0 if ahead < self.moves_in else 1), self.upstream)


async def renewing(cache, anew, account=ACCOUNT):
    question, work = anew(0.0)
    return await cache.answer(account, question, work, Deadline(20.0, "a-request"), anew)


@pytest.mark.parametrize(
    "asked_for, moves_in, changed, renewals",
    [(True, 1e9, False, 1), (False, 1e9, False, 0), (True, 0.001, False, 0), (True, 1e9, True, 0)],
    ids=["asked for lately", "asked for by nobody", "a window that moves on", "a source that has changed"],
)
def test_what_was_asked_for_is_asked_anew_before_it_goes_stale(asked_for, moves_in, changed, renewals):
    async def check():
        revisions = {ACCOUNT: 1}
        cache = AnswerCache(Basis(revisions), 0.4, 30.0, 1 << 20)
        upstream = Upstream()
        moving = Moving(upstream)
        await renewing(cache, moving)
        if asked_for:
            assert cache.hit(ACCOUNT, moving(0.0)[0]).state == "hit"
        moving.moves_in = moves_in
        if changed:
            revisions[ACCOUNT] = 2
        await asyncio.sleep(0.45)
        assert cache.stats().renewed == renewals and upstream.asked == 1 + renewals
        if renewals:
            assert cache.hit(ACCOUNT, moving(0.0)[0]).state == "hit", "nobody was made to wait"
        cache.close()

    run(check())


def test_an_account_whose_source_hangs_takes_one_place_among_renewals():
    async def check():
        cache = AnswerCache(Basis({}), 0.4, 30.0, 1 << 20)
        hanging, honest = Upstream(), Upstream()
        questions = [lambda ahead, n=n: (("costs", n), hanging) for n in range(6)]
        for anew in questions:
            await renewing(cache, anew, "hangs")
            cache.hit("hangs", anew(0.0)[0])
        await renewing(cache, Moving(honest), "honest")
        cache.hit("honest", ("costs", 0))
        hanging.open.clear()
        await asyncio.sleep(0.45)
        assert honest.asked == 2 and hanging.asked == 6 + 1
        hanging.open.set()
        cache.close()
        await settle()

    run(check())
