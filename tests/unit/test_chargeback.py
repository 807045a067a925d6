"""Chargeback: nothing is lost whatever the rules are; hand-worked months; an oracle that shares out by fractions."""

from __future__ import annotations

import re
from fractions import Fraction
from math import fsum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json, structs

from metroculus.cost_model.components import CLUSTER_COMPONENTS
from metroculus.cost_model.rules import (
    UNASSIGNED,
    Cell,
    Charges,
    CostCenter,
    Match,
    Overhead,
    Rules,
    RulesError,
    Shared,
    Weights,
    check,
    rows_by,
    share_out,
)
from optscale_client.metroculus_client import structs as sdk

pytestmark = pytest.mark.watch

WIDTH = len(CLUSTER_COMPONENTS)
IDLE, MANAGEMENT = "__idle__", "__management__"


def cell(cluster, namespace, usd, labels=(), currency="USD", component=0):
    costs = [0.0] * WIDTH
    costs[component] = usd
    return Cell(cluster, currency, namespace, tuple(labels), tuple(costs))


def center(name, *namespaces):
    return CostCenter(name=name, match=tuple(Match(namespace=one) for one in namespaces))


def shared(name, *namespaces, split="weighted"):
    return Shared(name=name, match=tuple(Match(namespace=one) for one in namespaces), split=split)


def totals(rules, cells, by="cost_center"):
    return {row.name: row.total for row in rows_by(share_out(rules, cells), by)}


MONTH = [
    cell("a", "shop-web", 300.0),
    cell("a", "search", 100.0),
    cell("a", "kube-system", 40.0),
    cell("b", "monitoring", 20.0),
    cell("a", IDLE, 80.0),
    cell("a", MANAGEMENT, 10.0, component=WIDTH - 1),
]
RULES = Rules(
    valid_from="2026-11",
    cost_centers=(center("payments", "shop-*"), center("search", "search")),
    shared=(shared("platform", "kube-system", "monitoring"),),
    overhead=(Overhead(name="support", amount_month=300.0, split="even"),),
)


def test_a_month_by_hand():
    rows = {row.name: row for row in rows_by(share_out(RULES, MONTH), "cost_center")}
    assert rows["payments"].direct_cost == 300 and rows["payments"].shared == {"platform": 45.0}
    assert rows["search"].shared == {"platform": 15.0} and rows["search"].overhead == {"support": 150.0}
    assert rows["payments"].total == 495 and rows["search"].total == 265
    assert (rows[IDLE].total, rows[MANAGEMENT].total) == (80, 10)
    assert set(rows) == {"payments", "search", IDLE, MANAGEMENT}


def test_the_month_of_the_docs_is_right():
    text = (Path(__file__).parent.parent.parent / "docs" / "chargeback.md").read_text()
    rules = json.decode(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1].encode(), type=Rules)
    labels = ("",) * len(rules.labels)
    costs = re.search(r"`shop-web` costs (\d+), `search` (\d+), `kube-system` (\d+), and (\d+) are idle", text)
    names = ("shop-web", "search", "kube-system", IDLE)
    month = [cell("a", name, float(usd), labels) for name, usd in zip(names, costs.groups(), strict=True)]
    rows = {row.name: row for row in rows_by(share_out(rules, month), "cost_center")}
    lines = {line.split("|")[1].strip(): line.split("|")[2:4] for line in text.splitlines() if line.startswith("| ")}
    told = {name: [float(usd) for usd in figures] for name, figures in lines.items() if name}
    payers = [rows["payments"], rows["search"]]
    assert told == {
        "own cost": [row.direct_cost for row in payers],
        "`platform`: 40, weighted 3 to 1": [row.shared["platform"] for row in payers],
        "idle: 80, weighted 3 to 1": [row.idle for row in payers],
        "`support`: 300, even": [row.overhead["support"] for row in payers],
        "to pay": [row.total for row in payers],
    }
    assert sum(told["to pay"]) == 820 == sum(map(float, costs.groups())) + 300


def test_by_cluster_a_row_is_what_the_cluster_cost_and_its_overhead():
    rows = {row.name: row for row in rows_by(share_out(RULES, MONTH), "cluster")}
    assert rows["b"].total == 20 and rows["b"].shared == {"platform": 20.0}
    assert rows["a"].total - rows["a"].overhead["support"] == 530


