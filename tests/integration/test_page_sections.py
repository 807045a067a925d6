"""The pages that change something: chargeback and rules, budgets, alerts, clusters; and savings and assets."""

from __future__ import annotations

import html
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metroculus.storage.engine import StoreError
from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.pages.chargeback import RulesForm, draft_of, rules_of
from rest_api.rest_api_server.pages.patches import bytes_text, patch_of
from rest_api.rest_api_server.pages.urls import page_routes
from tests.exported import read
from tests.integration.test_pages import Acme, Browser, csrf_of, figure, text_of
from tests.organizations import HOURLY, NOVEMBER, Organization
from tests.support import END, HOUR, SECRET, Stack
from tools.tornado_service.params import Cell, Month


class Pages(Organization):
    """An organization of two stored clusters, in browsers."""

    def browser(self, role: str) -> Browser:
        made = Browser(self.running.rest_api_listener.url)
        assert made.sign_in(self.tenant.tokens[role]).status_code == 303
        return made

    @property
    def base(self) -> str:
        return f"/organizations/{self.tenant.organization_id}"

    def api(self, path: str, **query: Any) -> Any:
        answer = self.call("GET", path, role="viewer", **query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def pages(stack: Stack) -> Pages:
    return Pages(stack)


def fields_of(page: str, action: str) -> list[tuple[str, str]]:
    """What a browser would send of the form with this action, as it stands."""
    form = re.search(rf'<form method="post" action="{re.escape(action)}".*?</form>', page, re.S)[0]
    found = []
    for tag in re.finditer(r"<input([^>]*)>|<select name=\"(\w+)\".*?</select>", form, re.S):
        if tag[2]:
            chosen = re.search(r'<option value="([^"]*)" selected', tag[0]) or re.search(
                r'<option value="([^"]*)"', tag[0]
            )
            plain = re.search(r"<option selected>([^<]*)<", tag[0])
            found.append((tag[2], html.unescape(plain[1] if plain else chosen[1])))
        elif name := re.search(r'name="(\w+)"', tag[1]):
            value = re.search(r'value="([^"]*)"', tag[1])
            found.append((name[1], html.unescape(value[1]) if value else ""))
    return found


def send(browser: Browser, path: str, fields: list[tuple[str, str]]) -> Any:
    return browser.post(browser.base + path, data=fields, timeout=60, allow_redirects=False)


RULES = {
    "valid_from": "2026-10",
    "cost_centers": [
        {"name": "web", "match": [{"namespace": "shop-*"}, {"label": "team", "values": ["blue", "green"]}]}
    ],
    "shared": [{"name": "platform", "match": [{"namespace": "kube-system"}], "split": {"weights": {"web": 3}}}],
    "overhead": [{"name": "support", "amount_month": 300.0, "currency": "USD", "split": "even"}],
    "idle": "weighted",
}


def test_a_months_page_is_the_apis_and_its_rules_are_changed_by_the_form(pages: Pages) -> None:
    manager, path = pages.browser("manager"), f"{pages.base}/chargeback"
    page = manager.open(f"{path}?month=2026-10").text
    bill = pages.chargeback("2026-10")
    assert figure(page, "table-total") == f"{bill['totals']['USD']:,.2f} USD"
    assert "No rules apply to 2026-10" in text_of(page)
    fields = dict(fields_of(page, f"{path}/preview"))
    first = [(name, value) for name, value in fields_of(page, f"{path}/preview") if not name.startswith("center_")]
    center = [
        ("center_name", "web"),
        ("center_cluster", ""),
        ("center_namespace", "shop-*"),
        ("center_label", ""),
        ("center_values", ""),
    ]
    label = [
        ("center_name", "web"),
        ("center_cluster", ""),
        ("center_namespace", ""),
        ("center_label", "team"),
        ("center_values", "blue, green"),
    ]
    typed = first + center + label
    preview = send(manager, f"{path}/preview", typed)
    assert preview.status_code == 200 and fields["month"] == "2026-10"
    told = pages.call(
        "POST",
        "allocation_rules/preview",
        {"valid_from": "2026-10", "cost_centers": RULES["cost_centers"]},
        month="2026-10",
    ).json()
    shown = re.search(r'<table id="preview">.*?</table>', preview.text, re.S)[0]
    for row in told["rows"]:
        total = "–" if row["total_cost"] is None else f"{row['total_cost']:,.2f} USD"
        assert re.search(rf">{re.escape(row['name'])}</th>.*?{re.escape(total)}", shown, re.S), row
    assert pages.api("allocation_rules")["versions"] == [], "a preview saves nothing"
    saved = send(manager, f"{path}/rules", typed)
    assert saved.status_code == 303 and saved.headers["Location"] == f"{path}?month=2026-10&by=cost_center"
    (version,) = pages.api("allocation_rules")["versions"]
    assert version["cost_centers"][0]["match"][1]["values"] == ["blue", "green"]
    page = manager.open(f"{path}?month=2026-10").text
    assert figure(page, "table-total") == f"{pages.chargeback('2026-10')['totals']['USD']:,.2f} USD"
    again = send(manager, f"{path}/rules", fields_of(page, f"{path}/preview"))
    assert again.status_code == 303 and pages.api("allocation_rules")["versions"] == [version], (
        "as it stands, it is the same"
    )
    found = read(manager.open(f"{path}?month=2026-10&format=csv"))
    assert found.sum("total_cost (USD)") == pytest.approx(bill["totals"]["USD"], rel=1e-12)


def test_of_two_who_change_the_same_one_is_told(pages: Pages) -> None:
    """Rules and budgets alike: who saves a form of before what another has saved changes nothing."""
    first, second, path = pages.browser("manager"), pages.browser("admin"), f"{pages.base}/chargeback"
    forms = [fields_of(one.open(f"{path}?month=2026-10").text, f"{path}/preview") for one in (first, second)]
    for number, (browser, fields) in enumerate(zip((first, second), forms, strict=True)):
        typed = {"overhead_name": f"x{number}", "overhead_amount": "1"}
        sent = [(name, typed.pop(name, value)) for name, value in fields]  # into the first empty line
        answer = send(browser, f"{path}/rules", sent)
        assert answer.status_code == (303 if number == 0 else 409), text_of(answer.text)[:300]
    assert "somebody else has changed the rules" in text_of(answer.text).lower()
    page = send(second, f"{path}/preview", fields_of(answer.text, f"{path}/preview")).text
    for shown in (answer.text, page):
        again = send(second, f"{path}/rules", fields_of(shown, f"{path}/preview"))
        assert again.status_code == 409, "what was typed over the rules of before does not replace those of now"
    assert pages.api("allocation_rules")["versions"][0]["overhead"][0]["name"] == "x0"
    path = f"{pages.base}/budgets"
    csrf = ("csrf", csrf_of(first.open(path).text))
    assert send(first, path, [csrf, ("name", "b"), ("amount", "5")]).status_code == 303
    (budget,) = pages.api("budgets")["budgets"]
    forms = [fields_of(one.open(path).text, f"{path}/{budget['id']}") for one in (first, second)]
    changes = ({"amount": "50"}, {"name": "renamed"})
    told = [
        send(one, f"{path}/{budget['id']}", [(name, change.get(name, value)) for name, value in fields]).status_code
        for one, fields, change in zip((first, second), forms, changes, strict=True)
    ]
    (budget,) = pages.api("budgets")["budgets"]
    assert told == [303, 409] and (budget["name"], budget["amount"]) == ("b", 50.0)


def test_of_many_who_save_at_once_one_does(pages: Pages) -> None:
    manager, path = pages.browser("manager"), f"{pages.base}/budgets"
    csrf = ("csrf", csrf_of(manager.open(path).text))
    assert send(manager, path, [csrf, ("name", "b"), ("amount", "5")]).status_code == 303
    (budget,) = pages.api("budgets")["budgets"]
    for rounds in range(3):
        form = fields_of(manager.open(path).text, f"{path}/{budget['id']}")
        rules = fields_of(
            manager.open(f"{pages.base}/chargeback?month=2026-10").text, f"{pages.base}/chargeback/preview"
        )

        def saves(number: int, rounds: int = rounds, form: Any = form, rules: Any = rules) -> tuple[int, int]:
            typed = [(name, f"1{rounds}{number}" if name == "amount" else value) for name, value in form]
            empty = {"overhead_name": f"x{rounds}{number}", "overhead_amount": "1"}
            overhead = [(n, empty.pop(n) if not value and n in empty else value) for n, value in rules]
            return (
                send(manager, f"{path}/{budget['id']}", typed).status_code,
                send(manager, f"{pages.base}/chargeback/rules", overhead).status_code,
            )

        with ThreadPoolExecutor(6) as pool:
            told = list(pool.map(saves, range(6)))
        for codes in zip(*told, strict=True):
            assert sorted(codes) == [303, *[409] * 5], told
    assert len(pages.api("allocation_rules")["versions"][0]["overhead"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"scope": {"label": "team", "values": ["a,b"]}},
        {"scope": {"label": "team", "values": [" a"]}},
        {"scope": {"namespace": " shop"}},
        {"name": "b "},
    ],
)
def test_a_budget_that_the_form_cannot_give_back_is_not_offered_in_it(pages: Pages, change: Any) -> None:
    made = pages.call("POST", "budgets", {"name": "b", "amount": 5.0, **change})
    assert made.status_code == 201, made.text
    page = pages.browser("manager").open(f"{pages.base}/budgets").text
    target = f"{pages.base}/budgets/{made.json()['id']}"
    assert "holds what the form cannot show" in page and f'action="{target}"' not in page
    assert f'action="{target}/delete"' in page


