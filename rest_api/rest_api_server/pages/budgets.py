"""Budgets held against what is spent, and alerts with who has seen them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, to_builtins

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.auth import Needs
from rest_api.rest_api_server.controllers.alerts import AlertsController
from rest_api.rest_api_server.controllers.budgets import BudgetsController
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import INVALID
from rest_api.rest_api_server.pages.base import REFUSALS, ChangeForm
from rest_api.rest_api_server.pages.parts import (
    body_of,
    cluster_id_of,
    fits_a_field,
    form_version,
    names,
    names_version,
    number,
    number_text,
    part,
    period_text,
    version_in,
)
from rest_api.rest_api_server.pages.sections import OrganizationSection
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Cell, Uuid

PERIODS = ("week", "month", "quarter", "year")
THRESHOLD = re.compile(r"(forecast\s+)?([0-9]{1,5}(?:\.[0-9]{1,15})?)\s*%?", re.IGNORECASE)


class BudgetsPageQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid


class BudgetPageQuery(BudgetsPageQuery, frozen=True, kw_only=True):
    budget_id: Uuid


class BudgetForm(ChangeForm, frozen=True, kw_only=True):
    name: Cell
    amount: Cell
    currency: Cell = Cell("USD")
    period: Literal["week", "month", "quarter", "year"] = "month"
    cluster: Cell = Cell("")
    namespace: Cell = Cell("")
    label: Cell = Cell("")
    values: Cell = Cell("")
    cost_center: Cell = Cell("")
    thresholds: Cell = Cell("80, 100, forecast 100")
    version: Cell = Cell("")
    """Of the budget that the form was made from."""

    @classmethod
    def of(cls, budget: structs.BudgetState, names_of: Mapping[str, str], of_names: str) -> BudgetForm:
        """A budget as the form shows it; ``fits_the_form`` tells whether it can show all of it."""
        scope = budget.scope
        cluster = scope.cluster_id or ""
        return cls(
            name=Cell(budget.name),
            amount=Cell(number_text(budget.amount)),
            currency=Cell(budget.currency),
            period=budget.period,
            cluster=Cell(names_of.get(cluster, cluster)),
            namespace=Cell(scope.namespace or ""),
            label=Cell(scope.label or ""),
            values=Cell(", ".join(scope.values)),
            cost_center=Cell(scope.cost_center or ""),
            thresholds=Cell(thresholds_text(budget)),
            version=Cell(form_version(budget.version, of_names)),
        )

    def body(self, clusters: Sequence[Cluster]) -> structs.Budget:
        """Raises: ApiError"""
        scope: dict[str, Any] = {
            "cluster_id": cluster_id_of(clusters, self.cluster),
            "namespace": self.namespace,
            "label": self.label,
            "values": names(self.values),
            "cost_center": self.cost_center,
        }
        told = {
            "name": self.name.strip(),
            "amount": number("amount", self.amount),
            "currency": self.currency.strip(),
            "period": self.period,
            "scope": {
                name: value.strip() if isinstance(value, str) else value for name, value in scope.items() if value
            },
            "thresholds": [_threshold(one) for one in names(self.thresholds)],
        }
        return body_of(structs.Budget, told)


def _threshold(text: str) -> dict[str, Any]:
    found = THRESHOLD.fullmatch(text)
    if found is None:
        reason = "thresholds must be percentages with commas between them, such as: 80, 100, forecast 100"
        raise ApiError(INVALID, reason, ["thresholds"])
    return {"percent": float(found[2]), "on": "forecast" if found[1] else "actual"}


def fits_the_form(budget: structs.BudgetState, form: BudgetForm, clusters: Sequence[Cluster]) -> bool:
    """Whether the form gives back the budget that it shows."""
    fields = (form.name, form.currency, form.cluster, form.namespace, form.label, form.values, form.cost_center)
    try:
        again = form.body(clusters)
    except ApiError:
        return False
    return all(map(fits_a_field, fields)) and _decided(again) == _decided(budget)


def _decided(budget: structs.Budget | structs.BudgetState) -> tuple[object, ...]:
    thresholds = tuple((one.percent, one.on) for one in budget.thresholds)
    return (budget.name, budget.amount, budget.currency, budget.period, budget.scope, thresholds)


def forms_of(budgets: Sequence[structs.BudgetState], clusters: Sequence[Cluster]) -> dict[str, BudgetForm]:
    """The forms of budgets by id, of those that a form can show."""
    names_of, of_names = {one.id: one.name for one in clusters}, names_version(clusters)
    forms = ((one, BudgetForm.of(one, names_of, of_names)) for one in budgets)
    return {one.id: form for one, form in forms if fits_the_form(one, form, clusters)}


def scope_text(scope: structs.BudgetScope, names_of: dict[str, str]) -> str:
    """What counts in a budget, in words."""
    values = f" {', '.join(scope.values)}" if scope.values else ""
    parts = (
        scope.cluster_id and f"cluster {names_of.get(scope.cluster_id, scope.cluster_id)}",
        scope.namespace and f"namespace {scope.namespace}",
        scope.label and f"label {scope.label}{values}",
        scope.cost_center and f"cost center {scope.cost_center}",
    )
    return ", ".join(part for part in parts if part) or "everything"


def thresholds_text(budget: structs.BudgetState) -> str:
    """Thresholds as the form takes them."""
    told = (f"{'forecast ' if one.on == 'forecast' else ''}{number_text(one.percent)}" for one in budget.thresholds)
    return ", ".join(told)


class BudgetsSection(OrganizationSection):
    tab = "budgets"
    budgets: BudgetsController

    async def shown(
        self, organization_id: str, problem: str = "", form: BudgetForm | None = None, about: str = ""
    ) -> bytes:
        """The budgets, beside what a form about one of them said; ``about`` is its id, or empty for a new one."""
        shown = await self.about(organization_id)
        clusters: Sequence[Cluster] = shown["clusters"]
        told = await part(self.budgets.budgets(organization_id, clusters, True, self.request_id))
        listed = told.found.budgets if told.found is not None else ()
        forms = await asyncio.to_thread(forms_of, listed, clusters)
        if form is not None:
            gone = told.found is not None and all(one.id != about for one in listed)
            forms["" if gone else about] = form
        return await self.rendered(
            "budgets.html",
            **shown,
            told=told,
            period=period_text,
            problem=problem,
            forms=forms,
            about=about,
            new_version=form_version("", names_version(clusters)),
            periods=PERIODS,
            scope_text=scope_text,
        )


class BudgetsPage(BudgetsSection):
    """What may be spent, held against what is; and a new budget."""

    @operation(needs=Needs.READ_COSTS, query=BudgetsPageQuery, answer=str, content="text/html")
    async def get(self, query: BudgetsPageQuery) -> bytes:
        return await self.shown(query.organization_id)

    @operation(
        needs=Needs.CHANGE_RULES,
        query=BudgetsPageQuery,
        form=BudgetForm,
        answer=str,
        content="text/html",
        also=(303, *REFUSALS),
    )
    async def post(self, query: BudgetsPageQuery, form: BudgetForm) -> bytes | None:
        self.refuse_forged(form.csrf)
        self.tell_audit(change="a new budget")
        clusters = await self.gate.clusters(query.organization_id)

        async def create() -> structs.BudgetState:
            version_in(form.version, clusters)
            return await self.budgets.create(query.organization_id, clusters, form.body(clusters), self.request_id)

        made = await self.attempt(create())
        if made.found is None:
            return await self.shown(query.organization_id, made.why, form)
        self.go(self.path(query.organization_id))
        return None


class BudgetPage(BudgetsSection):
    """Changes a budget."""

    @operation(
        needs=Needs.CHANGE_RULES,
        query=BudgetPageQuery,
        form=BudgetForm,
        answer=str,
        content="text/html",
        also=(303, *REFUSALS),
    )
    async def post(self, query: BudgetPageQuery, form: BudgetForm) -> bytes | None:
        self.refuse_forged(form.csrf)
        self.tell_audit(change=f"budget {query.budget_id}")
        clusters = await self.gate.clusters(query.organization_id)

        async def change() -> structs.BudgetState:
            wanted = body_of(structs.BudgetChange, to_builtins(form.body(clusters)))
            asked = (query.organization_id, clusters, query.budget_id, wanted, version_in(form.version, clusters))
            return await self.budgets.change(*asked, self.request_id)

        changed = await self.attempt(change())
        if changed.found is None:
            return await self.shown(query.organization_id, changed.why, form, query.budget_id)
        self.go(self.path(query.organization_id))
        return None


class DeleteBudget(BudgetsSection):
    """Removes a budget."""

    @operation(
        needs=Needs.CHANGE_RULES,
        query=BudgetPageQuery,
        form=ChangeForm,
        answer=str,
        content="text/html",
        also=(303, *REFUSALS),
    )
    async def post(self, query: BudgetPageQuery, form: ChangeForm) -> bytes | None:
        self.refuse_forged(form.csrf)
        self.tell_audit(change=f"no budget {query.budget_id}")
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.organization_id, clusters, query.budget_id, self.request_id)
        deleted = await self.attempt(self.budgets.delete(*asked))
        if deleted.found is None:
            return await self.shown(query.organization_id, deleted.why)
        self.go(self.path(query.organization_id))
        return None


class AlertsPageQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid
    state: Literal["firing", "resolved"] | None = None


class AlertPageQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid
    alert_id: Uuid


class AckForm(ChangeForm, frozen=True, kw_only=True):
    note: Cell = Cell("")


class AlertsSection(OrganizationSection):
    tab = "alerts"
    alerts: AlertsController

    async def shown(self, organization_id: str, state: str | None, problem: str = "") -> bytes:
        about = await self.about(organization_id)
        told = await part(self.alerts.alerts(organization_id, about["clusters"], state, self.request_id))
        return self.page("alerts.html", **about, told=told, state=state, problem=problem)


class AlertsPage(AlertsSection):
    """What fires, what fired, why, and who has seen it."""

    @operation(needs=Needs.READ_COSTS, query=AlertsPageQuery, answer=str, content="text/html")
    async def get(self, query: AlertsPageQuery) -> bytes:
        return await self.shown(query.organization_id, query.state)


class AcknowledgeAlert(AlertsSection):
    """Says that one has seen an alert that fires."""

    @operation(
        needs=Needs.CHANGE_RULES,
        query=AlertPageQuery,
        form=AckForm,
        answer=str,
        content="text/html",
        also=(303, *REFUSALS),
    )
    async def post(self, query: AlertPageQuery, form: AckForm) -> bytes | None:
        self.refuse_forged(form.csrf)
        self.tell_audit(change=f"alert {query.alert_id} acknowledged")
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.alert_id, self.actor["user"], form.note.strip() or None, self.request_id)
        seen = await self.attempt(self.alerts.acknowledge(query.organization_id, clusters, *asked))
        if seen.found is None:
            return await self.shown(query.organization_id, None, seen.why)
        self.go(self.path(query.organization_id))
        return None
