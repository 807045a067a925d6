"""Organizations over a store that is there already: written once a kind, copied for each test."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import ClassVar

import requests

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.components import Costs
from metroculus.storage.ledger import FencedWriter, HourBatch
from tests.support import Stack, link_pushed, make_tenant
from tools.window import HOUR, parse_rfc3339

OCTOBER, NOVEMBER = int(parse_rfc3339("2026-10-01T00:00:00Z")), int(parse_rfc3339("2026-11-01T00:00:00Z"))


def row(namespace, usd, team="", idle=False):
    labels = {"team": team} if team else {}
    name = "__idle__" if idle else f"{namespace}/pod"
    namespace = "" if idle else namespace
    return Allocation(name=name, namespace=namespace, pod=f"{namespace}-pod", labels=labels, costs=Costs(cpu=usd))


HOURLY = [
    [row("shop-web", 0.5), row("search", 0.25), row("kube-system", 0.125), row("", 0.5, idle=True), row("lab", 0.25, "blue")],
    [row("search", 0.5), row("kube-system", 0.25), row("other", 0.125)],
]  # fmt: skip


class Organization:
    """Two stored clusters, and a stranger beside."""

    october = range(OCTOBER, NOVEMBER, HOUR)
    """What is stored of it."""

    kept = ("tenant", "other", "ids", "foreign")
    """What ``build`` makes that is not in the store."""
    _built: ClassVar[dict[Path, dict[str, object]]] = {}

    def __init__(self, stack):
        folder = stack.templates / f"{type(self).__module__}.{type(self).__qualname__}"
        self.writer = FencedWriter(1)
        if folder not in self._built:
            first = Stack(folder)
            first.plan = dict(stack.plan)
            self._open(first)
            self.build()
            first.close()
            self._built[folder] = {name: getattr(self, name) for name in self.kept}
        shutil.copytree(folder, stack.folder, symlinks=True, dirs_exist_ok=True)
        self.writer = FencedWriter(2)
        vars(self).update(copy.deepcopy(self._built[folder]))
        self._open(stack)

    def _open(self, stack):
        self.stack = stack
        self.running = stack.start(
            clickhouse_url=f"embedded:{stack.folder / 'store'}", data_dir=stack.folder / "kept", rounds=False
        )

    def build(self):
        """Write what every test of this kind finds."""
        self.tenant, self.other = make_tenant(self.running, "acme"), make_tenant(self.running, "other")
        self.ids = [self.link(self.tenant, f"c{n}") for n in range(2)]
        self.foreign = self.link(self.other, "theirs")
        for account, rows in zip((*self.ids, self.foreign), (*HOURLY, HOURLY[0]), strict=True):
            if self.october:
                self.store(account, rows, self.october)

    def link(self, tenant, name):
        return link_pushed(self.stack, self.running, tenant.organization_id, name)

    def store(self, account, rows, hours, currency="USD", **more):
        """The same rows in each hour."""
        columns = Allocations.of(rows)
        self.store_hours(account, dict.fromkeys(hours, columns), currency=currency, **more)

    def store_hours(self, account, rows, **more):
        """Rows by hour, in one go."""
        store = self.running.metroculus.dependencies.store
        more = {"management": 0.0625} | more
        store.ledger.commit(
            [HourBatch(account=account, hour=hour, allocations=of, **more) for hour, of in rows.items()], self.writer
        )
        store.summaries.rebuild(account, min(rows), max(rows) + HOUR, self.writer)

    def call(self, method, path, body=None, role="manager", tenant=None, **query):
        token = (tenant or self.tenant).tokens[role]
        url = f"{self.running.rest_api_listener.url}/restapi/v2/organizations/{self.tenant.organization_id}/kubecost/{path}"
        headers = {"Authorization": f"Bearer {token}"}
        return requests.request(method, url, json=body, params=query, headers=headers, timeout=30)

    def chargeback(self, month="2026-10", by="cost_center", status=200):
        answer = self.call("GET", "chargeback", role="viewer", month=month, by=by)
        assert answer.status_code == status, answer.text
        return answer.json()
