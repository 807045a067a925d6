"""The pages in a real Chromium: light, dark and on a phone, with whole data, failing sources and hostile names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.components import Costs
from metroculus.sources.registry.protocol import Credentials
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.watch.alerts import Finding, advance
from simulator.server import Habits
from tests.conftest import need
from tests.integration.test_services import link
from tests.support import END, NOW, Stack, ask, exact_world, make_tenant

CHROMIUM = "/usr/bin/chromium"
WORLD = exact_world(7, days=3)
WINDOW = f"window={WORLD.start},{END}"
HOSTILE = ("<script>alert(1)</script>", "a\u202eb", "🦊" * 15, "z" * 63)
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
PICTURES, OF_THE_DOCS = Path("build/pages"), Path("docs/pictures")
SHOWN = (("cluster", "light"), ("cluster", "dark"), ("savings", "light"))
"""Pictures of the docs; ``make pictures`` makes them anew."""


class Seen:
    """An organization of a stored cluster, one that fails, and ones with hostile names; beside it an empty one."""

    def __init__(self, folder: Any) -> None:
        self.stack = Stack(folder)
        _, url = self.stack.simulate(WORLD, Habits())
        self.running = self.stack.start(clickhouse_url=f"embedded:{folder / 'store'}", rounds=False)
        self.tenant, self.empty = make_tenant(self.running, "acme"), make_tenant(self.running, "nobody")
        self.cluster = link(self.running, self.tenant, "prod", "kubecost", url)
        self.gone = link(self.running, self.tenant, "gone", "opencost", "http://127.0.0.1:9")
        worker: Any = self.running.worker
        self.stack.thread.run(worker.worker.fill(self.cluster, (WORLD.start, END), 2, lambda progress: None))
        directory, registry = self.running.rest_api.directory, self.running.metroculus.dependencies.registry
        for name in HOSTILE:
            made = directory.create_cluster(self.tenant.organization_id, name, "push", "")
            self.stack.thread.run(registry.put(made.id, "push", "", Credentials()))
        self.decide()
        self.base = self.running.rest_api_listener.url
        organization = f"/organizations/{self.tenant.organization_id}"
        self.pages = {
            "sign-in": "/sign-in",
            "organization": f"{organization}?{WINDOW}",
            "empty": f"/organizations/{self.empty.organization_id}",
            "cluster": f"/clusters/{self.cluster}?{WINDOW}",
            "day": f"/clusters/{self.cluster}?window={END - 86400},{END}&by=controller&idle=share&k8s_namespace=shop",
            "failing": f"/clusters/{self.gone}?{WINDOW}",
            "error": "/clusters/nothing",
            "components": f"/clusters/{self.cluster}?{WINDOW}&chart=component&step=hour&by=label:team",
            "savings": f"/clusters/{self.cluster}/savings?{WINDOW}",
            "assets": f"/clusters/{self.cluster}/assets?{WINDOW}",
            "chargeback": f"{organization}/chargeback?month=2026-11",
            "budgets": f"{organization}/budgets",
            "alerts": f"{organization}/alerts",
            "clusters": f"{organization}/clusters",
        }

    def decide(self) -> None:
        """Rules, a budget, and an alert that fires: what the pages about them show."""
        organization = f"organizations/{self.tenant.organization_id}/kubecost"
        rules = {
            "valid_from": "2026-11",
            "cost_centers": [{"name": HOSTILE[0], "match": [{"namespace": "shop"}]}],
            "overhead": [{"name": "support", "amount_month": 300.0}],
        }
        budget = {"name": HOSTILE[0], "amount": 100.0, "scope": {"namespace": "shop"}}
        for method, path, body in (("PUT", "allocation_rules", rules), ("POST", "budgets", budget)):
            path = f"/restapi/v2/{organization}/{path}"
            assert ask(self.running, self.tenant.tokens["manager"], path, method, json=body).status_code in (200, 201)
        alert = advance(
            self.tenant.organization_id, None, Finding(kind="drift", subject=self.cluster, verdict="firing"), NOW
        )
        documents = self.running.metroculus.dependencies.store.documents
        documents.put(self.tenant.organization_id, "alert", alert.id, msgspec.json.encode(alert).decode())

    def link(self, tenant: Any, role: str = "viewer") -> str:
        directory = self.running.rest_api.directory
        user = f"{'acme' if tenant is self.tenant else 'nobody'} {role}"
        return f"{self.base}/sign-in?code={directory.create_sign_in(directory.tokens(user)[0].id, 'code', NOW + 600)}"

    def api(self, path: str) -> Any:
        return ask(self.running, self.tenant.tokens["viewer"], f"/restapi/v2/{path}").json()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    need(CHROMIUM, package="chromium")
    made = Seen(tmp_path_factory.mktemp("browser"))
    yield made
    made.stack.close()


@pytest.fixture(scope="module")
def chromium(seen: Seen) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page of a look of its own; what the browser complains of, and whom it asks."""

    def __init__(self, chromium: Browser, look: str) -> None:
        self.context = chromium.new_context(**LOOKS[look])
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda message: self._complained(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(re.sub(r"^(\w+://[^/]+).*", r"\1", request.url)))

    def _complained(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "status of 4" not in text:
            self.complaints.append(text)


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_in_every_look(seen: Seen, chromium: Browser, look: str) -> None:
    """Nothing that axe-core calls serious, nothing against the policy, nothing from elsewhere, nothing cut off."""
    watched = Watched(chromium, look)
    page = watched.page
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, path in seen.pages.items():
        if name in ("organization", "empty"):
            watched.context.clear_cookies()
            page.goto(seen.link(seen.tenant if name == "organization" else seen.empty))
        if name == "cluster":
            watched.context.clear_cookies()
            page.goto(seen.link(seen.tenant, "admin"))
        page.goto(seen.base + path)
        page.evaluate("document.querySelectorAll('main details').forEach(one => { one.open = true; })")
        page.screenshot(path=PICTURES / f"{name}-{look}.png", full_page=True)
        if (name, look) in SHOWN and os.environ.get("PICTURES"):
            page.screenshot(path=OF_THE_DOCS / f"{name}-{look}.png")
        found = Axe().run(page).response["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, (name, serious)
        sideways = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert sideways <= 0, f"{name} is {sideways} pixels too wide"
    assert not watched.complaints and watched.asked == {seen.base}
    watched.context.close()


def test_the_docs_have_the_pictures() -> None:
    shown = set(re.findall(r"\(pictures/([a-z-]+)\.png\)", Path("docs/page.md").read_text()))
    assert shown == {f"{name}-{look}" for name, look in SHOWN}
    assert all((OF_THE_DOCS / f"{one}.png").read_bytes().startswith(b"\x89PNG") for one in shown)


def test_figures_that_are_read_off_the_page_are_the_apis(seen: Seen, chromium: Browser) -> None:
    watched = Watched(chromium, "light")
    page = watched.page
    page.goto(seen.link(seen.tenant))
    page.goto(seen.base + seen.pages["cluster"])
    body = seen.api(f"kubecost/clusters/{seen.cluster}/costs?{WINDOW}&limit=1000")
    assert page.locator("[data-figure=total]").inner_text() == f"{body['total_cost']:,.2f} USD"
    assert page.locator("[data-figure=table-total]").inner_text() == f"{body['total_cost']:,.2f}"
    rows = page.locator("#rows tbody tr:not(.special)").all()
    shown = {row.locator("th").inner_text(): row.locator("td").first.inner_text() for row in rows}
    assert shown == {row["name"]: f"{row['total_cost']:,.2f}" for row in body["costs"]}
    special = page.locator("#rows tr.special td.n").all_inner_texts()
    listed = [float(text.replace(",", "")) for text in (*shown.values(), *special)]
    assert abs(sum(listed) - body["total_cost"]) < 0.01 * len(listed)
    days = seen.api(f"kubecost/clusters/{seen.cluster}/costs?{WINDOW}&step=day&groups=7")["data_points"]
    dearest = max(days[-1]["groups"], key=lambda name: sum(day["groups"].get(name, 0.0) for day in days))
    for chart, values in (
        ("group", [d["groups"][dearest] for d in days]),
        ("component", [d["cpu_cost"] for d in days]),
    ):
        page.goto(f"{seen.base}{seen.pages['cluster']}&chart={chart}")
        heights = page.locator("svg.chart rect.p0").evaluate_all(
            "all => all.map(one => Number(one.getAttribute('height')))"
        )
        assert len(heights) == len(days) == 3
        assert [height / heights[0] for height in heights] == pytest.approx([v / values[0] for v in values], rel=1e-3)

    page.goto(seen.base + seen.pages["organization"])
    overview = seen.api(f"organizations/{seen.tenant.organization_id}/kubecost/clusters?{WINDOW}&limit=1000")
    for one in overview["clusters"]:
        row = page.locator(f"tr[data-cluster='{one['cluster_id']}']")
        wanted = "not known" if one["total_cost"] is None else f"{one['total_cost']:,.2f} {one['currency']}"
        assert row.locator("td").first.inner_text() == wanted
        assert row.locator("th").inner_text() == one["name"], "a hostile name is itself"
    watched.context.close()


def test_from_an_organization_to_a_namespace_by_the_keyboard_alone(seen: Seen, chromium: Browser) -> None:
    """Into a cluster, into a namespace, another grouping, and back out by the chip and by Back."""
    watched = Watched(chromium, "light")
    page = watched.page
    page.goto(seen.link(seen.tenant))
    page.goto(seen.base + seen.pages["organization"])

    def tab_to(selector: str) -> None:
        wanted = page.locator(selector).first
        for _ in range(80):
            page.keyboard.press("Tab")
            if wanted.evaluate("one => one === document.activeElement"):
                outline = wanted.evaluate("one => getComputedStyle(one).outlineStyle")
                assert outline != "none", f"{selector} does not show that it has the focus"
                return
        raise AssertionError(f"{selector} cannot be reached by the keyboard")

    tab_to(f"tr[data-cluster='{seen.cluster}'] a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/clusters/**")
    tab_to("#rows a[href*='k8s_namespace=shop']")
    page.keyboard.press("Enter")
    page.wait_for_url("**k8s_namespace=shop**")
    body = seen.api(f"kubecost/clusters/{seen.cluster}/costs?{WINDOW}&k8s_namespace=shop&limit=1")
    assert page.locator("[data-figure=total]").inner_text() == f"{body['total_cost']:,.2f} USD"
    tab_to("#by")
    page.keyboard.press("Control+a")
    page.keyboard.type("pod")
    page.keyboard.press("Enter")
    page.wait_for_url("**by=pod**")
    assert "k8s_namespace=shop" in page.url and page.locator("h2#rows-title").inner_text() == "By pod"
    tab_to("#rows tbody th a")
    pod = page.locator("#rows tbody th a").first.inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**by=container**")
    assert [one.inner_text() for one in page.locator("header nav a").all()] == ["acme", "prod", "shop", pod]
    page.go_back()
    tab_to("a.chip")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda address: "k8s_namespace" not in address)
    page.go_back()
    assert "k8s_namespace=shop" in page.url
    assert not watched.complaints
    watched.context.close()


def test_a_cluster_joins_and_its_line_turns_green_when_the_first_hour_arrives(seen: Seen, chromium: Browser) -> None:
    """The part is asked for again by the page itself, under its policy, until there is something to tell."""
    watched = Watched(chromium, "light")
    page = watched.page
    page.goto(seen.link(seen.tenant, "admin"))
    page.goto(seen.base + seen.pages["clusters"])
    page.fill("section form input[name=name]", "joining")
    page.click("button:has-text('Add cluster')")
    page.wait_for_selector("[data-token]")
    line = page.locator("#arrival")
    assert "othing has arrived yet" in line.inner_text()
    page.locator("#arrival", has_text="has no data for this time").wait_for(timeout=20_000)
    (made,) = [
        one for one in seen.running.rest_api.directory.clusters(seen.tenant.organization_id) if one.name == "joining"
    ]
    store = seen.running.metroculus.dependencies.store
    rows = [Allocation(name="x/pod", namespace="x", pod="pod", costs=Costs(cpu=1.0))]
    batches = [
        HourBatch(account=made.id, hour=hour, allocations=rows, management=0.0)
        for hour in range(END - 86400, END, 3600)
    ]
    store.ledger.commit(batches, FencedWriter(1))
    page.wait_for_selector("#arrival a[href^='/clusters/']", timeout=30_000)
    assert "yet" not in line.inner_text() and page.locator("[data-poll]").count() == 0
    assert not watched.complaints and watched.asked == {seen.base}
    page.goto(seen.base + seen.pages["clusters"])
    row = page.locator(f"tr[data-cluster='{made.id}']")
    row.locator("summary").click()
    row.locator("input[name=name]").fill("joining")
    row.locator("button:has-text('Unlink')").click()
    page.wait_for_url("**/clusters")
    assert page.locator(f"tr[data-cluster='{made.id}']").count() == 0
    watched.context.close()


def test_signing_in_by_hand_and_out_again(seen: Seen, chromium: Browser) -> None:
    watched = Watched(chromium, "light")
    page = watched.page
    page.goto(seen.base + seen.pages["cluster"])
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    assert "not known" in page.locator("[role=alert]").inner_text()
    page.fill("#token", seen.tenant.tokens["viewer"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/clusters/**")
    (cookie,) = [one for one in watched.context.cookies() if one["name"].endswith("metroculus_session")]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax" and page.evaluate("document.cookie") == ""
    page.click("text=Sign out")
    page.wait_for_url("**/sign-in")
    page.goto(seen.base + seen.pages["cluster"])
    assert "/sign-in" in page.url
    watched.context.close()


def test_a_file_is_taken_away(seen: Seen, chromium: Browser) -> None:
    watched = Watched(chromium, "light")
    page = watched.page
    page.goto(seen.link(seen.tenant))
    page.goto(seen.base + seen.pages["cluster"])
    with page.expect_download() as taken:
        page.click("text=CSV")
    assert taken.value.suggested_filename == "costs-prod-2026-11-18-2026-11-21.csv"
    assert Path(taken.value.path()).read_text().splitlines()[-1].startswith("# rows,")
    watched.context.close()