def test_idle_goes_to_those_who_run_in_its_cluster():
    rules = structs.replace(RULES, overhead=(), idle="weighted", management="even")
    cells = [*MONTH, cell("b", "shop-api", 100.0), cell("b", IDLE, 50.0), cell("c", IDLE, 7.0)]
    charges = share_out(rules, cells)
    rows = {row.name: row for row in rows_by(charges, "cost_center")}
    assert rows["payments"].idle == 60 + 50 and rows["search"].idle == 20
    assert rows["payments"].management == rows["search"].management == 5
    assert rows[IDLE].total == 7 and len(charges.notes) == 1 and "cluster c" in charges.notes[0]


def test_credits_count_where_idle_is_weighed():
    cells = [cell("a", "shop-a", 300.0), cell("a", "shop-b", -200.0), cell("a", "search", 100.0), cell("a", IDLE, 80.0)]
    rows = {
        row.name: row
        for row in rows_by(share_out(structs.replace(RULES, idle="weighted", overhead=()), cells), "cost_center")
    }
    assert rows["payments"].idle == rows["search"].idle == 40


def test_nothing_at_all():
    charges = share_out(structs.replace(RULES, overhead=()), [])
    again = json.decode(
        json.encode(charges, enc_hook=np.ndarray.tolist), type=Charges, dec_hook=lambda _, rows: np.array(rows)
    )
    assert rows_by(again, "cluster") == rows_by(again, "cost_center") == []


def test_a_chain_is_worked_off_in_order():
    rules = Rules(
        valid_from="2026-11",
        cost_centers=(center("payments", "shop-*"), center("search", "search")),
        shared=(
            shared("monitoring", "monitoring", split=Weights({"platform": 1, "payments": 1})),
            shared("platform", "kube-system", split=Weights({"payments": 3, "search": 1})),
        ),
    )
    rows = {row.name: row for row in rows_by(share_out(rules, MONTH), "cost_center")}
    assert rows["payments"].shared == {"monitoring": 10.0, "platform": 37.5}
    assert rows["search"].shared == {"platform": 12.5}
    assert totals(rules, MONTH, "cluster") == {"a": 530, "b": 20}


def test_what_nobody_has_a_weight_for_stays_and_is_said():
    cells = [cell("a", "kube-system", 40.0)]
    charges = share_out(RULES, cells)
    rows = {row.name: row.total for row in rows_by(charges, "cost_center")}
    assert rows == {"platform": 40.0, "support": 300.0}
    assert [note.split()[0] for note in charges.notes] == ["platform", "support"]
    free = [cell("a", "search", 0.0), cell("a", "kube-system", 40.0)]
    assert totals(RULES, free)["platform"] == 40 and totals(RULES, free)["search"] == 300


def test_currencies_are_never_added():
    cells = [*MONTH, cell("e", "shop-eu", 10.0, currency="EUR"), cell("e", "monitoring", 4.0, currency="EUR")]
    rows = {(row.name, row.currency): row.total for row in rows_by(share_out(RULES, cells), "cost_center")}
    assert rows["payments", "EUR"] == 14 and rows["payments", "USD"] == 495


def test_matching():
    rules = Rules(
        valid_from="2026-11",
        shared=(Shared(name="all", match=(Match(label="shared", values=("yes",)),)),),
        cost_centers=(
            CostCenter(name="blue", match=(Match(label="team", values=("blue", "navy*")), Match(cluster="x", namespace="n"))),
            CostCenter(name="teams", match=(Match(label="team"),)),
        ),
    )  # fmt: skip
    assert rules.labels == ("shared", "team")

    def of(cluster, namespace, share, team):
        (row,) = rows_by(share_out(rules, [cell(cluster, namespace, 1.0, (share, team))]), "cost_center")
        return row.name

    assert of("y", "n", "no", "blue") == of("y", "n", "no", "navy-1") == of("x", "n", "", "") == "blue"
    assert of("y", "n", "no", "red") == "teams" and of("y", "n", "__unallocated__", "__unallocated__") == UNASSIGNED
    assert of("x", "n", "yes", "blue") == "all"


@pytest.mark.parametrize(
    ("pattern", "fitting", "not_fitting"),
    [("a*", "a abc a*", "b ba"), ("*a", "a ba", "ab"), ("a*b*c", "abc axbxc abbc", "ac ab acb"), ("*", "a b", ""),
     ("a[b]", "a[b]", "ab"), ("aa*aa", "aaaa aaxaa", "aaa aa"), ("a.c", "a.c", "abc"), ("a?", "a?", "ab")],
)  # fmt: skip
def test_patterns(pattern, fitting, not_fitting):
    rules = Rules(valid_from="2026-11", cost_centers=(center("it", pattern),))
    for texts, name in ((fitting, "it"), (not_fitting, UNASSIGNED)):
        for text in texts.split():
            assert totals(rules, [cell("a", text, 1.0)]) == {name: 1.0}, text