@pytest.mark.parametrize(
    "rules",
    [
        {"cost_centers": [{"name": "c", "match": [{"label": "team", "values": ["a,b"]}]}]},
        {"cost_centers": [{"name": "c", "match": [{"label": "team", "values": [""]}]}]},
        {"cost_centers": [{"name": f"c{n}", "match": [{"namespace": f"n{n}"}]} for n in range(200)]},
        {"cost_centers": [{"name": " c", "match": [{"namespace": "x"}]}]},
        {"cost_centers": [{"name": "c", "match": [{"namespace": "x "}]}]},
        {"cost_centers": [{"name": "c", "match": [{"label": "a\nb"}]}]},
        {"cost_centers": [{"name": " c", "match": [{"namespace": "x"}]}],
         "overhead": [{"name": "s", "amount_month": 1.0, "currency": "USD", "split": {"weights": {" c": 3}}}]},
    ],
)  # fmt: skip
def test_rules_that_the_form_cannot_give_back_are_not_offered_in_it(pages: Pages, rules: Any) -> None:
    assert pages.call("PUT", "allocation_rules", {"valid_from": "2026-10", **rules}).status_code == 200
    page = pages.browser("manager").open(f"{pages.base}/chargeback?month=2026-10").text
    assert "hold what it cannot show" in page and "/preview" not in page


