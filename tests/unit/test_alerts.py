"""The state machine of alerts over any sequence of findings, and what each kind fires and clears on, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metroculus.metroculus_worker.attempts import AttemptLog
from metroculus.metroculus_worker.notify import signature
from metroculus.watch.alerts import Finding, advance, alert_id, resolve_gone
from metroculus.watch.findings import (
    Attempts,
    Compared,
    budget_findings,
    cost_spike,
    data_stale,
    drift,
    extraction_failing,
    push_silent,
    store_capacity,
)
from metroculus.watch.spikes import FoundSpikes
from optscale_client.metroculus_client import structs
from tools.settings import size
from tools.window import DAY, HOUR

pytestmark = pytest.mark.watch

ORGANIZATION, ACCOUNT = "acme", "an account"
NOW = 1795220400
verdicts = st.sampled_from(["firing", "clear", "hold", "unknown"])


def finding(verdict, epoch="", **more):
    return Finding(kind="cost_spike", subject=ACCOUNT, verdict=verdict, epoch=epoch, **more)


@given(st.lists(st.tuples(verdicts, st.sampled_from(["", "", "next"])), max_size=60))
def test_alerts_fire_and_clear_for_a_cause_alone(found):
    alert, transitions = None, []
    for at, (verdict, epoch) in enumerate(found, 1):
        before = alert
        alert = advance(ORGANIZATION, before, finding(verdict, epoch), at, ("webhook",))
        state = None if before is None else before.state
        if alert is before:
            continue
        assert alert is not None
        if state == "firing" and alert.state == "resolved":
            assert verdict == "clear" or (epoch and epoch != before.epoch)
        elif alert.state == "firing" and state != "firing":
            assert verdict == "firing"
        else:  # nothing but whether it can be told has changed
            assert alert.transition == before.transition and alert.key == before.key
            assert (alert.unknown_since is not None) == (verdict == "unknown")
            continue
        assert alert.transition == len(transitions) + 1 and alert.changed_at == at
        assert alert.id == alert_id(ORGANIZATION, "cost_spike", ACCOUNT)
        transitions.append(alert.key)
    assert len(set(transitions)) == len(transitions)


def test_an_alert_that_cannot_be_told_keeps_its_state_and_says_since_when():
    fired = advance(ORGANIZATION, None, finding("firing", summary="dear"), NOW)
    unknown = advance(ORGANIZATION, fired, finding("unknown"), NOW + 60)
    assert (unknown.state, unknown.unknown_since, unknown.summary) == ("firing", NOW + 60, "dear")
    assert advance(ORGANIZATION, unknown, finding("unknown"), NOW + 120) is unknown
    assert advance(ORGANIZATION, unknown, finding("firing"), NOW + 180).unknown_since is None
    assert advance(ORGANIZATION, None, finding("unknown"), NOW) is None
    resolved = advance(ORGANIZATION, unknown, finding("clear", summary="a day without"), NOW + 240)
    assert (resolved.state, resolved.resolved_because, resolved.transition) == ("resolved", "a day without", 2)


def test_an_alert_of_what_is_gone_is_over_once():
    over = resolve_gone(advance(ORGANIZATION, None, finding("firing"), NOW), NOW + 90)
    assert over.state == "resolved" and resolve_gone(over, NOW + 99) is over
    again = advance(ORGANIZATION, over, finding("firing"), NOW + 120)
    assert again.transition == 3 and again.fired_at == NOW + 120


def test_what_is_found_anew_is_told_anew_without_a_transition():
    fired = advance(ORGANIZATION, None, finding("firing", "e", summary="dear"), NOW)
    worse = advance(ORGANIZATION, fired, finding("firing", "e", summary="dearer", renews=True), NOW + 60)
    assert (worse.summary, worse.key, worse.transition) == ("dearer", fired.key, 1)
    assert advance(ORGANIZATION, worse, finding("unknown"), NOW + 120).state == "firing"
    other = advance(ORGANIZATION, worse, finding("firing", "f", why_over="another spike came", renews=True), NOW + 180)
    assert (other.state, other.resolved_because) == ("resolved", "another spike came")


@pytest.mark.parametrize(
    ("count", "failed", "seconds", "verdict"),
    [(0, 0, 0, "unknown"), (0, 0, HOUR, "unknown"), (1, 1, 60, "hold"), (10, 2, 60, "firing"), (40, 2, HOUR, "hold"),
     (39, 2, HOUR, "firing"), (3, 0, HOUR - 1, "hold"), (3, 0, HOUR, "clear"), (100, 5, HOUR, "hold"),
     (100, 6, HOUR, "firing")],
)  # fmt: skip
def test_extraction_failing(count, failed, seconds, verdict):
    attempts = Attempts(count=count, failed=failed, observed_seconds=seconds)
    assert extraction_failing(ACCOUNT, attempts).verdict == verdict


def test_attempts_are_those_of_the_last_hour_and_a_restart_knows_none():
    now = [NOW]
    log = AttemptLog(lambda: now[0])
    assert not log.knows(ACCOUNT) and log.of(ACCOUNT) == Attempts(count=0, failed=0, observed_seconds=0)
    for minute in range(0, 60, 10):
        log.note(ACCOUNT, NOW + minute * 60, failed=minute < 20)
    now[0] = NOW + 50 * 60
    assert log.of(ACCOUNT) == Attempts(count=6, failed=2, observed_seconds=3000)
    now[0] = NOW + 75 * 60
    assert log.of(ACCOUNT) == Attempts(count=4, failed=0, observed_seconds=HOUR)
    now[0] = NOW - DAY  # a clock that was set back
    assert log.of(ACCOUNT) == Attempts(count=0, failed=0, observed_seconds=0)
    log.note(ACCOUNT, now[0], failed=False)
    now[0] += 1800
    assert log.of(ACCOUNT) == Attempts(count=1, failed=0, observed_seconds=1800)
    log.forget(ACCOUNT)
    assert not log.knows(ACCOUNT)


@pytest.mark.parametrize(
    ("stored_until", "tried", "verdict"),
    [(NOW - 4 * HOUR, True, "clear"), (NOW - 4 * HOUR - 1, True, "firing"), (NOW - 4 * HOUR - 1, False, "unknown"),
     (None, True, "firing"), (None, False, "unknown"), (NOW + DAY, True, "clear")],
)  # fmt: skip
def test_data_stale(stored_until, tried, verdict):
    assert data_stale(ACCOUNT, stored_until, NOW - 5 * HOUR, tried, NOW).verdict == verdict
    assert data_stale(ACCOUNT, None, NOW - HOUR, True, NOW).verdict == "clear"  # linked an hour ago


def test_push_silent():
    assert push_silent(ACCOUNT, NOW - 2 * HOUR, NOW).verdict == "clear"
    assert push_silent(ACCOUNT, NOW - 2 * HOUR - 1, NOW).verdict == "firing"
    assert push_silent(ACCOUNT, NOW + 5, NOW).verdict == "clear"


@pytest.mark.parametrize(
    ("share", "verdict"),
    [(0.81, "firing"), (0.8, "hold"), (0.76, "hold"), (0.74, "clear"), (None, "unknown"), (1.5, "firing")],
)
def test_store_capacity(share, verdict):
    assert store_capacity(share).verdict == verdict


SETTLED = NOW - NOW % HOUR
SPIKE = structs.Anomaly(
    hour=SETTLED - 3 * HOUR, total_cost=16.0, typical_cost=10.0, limit_cost=12.0, mean_cost_before=10.0,
    against_hour=None, steps=(), causes=(structs.AnomalyCause(namespace="web", rise=6.0, share=1.0),),
)  # fmt: skip
DAY_KNOWN = {SETTLED - n * HOUR: 10.0 for n in range(1, 25)}


def test_cost_spike():
    found = cost_spike(ACCOUNT, FoundSpikes(DAY_KNOWN, "USD", (SPIKE,)), SETTLED)
    assert found.verdict == "firing" and found.causes[0].namespace == "web" and "60% more" in found.summary
    old = replace(SPIKE, hour=SETTLED - 25 * HOUR)
    assert cost_spike(ACCOUNT, FoundSpikes(DAY_KNOWN, "USD", (old,)), SETTLED).verdict == "clear"
    lacking = {hour: usd for hour, usd in DAY_KNOWN.items() if hour != SETTLED - 7 * HOUR}
    assert cost_spike(ACCOUNT, FoundSpikes(lacking, "USD", ()), SETTLED).verdict == "unknown"
    assert cost_spike(ACCOUNT, FoundSpikes({}, None, ()), SETTLED).verdict == "unknown"
    later = replace(SPIKE, hour=SETTLED - HOUR, total_cost=90.0)
    assert cost_spike(ACCOUNT, FoundSpikes(DAY_KNOWN, "USD", (SPIKE, later)), SETTLED).epoch == found.epoch
    other = replace(SPIKE, hour=SETTLED - 11 * HOUR)
    assert cost_spike(ACCOUNT, FoundSpikes(DAY_KNOWN, "USD", (other, SPIKE)), SETTLED).epoch == found.epoch
    assert cost_spike(ACCOUNT, FoundSpikes(DAY_KNOWN, "USD", (other,)), SETTLED).epoch != found.epoch
    credits = replace(SPIKE, mean_cost_before=-1.0)
    assert cost_spike(ACCOUNT, FoundSpikes(DAY_KNOWN, "USD", (credits,)), SETTLED).verdict == "firing"


@pytest.mark.parametrize(
    ("by_api", "by_metrics", "currency", "verdict"),
    [(100.0, 103.0, "USD", "firing"), (100.0, 101.5, "USD", "hold"), (100.0, 100.5, "USD", "clear"),
     (10.0, 10.9, "USD", "hold"), (10.0, 11.1, "USD", "firing"), (None, 1.0, "USD", "unknown"),
     (1.0, None, "USD", "unknown"), (0.0, 0.0, "USD", "clear"), (0.0, 5.0, "USD", "firing"),
     (1000.0, 1090.0, "JPY", "hold"), (1000.0, 1101.0, "JPY", "firing"), (1.0, 1.2, "KWD", "firing")],
)  # fmt: skip
def test_drift(by_api, by_metrics, currency, verdict):
    compared = Compared(day=SETTLED, by_api=by_api, by_metrics=by_metrics, currency=currency)
    assert drift(ACCOUNT, compared, SETTLED + DAY).verdict == verdict
    assert drift(ACCOUNT, compared, SETTLED + 2 * DAY).verdict == "unknown"


STATE = structs.BudgetState(
    id="b", name="all of it", scope=structs.BudgetScope(), period="month", amount=100.0, currency="USD",
    source="metroculus", start="2026-11-01T00:00:00Z", end="2026-12-01T00:00:00Z", state="warning", spent=85.0,
    spent_at_most=None, percent=85.0, forecast=structs.BudgetForecast(expected=None, low=None, high=None),
    thresholds=(structs.BudgetCrossing(percent=80.0, on="actual", state="crossed"),
                structs.BudgetCrossing(percent=100.0, on="actual", state="unknown"),
                structs.BudgetCrossing(percent=100.0, on="forecast", state="not_crossed")),
    coverage=0.9, as_of=None, missing=("a cluster lacks 3 hours",),
)  # fmt: skip


def test_a_budget_that_was_crossed_stands_until_its_period_or_its_amount_is_another():
    first, second, third = budget_findings(STATE)
    assert [one.verdict for one in (first, second, third)] == ["firing", "unknown", "hold"]
    assert "85.00 of 100.00 USD is spent: 80 %" in first.summary
    fired = advance(ORGANIZATION, None, first, NOW)
    back = replace(STATE, thresholds=(replace(STATE.thresholds[0], state="not_crossed"),))
    assert advance(ORGANIZATION, fired, budget_findings(back)[0], NOW + 60) is fired
    for change in ({"start": "2026-12-01T00:00:00Z"}, {"end": "2027-01-01T00:00:00Z"}, {"amount": 200.0}, {"currency": "EUR"},
                   {"scope": structs.BudgetScope(namespace="x")}):  # fmt: skip
        over = advance(ORGANIZATION, fired, budget_findings(replace(STATE, **change))[0], NOW + 60)
        assert over.state == "resolved" and "a new period" in over.resolved_because


def test_the_signature_is_that_of_the_docs():
    # echo -n '1795220400.{"a": 1}' | openssl dgst -sha256 -hmac a-webhook-secret
    assert signature("a-webhook-secret", 1795220400, b'{"a": 1}') == (
        "t=1795220400,v1=50f74205ff8adc293a04fea8778b6a1913e960e0d725afc48d94dcba7a0b8d04"
    )  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("500GiB", 500 << 30), ("2 TiB", 2 << 40), ("7KiB", 7168)])
def test_sizes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5GiB", "GiB", "5GB", "5 PiB", "9" * 30, "five", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="bytes"):
        size(text)