def test_a_pattern_of_many_stars_is_no_trap():
    rules = Rules(valid_from="2026-11", cost_centers=(center("it", "a*" * 200 + "b"),))
    assert totals(rules, [cell("a", "a" * 5000, 1.0)]) == {UNASSIGNED: 1.0}


GOOD = structs.replace(RULES)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"valid_from": "2026-13"}, "valid_from"),
        ({"cost_centers": (center("", "x"),)}, "name"),
        ({"cost_centers": (center("a\nb", "x"),)}, "name"),
        ({"cost_centers": (center("unassigned", "x"),)}, "taken"),
        ({"cost_centers": (center("__idle__", "x"),)}, "taken"),
        ({"cost_centers": (center("support", "x"),)}, "twice"),
        ({"cost_centers": (CostCenter(name="x", match=()),)}, "match"),
        ({"cost_centers": (CostCenter(name="x", match=(Match(),)),)}, "match"),
        ({"cost_centers": (CostCenter(name="x", match=(Match(namespace="a", values=("b",)),)),)}, "label"),
        ({"cost_centers": (CostCenter(name="x", match=(Match(cluster="theirs"),)),)}, "cluster"),
        ({"cost_centers": (CostCenter(name="x", match=(Match(namespace="a" * 501),)),)}, "500"),
        ({"cost_centers": tuple(center(f"c{n}", "x") for n in range(501))}, "500"),
        ({"shared": (shared("p", "x", split=Weights({"nobody": 1})),)}, "nobody"),
        ({"shared": (shared("p", "x", split=Weights({"p": 1})),)}, "'p'"),
        ({"shared": (shared("p", "x"), shared("q", "y", split=Weights({"p": 1})))}, "'p'"),
        ({"shared": (shared("p", "x", split=Weights({"payments": -1})),)}, "weight"),
        ({"shared": (shared("p", "x", split=Weights({"payments": float("nan")})),)}, "weight"),
        ({"shared": (shared("p", "x", split=Weights({"payments": 0})),)}, "above 0"),
        ({"shared": (shared("p", "x", split=Weights({"payments": 5e-324})),)}, "weight"),
        ({"cost_centers": (CostCenter(name="x", match=tuple(Match(label=f"l{n}") for n in range(21))),)}, "labels"),
        ({"cost_centers": (center("x", *map(str, range(2001))),)}, "matches"),
        ({"overhead": (Overhead(name="o", amount_month=float("inf")),)}, "amount_month"),
        ({"overhead": (Overhead(name="o", amount_month=1.0, currency="usd"),)}, "currency"),
    ],
)
def test_rules_that_cannot_be_worked_by_are_refused(change, word):
    with pytest.raises(RulesError, match=word):
        check(structs.replace(GOOD, **change), frozenset({"a"}))


def test_the_sdk_knows_the_same_rules():
    for ours in (Rules, CostCenter, Shared, Overhead, Match, Weights):
        theirs = getattr(sdk, ours.__name__)
        assert [(one.name, one.default) for one in structs.fields(ours)] == [
            (one.name, one.default) for one in structs.fields(theirs)
        ]


def test_charges_come_back_from_text_as_they_were():
    charges = share_out(RULES, MONTH)
    text = json.encode(charges, enc_hook=np.ndarray.tolist)
    again = json.decode(text, type=Charges, dec_hook=lambda _, rows: np.array(rows))
    assert rows_by(again, "cost_center") == rows_by(charges, "cost_center")
    assert rows_by(again, "cluster") == rows_by(charges, "cluster")


NAMES = ["p", "q", "r"]
money = st.floats(min_value=-1e3, max_value=1e6, allow_nan=False).map(lambda usd: round(usd, 4))
cells = st.lists(
    st.builds(
        lambda cluster, namespace, label, currency, usd, component: cell(
            cluster, namespace, usd, (label,), currency, WIDTH - 1 if namespace == MANAGEMENT else component
        ),
        st.sampled_from("abc"), st.sampled_from([*"uvwxyz", IDLE, MANAGEMENT]), st.sampled_from(["", "1", "2"]),
        st.sampled_from(["USD", "USD", "EUR"]), money, st.integers(0, WIDTH - 2),
    ),
    max_size=25,
)  # fmt: skip
matches = st.lists(
    st.builds(Match, namespace=st.sampled_from([*"uvwxyz", "*", "[u"]))
    | st.builds(Match, cluster=st.sampled_from("abc"))
    | st.builds(Match, label=st.just("team"), values=st.sampled_from([(), ("1",), ("2", "1")])),
    min_size=1, max_size=3,
).map(tuple)  # fmt: skip