def test_a_budget_of_a_cluster_that_is_gone_stays_that_clusters(pages: Pages) -> None:
    scope = {"cluster_id": pages.ids[1]}
    assert pages.call("POST", "budgets", {"name": "b", "amount": 1.0, "scope": scope}).status_code == 201
    assert pages.running.rest_api.directory.delete_cluster(pages.ids[1])
    manager, path = pages.browser("manager"), f"{pages.base}/budgets"
    (budget,) = pages.api("budgets")["budgets"]
    fields = fields_of(manager.open(path).text, f"{path}/{budget['id']}")
    assert ("cluster", pages.ids[1]) in fields
    changed = [(name, "7" if name == "amount" else value) for name, value in fields]
    assert send(manager, f"{path}/{budget['id']}", changed).status_code == 303
    (budget,) = pages.api("budgets")["budgets"]
    assert budget["scope"]["cluster_id"] == pages.ids[1] and budget["amount"] == 7.0
    elsewhere = {"scope": {"cluster_id": pages.foreign}}
    assert pages.call("PATCH", f"budgets/{budget['id']}", elsewhere).status_code == 400


def test_rules_of_a_cluster_that_is_gone_are_changed_by_the_form(pages: Pages) -> None:
    match = {"cluster": pages.ids[1], "namespace": "search"}
    made = pages.call("PUT", "allocation_rules", {"valid_from": "2026-10", "cost_centers": [{"name": "c", "match": [match]}]})  # fmt: skip
    assert made.status_code == 200
    assert pages.running.rest_api.directory.delete_cluster(pages.ids[1])
    manager, path = pages.browser("manager"), f"{pages.base}/chargeback"
    fields = fields_of(manager.open(f"{path}?month=2026-10").text, f"{path}/preview")
    changed = [(name, "even" if name == "idle" else value) for name, value in fields]
    assert send(manager, f"{path}/rules", changed).status_code == 303
    (version,) = pages.api("allocation_rules")["versions"]
    assert version["idle"] == "even" and version["cost_centers"][0]["match"][0]["cluster"] == pages.ids[1]


def test_the_page_of_a_closed_month_changes_the_rules_of_the_running_one(pages: Pages) -> None:
    """And shows those: what the closed month was shared out by is not to replace them."""
    for month, namespace in (("2026-09", "shop-*"), ("2026-11", "search")):
        rules = {"valid_from": month, "cost_centers": [{"name": "c", "match": [{"namespace": namespace}]}]}
        assert pages.call("PUT", "allocation_rules", rules).status_code == 200
    assert pages.call("POST", "months/2026-09/close", {"accept_incomplete": "before us"}).status_code == 200
    before = pages.api("allocation_rules")
    manager, path = pages.browser("manager"), f"{pages.base}/chargeback"
    fields = fields_of(manager.open(f"{path}?month=2026-09").text, f"{path}/preview")
    assert ("valid_from", "2026-11") in fields and ("center_namespace", "search") in fields
    for month in ("2026-09", "2026-11", "2026-10", "2026-08"):
        fields = fields_of(manager.open(f"{path}?month={month}").text, f"{path}/preview")
        assert send(manager, f"{path}/rules", fields).status_code == 303
        assert pages.api("allocation_rules") == before, "as it stands, it changes nothing"


def test_a_form_that_names_a_cluster_by_what_another_is_called_now_is_refused(pages: Pages) -> None:
    manager, first = pages.browser("manager"), pages.ids[0]
    match = {"cluster": first, "namespace": "search"}
    rules = {"valid_from": "2026-10", "cost_centers": [{"name": "c", "match": [match]}]}
    assert pages.call("PUT", "allocation_rules", rules).status_code == 200
    assert (
        pages.call("POST", "budgets", {"name": "b", "amount": 1.0, "scope": {"cluster_id": first}}).status_code == 201
    )
    before = pages.api("allocation_rules"), pages.api("budgets")
    (budget,) = pages.api("budgets")["budgets"]
    path, target = f"{pages.base}/chargeback", f"{pages.base}/budgets/{budget['id']}"
    page = f"{path}?month=2026-10"
    forms = {f"{path}/rules": fields_of(manager.open(page).text, f"{path}/preview"),
             target: fields_of(manager.open(f"{pages.base}/budgets").text, target)}  # fmt: skip

    def rename(cluster: str, name: str) -> None:
        assert pages.call("PATCH", f"clusters/{cluster}", {"name": name}, role="admin").status_code == 200

    for cluster, name in ((first, "tmp"), (pages.ids[1], "c0")):
        rename(cluster, name)
    for action, fields in forms.items():
        answer = send(manager, action, [(n, "7" if n == "amount" else "even" if n == "idle" else v) for n, v in fields])
        assert answer.status_code == 409 and "clusters have been renamed" in text_of(answer.text)
    assert (pages.api("allocation_rules"), pages.api("budgets")) == before
    rename(first, pages.ids[1])
    shown = manager.open(page).text + manager.open(f"{pages.base}/budgets").text
    assert "hold what it cannot show" in shown and "holds what the form cannot show" in shown


def test_a_form_that_would_be_too_large_to_send_is_not_offered(pages: Pages) -> None:
    values = [["/" * 480 + f"{center}-{n}" for n in range(19)] for center in range(60)]
    centers = [{"name": f"c{n}", "match": [{"label": "x", "values": many}]} for n, many in enumerate(values)]
    assert pages.call("PUT", "allocation_rules", {"valid_from": "2026-10", "cost_centers": centers}).status_code == 200
    assert "hold what it cannot show" in pages.browser("manager").open(f"{pages.base}/chargeback?month=2026-10").text
    values = [[f"{'値' * 490}{center}-{n}" for n in range(50)] for center in range(12)]
    centers = [{"name": f"c{n}", "match": [{"label": "x", "values": many}]} for n, many in enumerate(values)]
    body = msgspec.json.encode({"valid_from": "2026-10", "cost_centers": centers})
    url = f"{pages.running.rest_api_listener.url}/restapi/v2{pages.base}/kubecost/allocation_rules"
    headers = {"Authorization": f"Bearer {pages.tenant.tokens['manager']}", "Content-Type": "application/json"}
    assert requests.put(url, data=body, headers=headers, timeout=60).status_code == 200, "as long as it is in UTF-8"


def test_a_preview_never_makes_a_form_that_cannot_be_sent(pages: Pages) -> None:
    """It adds empty lines as long as there is room, and what it shows can be sent again and saved."""
    centers = [{"name": f"c{n}", "match": [{"namespace": f"n{n}"}]} for n in range(180)]
    assert pages.call("PUT", "allocation_rules", {"valid_from": "2026-10", "cost_centers": centers}).status_code == 200
    manager, path = pages.browser("manager"), f"{pages.base}/chargeback"
    page = manager.open(f"{path}?month=2026-10").text
    typed = 0
    while "This form holds no more lines" not in page:
        fields = []
        for name, value in fields_of(page, f"{path}/preview"):
            typed += not value and name == "center_name"
            new = f"t{typed}" if name in ("center_name", "center_namespace") and not value else value
            fields.append((name, new))
        answer = send(manager, f"{path}/preview", fields)
        assert answer.status_code == 200, text_of(answer.text)
        page = answer.text
        assert typed < 100
    fields = fields_of(page, f"{path}/preview")
    assert typed and len(fields) < 1000
    assert send(manager, f"{path}/rules", fields).status_code == 303
    (version,) = pages.api("allocation_rules")["versions"]
    assert len(version["cost_centers"]) == 180 + typed
    assert fields_of(manager.open(f"{path}?month=2026-10").text, f"{path}/preview")
    refused = send(manager, f"{path}/rules", [("x", "y")] * 1001)
    assert refused.status_code == 400 and "body cannot be read" in text_of(refused.text)