@st.composite
def random_rules(draw):
    def split(later):
        weights = st.dictionaries(st.sampled_from(["c0", "c1", UNASSIGNED, *later]), st.integers(0, 5), min_size=1)
        named = weights.filter(lambda found: any(found.values())).map(Weights)
        return draw(st.sampled_from(["weighted", "even"]) | named)

    count = draw(st.integers(0, 3))
    return Rules(
        valid_from="2026-11",
        cost_centers=tuple(CostCenter(name=f"c{n}", match=draw(matches)) for n in range(2)),
        shared=tuple(Shared(name=NAMES[n], match=draw(matches), split=split(NAMES[n + 1 : count])) for n in range(count)),
        overhead=tuple(
            Overhead(name=f"o{n}", amount_month=draw(money), currency=draw(st.sampled_from(["USD", "EUR", "JPY"])),
                     split=split([]))
            for n in range(draw(st.integers(0, 2)))
        ),
        idle=draw(st.sampled_from(["separate", "weighted", "even"])),
        management=draw(st.sampled_from(["separate", "weighted", "even"])),
    )  # fmt: skip


@given(random_rules(), cells)
def test_nothing_is_lost_whatever_the_rules_are(rules, month):
    month = month if rules.labels else [structs.replace(one, labels=()) for one in month]
    check(rules, frozenset("abc"))
    charges = share_out(rules, month)
    gross = fsum(abs(usd) for one in month for usd in one.costs) + sum(abs(one.amount_month) for one in rules.overhead)
    close = 1e-9 * max(1.0, gross)
    for by in ("cost_center", "namespace", "cluster", *(f"label:{one}" for one in rules.labels)):
        rows = rows_by(charges, by)
        for currency in ("USD", "EUR", "JPY"):
            is_ = fsum(row.total for row in rows if row.currency == currency)
            cost = fsum(usd for one in month if one.currency == currency for usd in one.costs)
            overhead = sum(one.amount_month for one in rules.overhead if one.currency == currency)
            assert is_ == pytest.approx(cost + overhead, abs=close), (by, currency)
            assert fsum(fsum(row.overhead.values()) for row in rows if row.currency == currency) == pytest.approx(
                overhead, abs=close
            )
    for row in rows_by(charges, "cluster"):
        cost = fsum(
            usd for one in month if (one.cluster, one.currency) == (row.name, row.currency) for usd in one.costs
        )
        if row.kind == "cluster" and row.name != "__unallocated__":
            assert row.total - fsum(row.overhead.values()) == pytest.approx(cost, abs=close), row.name


def oracle(rules, month):
    """Rows of cost centers by fractions: one currency, idle and management separate, costs not below zero."""
    owner = {}
    for one in month:
        special = one.namespace if one.namespace in (IDLE, MANAGEMENT) else None
        found = [
            rule.name for rule in (*rules.shared, *rules.cost_centers) for match in rule.match
            if match.namespace in (None, "*", one.namespace) and match.cluster in (None, one.cluster)
            and (match.label is None or (one.labels[0] in match.values if match.values else one.labels[0]))
        ]  # fmt: skip
        owner.setdefault(special or (found[0] if found else UNASSIGNED), []).append(sum(map(Fraction, one.costs)))
    own = {name: sum(parts) for name, parts in owner.items()}
    bears = dict(own)
    centers = [name for name in ("c0", "c1", UNASSIGNED) if name in own]

    def give(name, usd, split):
        if isinstance(split, Weights):
            weights = {one: Fraction(weight) for one, weight in split.weights.items()}
        else:
            weights = {one: own[one] if split == "weighted" else Fraction(1) for one in centers}
        total = sum(weights.values())
        if not total:
            bears[name] = bears.get(name, 0) + usd
            return
        for one, weight in weights.items():
            bears[one] = bears.get(one, 0) + usd * weight / total

    for rule in rules.shared:
        if rule.name in bears:
            give(rule.name, bears.pop(rule.name), rule.split)
    for one in rules.overhead:
        give(one.name, Fraction(one.amount_month), one.split)
    return {name: float(usd) for name, usd in bears.items() if usd}


@given(random_rules(), cells)
def test_shares_are_those_of_fractions(rules, month):
    rules = structs.replace(
        rules, idle="separate", management="separate",
        overhead=tuple(structs.replace(one, currency="USD") for one in rules.overhead),
    )  # fmt: skip
    month = [
        structs.replace(
            one, currency="USD", costs=tuple(map(abs, one.costs)), labels=one.labels if rules.labels else ()
        )
        for one in month
    ]
    found = {name: usd for name, usd in totals(rules, month).items() if usd}
    assert found == pytest.approx(oracle(rules, month), rel=1e-9, abs=1e-7)