def test_tabs_that_are_pasted_into_a_field_are_spaces(pages: Pages) -> None:
    manager, path = pages.browser("manager"), f"{pages.base}/budgets"
    typed = {"name": "of\tall\r\nteams", "amount": "5"}
    fields = [(name, typed.get(name, value)) for name, value in fields_of(manager.open(path).text, path)]
    assert send(manager, path, fields).status_code == 303
    (budget,) = pages.api("budgets")["budgets"]
    assert budget["name"] == "of all teams"


def test_what_was_typed_into_a_budget_is_shown_where_it_is_gone_or_not_known(pages: Pages, monkeypatch: Any) -> None:
    manager, path = pages.browser("manager"), f"{pages.base}/budgets"
    made = [pages.call("POST", "budgets", {"name": f"b{n}", "amount": 5.0}).json()["id"] for n in range(2)]
    page = manager.open(path).text
    forms = [[(n, "typed" if n == "namespace" else v) for n, v in fields_of(page, f"{path}/{one}")] for one in made]
    assert pages.call("DELETE", f"budgets/{made[0]}").status_code == 200
    gone = send(manager, f"{path}/{made[0]}", forms[0])
    assert gone.status_code == 404 and ("namespace", "typed") in fields_of(gone.text, path)

    async def away(*asked: Any, **more: Any) -> None:
        raise StoreError("away")

    monkeypatch.setattr(pages.running.metroculus.dependencies.store, "ask", away)
    unknown = send(manager, f"{path}/{made[1]}", forms[1])
    assert unknown.status_code == 503 and ("namespace", "typed") in fields_of(unknown.text, f"{path}/{made[1]}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"overhead_name": "support", "overhead_amount": "a lot"}, "amount of support must be a number"),
        ({"shared_name": "platform", "shared_namespace": "x", "shared_split": "weights", "shared_weights": "web 3"}, "weights of platform must be like"),
        ({"center_name": "", "center_namespace": "shop"}, "a row has no name"),
        ({"center_name": "web", "center_cluster": "nowhere"}, "there is no cluster named nowhere"),
        ({"center_name": "web"}, "web"),
        ({"valid_from": "2026-13"}, "valid_from"),
        ({"valid_from": ""}, "valid_from"),
        ({"shared_name": "p", "shared_namespace": "x", "shared_weights": "web: 3"}, "is not split by weights"),
        ({"shared_name": "p", "shared_namespace": "x", "shared_split": "weights", "shared_weights": "web: 3, web: 1"}, "weights of p must be like"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_rules_is_said_and_what_was_typed_is_kept(
    pages: Pages, change: dict[str, str], said: str
) -> None:
    manager, path = pages.browser("manager"), f"{pages.base}/chargeback"
    fields = fields_of(manager.open(f"{path}?month=2026-10").text, f"{path}/preview")
    typed, seen = [], set[str]()
    for name, value in fields:
        typed.append((name, change.get(name, value) if name not in seen else value))
        seen.add(name)
    answer = send(manager, f"{path}/rules", typed)
    assert answer.status_code == 400 and said in text_of(answer.text)
    kept = fields_of(answer.text, f"{path}/preview")
    assert all((name, value) in kept for name, value in change.items() if value)
    assert pages.api("allocation_rules")["versions"] == []


def test_a_month_is_closed_by_the_page(pages: Pages) -> None:
    manager, path = pages.browser("manager"), f"{pages.base}/chargeback"
    page = manager.open(f"{path}?month=2026-09").text
    assert "lacks" in text_of(page) and pages.ids[0] not in text_of(page), "clusters are told by their names"
    refused = send(manager, f"{path}/close", [("csrf", csrf_of(page)), ("month", "2026-09")])
    assert refused.status_code == 409
    closed = send(
        manager, f"{path}/close", [("csrf", csrf_of(page)), ("month", "2026-09"), ("accept_incomplete", "before us")]
    )
    assert closed.status_code == 303 and pages.chargeback("2026-09")["closed_at"] is not None
    page = text_of(manager.open(f"{path}?month=2026-09").text)
    assert "closed" in page and "before us" in page and "Close 2026-09" not in page


names = st.text(st.characters(whitelist_categories=("L", "N"), max_codepoint=0x2FF), min_size=1, max_size=12)
split = st.one_of(
    st.sampled_from(["weighted", "even"]),
    st.dictionaries(names, st.floats(1e-6, 1e6).map(lambda x: float(f"{x:.6g}")), min_size=1, max_size=3).map(
        lambda weights: structs.Weights(weights)
    ),
)
match = st.builds(
    structs.Match,
    cluster=st.none() | st.just("5635f99d-4dc6-4e31-891f-4e8990925c83"),
    namespace=names | st.just("shop-*"),
    label=st.none() | names,
    values=st.just(()),
).flatmap(
    lambda one: (
        st.just(one) if one.label is None else st.lists(names, max_size=3).map(lambda v: replace(one, values=tuple(v)))
    )
)
rules = st.builds(
    structs.Rules,
    valid_from=st.just("2026-11"),
    cost_centers=st.lists(st.builds(structs.CostCenter, name=names, match=st.lists(match, min_size=1, max_size=3).map(tuple)),
                          max_size=4, unique_by=lambda one: one.name).map(tuple),
    shared=st.lists(st.builds(structs.Shared, name=names, match=st.lists(match, min_size=1, max_size=3).map(tuple), split=split),
                    max_size=3, unique_by=lambda one: one.name).map(tuple),
    overhead=st.lists(st.builds(structs.Overhead, name=names, amount_month=st.floats(-1e9, 1e9).map(lambda x: round(x, 10)),
                                currency=st.sampled_from(["USD", "EUR"]), split=split),
                      max_size=3, unique_by=lambda one: one.name).map(tuple),
    idle=st.sampled_from(["separate", "weighted", "even"]),
    management=st.sampled_from(["separate", "weighted", "even"]),
)  # fmt: skip


@given(rules)
def test_any_rules_come_back_out_of_the_form_as_they_went_in(given_rules: structs.Rules) -> None:
    draft = draft_of(given_rules, "2026-11", "", {})

    def column(rows: Any, name: str) -> tuple[Cell, ...]:
        return tuple(Cell(getattr(row, name)) for row in rows)

    fields = {
        f"{kind}_{name}": column(listed, name)
        for kind, listed, of in (
            ("center", draft.centers, ("name", "cluster", "namespace", "label", "values")),
            ("shared", draft.shared, ("name", "cluster", "namespace", "label", "values", "split", "weights")),
            ("overhead", draft.overhead, ("name", "amount", "currency", "split", "weights")),
        )
        for name in of
    }
    form = RulesForm(
        month=Month("2026-11"),
        valid_from=Month(draft.valid_from),
        idle=draft.idle,
        management=draft.management,
        **fields,
    )  # type: ignore[arg-type]
    assert rules_of(form, []) == given_rules
    assert msgspec.to_builtins(rules_of(form, []))


def test_a_budget_is_made_changed_and_removed_by_the_page(pages: Pages) -> None:
    pages.store(pages.ids[0], HOURLY[0], range(NOVEMBER, END, HOUR))
    manager, path = pages.browser("manager"), f"{pages.base}/budgets"
    page = manager.open(path).text
    assert "No budget yet" in page
    csrf = ("csrf", csrf_of(page))
    wrong = send(manager, path, [csrf, ("name", "shop"), ("amount", "much"), ("namespace", "shop-*")])
    assert wrong.status_code == 400 and "amount must be a number" in text_of(wrong.text)
    assert ("namespace", "shop-*") in fields_of(wrong.text, path), "what was typed is kept"
    made = send(
        manager,
        path,
        [
            csrf,
            ("name", "shop"),
            ("amount", "100"),
            ("namespace", "shop-*"),
            ("thresholds", "50, forecast 120"),
            ("cluster", "c0"),
        ],
    )
    assert made.status_code == 303 and made.headers["Location"] == path
    (budget,) = pages.api("budgets")["budgets"]
    assert [(one["percent"], one["on"]) for one in budget["thresholds"]] == [(50.0, "actual"), (120.0, "forecast")]
    page = manager.open(path).text
    row = text_of(re.search(rf'<tr data-budget="{budget["id"]}">.*?</tr>', page, re.S)[0])
    assert (
        f"{budget['spent']:,.2f} USD" in row
        and "cluster c0, namespace shop-*" in row
        and budget["state"].replace("_", " ") in row
    )
    assert "2026-11-01 to 2026-11-30" in row and not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", row)
    fields = [(name, "250" if name == "amount" else value) for name, value in fields_of(page, f"{path}/{budget['id']}")]
    assert send(manager, f"{path}/{budget['id']}", fields).status_code == 303
    (changed,) = pages.api("budgets")["budgets"]
    others = changed.keys() - {"amount", "percent", "thresholds", "state", "version"}
    assert changed["amount"] == 250.0 and all(changed[name] == budget[name] for name in others)
    assert send(manager, f"{path}/{budget['id']}/delete", [csrf]).status_code == 303
    assert pages.api("budgets")["budgets"] == []
    assert send(manager, f"{path}/{budget['id']}/delete", [csrf]).status_code == 404


FORMS = [
    (path, handler)
    for path, handler, _ in page_routes(lambda *given: (given[0], given[1], {}))
    if getattr(getattr(handler.post, "operation", None), "form", None) is not None and "sign" not in path
]


@pytest.mark.parametrize(("pattern", "handler"), FORMS, ids=[path for path, _ in FORMS])
def test_no_form_is_taken_from_elsewhere(pages: Pages, pattern: str, handler: Any) -> None:
    """Without the session's own token, from another site, or by a viewer, nothing is changed."""
    admin, viewer = pages.browser("admin"), pages.browser("viewer")
    path = pattern.replace("(?P<organization_id>[^/]+)", pages.tenant.organization_id)
    path = re.sub(r"\(\?P<cluster_id>[^)]*\)", pages.ids[0], path)
    path = re.sub(r"\(\?P<\w+>[^)]*\)", "9b2b6c5c-1d5a-4b63-9d0e-2f0f8a9d7c55", path)
    good = csrf_of(admin.open(f"{pages.base}/budgets").text)
    form = {"name": "c0", "amount": "1", "month": "2026-10", "valid_from": "2026-10", "note": "x"}
    form = {name: value for name, value in form.items() if name in handler.post.operation.form.__struct_fields__}
    before = pages.running.rest_api.directory.clusters(pages.tenant.organization_id)
    for csrf in ("", "0" * 64, csrf_of(viewer.open(pages.base).text)):
        assert admin.submit(path, csrf=csrf, **form).status_code == 403
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        answer = admin.post(
            admin.base + path, data=form | {"csrf": good}, headers=headers, timeout=30, allow_redirects=False
        )
        assert answer.status_code == 403
    if "preview" not in path:
        assert viewer.submit(path, csrf=csrf_of(viewer.open(pages.base).text), **form).status_code == 403
    assert pages.running.rest_api.directory.clusters(pages.tenant.organization_id) == before
    assert pages.api("budgets", upstream="false")["budgets"] == [] and pages.api("allocation_rules")["versions"] == []


def test_what_one_may_not_do_is_not_offered(pages: Pages) -> None:
    viewer = pages.browser("viewer")
    for path in ("", "/chargeback?month=2026-10", "/budgets", "/alerts"):
        page = viewer.open(pages.base + path).text
        offered = set(re.findall(r'method="post" action="([^"]*)"', page)) | set(
            re.findall(r'formaction="([^"]*)"', page)
        )
        assert offered <= {"/sign-out", f"{pages.base}/chargeback/preview"}, path
    assert viewer.open(f"{pages.base}/clusters").status_code == 403


def test_a_cluster_joins_by_the_page(pages: Pages) -> None:
    admin, path = pages.browser("admin"), f"{pages.base}/clusters"
    page = admin.open(path).text
    csrf = ("csrf", csrf_of(page))
    wrong = send(admin, path, [csrf, ("name", "far"), ("flavour", "opencost")])
    assert (
        wrong.status_code == 400
        and "url is required" in text_of(wrong.text)
        and ("name", "far") in fields_of(wrong.text, path)
    )
    joined = send(admin, path, [csrf, ("name", "far"), ("flavour", "push")])
    assert joined.status_code == 200
    token = re.search(r"data-token>([^<]+)<", joined.text)[1]
    (cluster,) = [
        one for one in pages.running.rest_api.directory.clusters(pages.tenant.organization_id) if one.name == "far"
    ]
    assert token.startswith("mpt_") or len(token) > 20
    assert f"--account {cluster.id}" in html.unescape(joined.text) and "GATEWAY_URL" in joined.text
    assert token not in admin.open(path).text, "it is shown once"
    part = admin.open(f"/clusters/{cluster.id}/arrival").text
    assert "nothing has arrived yet" in part and f'data-poll="/clusters/{cluster.id}/arrival"' in part
    part = admin.open(f"/clusters/{pages.ids[0]}/arrival").text
    assert "nothing has arrived" in part, "October is long gone"
    pages.store(pages.ids[0], HOURLY[0], range(END - 24 * HOUR, END, HOUR))
    part = admin.open(f"/clusters/{pages.ids[0]}/arrival").text
    assert "data-poll" not in part and f"/clusters/{pages.ids[0]}" in part
    again = send(admin, f"/clusters/{cluster.id}/push-token", [csrf])
    assert again.status_code == 200 and re.search(r"data-token>([^<]+)<", again.text)[1] != token
    kept = send(admin, f"/clusters/{cluster.id}/unlink", [csrf, ("name", "near")])
    assert kept.status_code == 400 and pages.running.rest_api.directory.cluster(cluster.id) is not None
    assert send(admin, f"/clusters/{cluster.id}/unlink", [csrf, ("name", "far")]).status_code == 303
    assert pages.running.rest_api.directory.cluster(cluster.id) is None


def test_a_back_fill_that_runs_is_seen(pages: Pages) -> None:
    """As the worker tells it, in the API and on the cluster's page."""
    body = {"cloud_account_id": pages.ids[0], "start_date": NOVEMBER, "end_date": NOVEMBER + 48 * HOUR}
    address = f"{pages.running.metroculus_listener.url}/metroculus/v2/backfills"
    asked = requests.post(address, json=body, headers={"Secret": SECRET}, timeout=30)
    assert asked.status_code in (200, 201, 202), asked.text
    viewer = pages.browser("viewer")
    told = viewer.get(
        f"{viewer.base}/restapi/v2/kubecost/clusters/{pages.ids[0]}/backfills",
        headers={"Authorization": f"Bearer {pages.tenant.tokens['viewer']}"},
    ).json()
    (one,) = told["backfills"]
    assert one["hours_total"] == 48 and one["state"] == "queued"
    page = text_of(viewer.open(f"/clusters/{pages.ids[0]}").text)
    assert "History is being filled, 2026-11-01 to 2026-11-03" in page and "0 of 48 hours" in page
    assert "History is being filled" not in viewer.open(f"/clusters/{pages.ids[1]}").text


@pytest.fixture(scope="module")
def acme(tmp_path_factory):
    made = Acme(tmp_path_factory.mktemp("sections"))
    yield made
    made.stack.close()


def test_savings_and_assets_are_the_apis(acme: Acme) -> None:
    browser, about = acme.browser(), f"/clusters/{acme.cluster}"
    window = f"window={END - 3 * 86400},{END}"
    told = acme.api(f"kubecost{about}/optimization?{window}")
    page = browser.open(f"{about}/savings?{window}").text
    assert figure(page, "saving") == f"{told['potential_savings']:,.2f} USD"
    listed = [
        one
        for kind in ("right_sizing", "under_provisioned", "abandoned_workloads", "unclaimed_volumes", "idle_nodes")
        for one in told[kind]
    ]
    rows = re.findall(
        r"<tr><th scope=\"row\">.*?</tr>", re.search(r'<table id="rows">.*?</table>', page, re.S)[0], re.S
    )
    assert len(rows) == len(listed) > 5
    dearest = max(listed, key=lambda one: one["monthly_saving"])
    assert f"{dearest['monthly_saving']:,.2f}" in rows[0]
    assert "kubectl --namespace shop set resources deployment/web --containers web --requests cpu=" in html.unescape(
        page
    )
    assets = acme.api(f"kubecost{about}/assets?{window}&limit=1000")
    page = browser.open(f"{about}/assets?{window}").text
    assert figure(page, "total") == f"{assets['total_cost']:,.2f} USD"
    assert all(html.escape(one["name"]) in page for one in assets["assets"])
    nodes = browser.open(f"{about}/assets?{window}&asset_type=node").text
    assert (
        figure(nodes, "total")
        == f"{sum(one['total_cost'] for one in assets['assets'] if one['type'] == 'node'):,.2f} USD"
    )
    for form in ("csv", "xlsx"):
        assert browser.open(f"{about}/savings?{window}&format={form}").status_code == 200
        assert browser.open(f"{about}/assets?{window}&format={form}").status_code == 200
    gone = text_of(browser.open(f"/clusters/{acme.gone}/savings?{window}").text)
    assert re.search(r"Could be saved a month\s+not known", gone) and "0.00" not in gone and "cannot be reached" in gone


def test_commands_quote_what_clusters_say() -> None:
    hostile = "web; rm -rf / #$(id)`id`'\""
    one = structs.Recommendation(
        kind="right_sizing", namespace=hostile, controller=hostile, controller_kind="deployment", container=hostile,
        name="x", resource="cpu", monthly_saving=1.0, requested=2.0, recommended=0.2501, freed=None, evidence={}, risk="low",
    )  # fmt: skip
    words = shlex.split(patch_of(one))
    assert words == [
        "kubectl", "--namespace", hostile, "set", "resources", f"deployment/{hostile}", "--containers", hostile,
        "--requests", "cpu=251m",
    ]  # fmt: skip
    memory = replace(one, resource="memory", recommended=3 * 2**20 + 1.0)
    assert patch_of(memory).endswith("memory=4Mi")
    for other in ({"controller_kind": "job"}, {"recommended": None}, {"recommended": float("nan")}, {"container": ""}):
        assert patch_of(replace(one, **other)) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 bytes"), (1024, "1 KiB"), (1536 * 2**20, "1.5 GiB"), (2**50, "1,024 TiB")]
)
def test_bytes_are_told_in_their_own_unit(value: float, text: str) -> None:
    assert bytes_text(value) == text
