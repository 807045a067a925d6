"""A month shared out: what each cost center bears, the rules behind it, and closing it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote_plus

from msgspec import Struct
from msgspec.structs import astuple, replace

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.auth import Needs
from rest_api.rest_api_server.controllers.chargeback import ChargebackController
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import INVALID
from rest_api.rest_api_server.exports.files import MEDIA_TYPES, Format
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import chargeback_table
from rest_api.rest_api_server.handlers.v2.chargeback import By
from rest_api.rest_api_server.pages.base import REFUSALS, ChangeForm
from rest_api.rest_api_server.pages.parts import (
    Part,
    body_of,
    cluster_id_of,
    fits_a_field,
    form_version,
    names,
    names_version,
    number,
    number_text,
    part,
    version_in,
)
from rest_api.rest_api_server.pages.render import link
from rest_api.rest_api_server.pages.sections import OrganizationSection
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Cell, Month, Uuid
from tools.tornado_service.streamed import StreamedFile

MOST_FIELDS = 950
"""Of the tables in a form; of a request a thousand fields are read. Longer rules are changed by the API."""
MOST_BYTES, NAME_BYTES = 900_000, 24
"""Of a form as it is sent, where a request is read up to 1 MiB; and of what stands around the text of a field."""
BLANK = 2
"""Empty rows below those that are there."""
WEIGHT = re.compile(r"\s*(.+?)\s*:\s*([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,2})?)\s*(?:,|$)")
Rest = Literal["separate", "weighted", "even"]


class ChargebackPageQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid
    month: Month | None = None
    by: By = By("cost_center")
    format: Format = "json"


class RulesQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid


class RulesForm(ChangeForm, frozen=True, kw_only=True):
    """The rules as tables: a row a match, rows of one name are alternatives."""

    month: Month
    by: By = By("cost_center")
    version: Cell = Cell("")
    """Of the rules that the form was made from."""
    valid_from: Cell
    """A month as it was typed: some browsers have no field for months."""
    idle: Rest = "separate"
    management: Rest = "separate"
    center_name: tuple[Cell, ...] = ()
    center_cluster: tuple[Cell, ...] = ()
    center_namespace: tuple[Cell, ...] = ()
    center_label: tuple[Cell, ...] = ()
    center_values: tuple[Cell, ...] = ()
    shared_name: tuple[Cell, ...] = ()
    shared_cluster: tuple[Cell, ...] = ()
    shared_namespace: tuple[Cell, ...] = ()
    shared_label: tuple[Cell, ...] = ()
    shared_values: tuple[Cell, ...] = ()
    shared_split: tuple[Cell, ...] = ()
    shared_weights: tuple[Cell, ...] = ()
    overhead_name: tuple[Cell, ...] = ()
    overhead_amount: tuple[Cell, ...] = ()
    overhead_currency: tuple[Cell, ...] = ()
    overhead_split: tuple[Cell, ...] = ()
    overhead_weights: tuple[Cell, ...] = ()


class CenterRow(Struct, frozen=True):
    name: str = ""
    cluster: str = ""
    namespace: str = ""
    label: str = ""
    values: str = ""


class SharedRow(CenterRow, frozen=True):
    split: str = "weighted"
    weights: str = ""


class OverheadRow(Struct, frozen=True):
    name: str = ""
    amount: str = ""
    currency: str = "USD"
    split: str = "weighted"
    weights: str = ""


class Draft(Struct, frozen=True, kw_only=True):
    """Rules as they stand in the form."""

    version: str
    """Of the rules that it was made from, also where it is shown again: another's are not to be replaced by it."""
    valid_from: str
    idle: str = "separate"
    management: str = "separate"
    centers: tuple[CenterRow, ...] = ()
    shared: tuple[SharedRow, ...] = ()
    overhead: tuple[OverheadRow, ...] = ()


class CloseForm(ChangeForm, frozen=True, kw_only=True):
    month: Month
    accept_incomplete: Cell = Cell("")


class ChargebackSection(OrganizationSection):
    """Shows a month with its rules, beside what a form said and what came of it."""

    tab = "chargeback"
    chargebacks: ChargebackController

    async def shown(
        self,
        organization_id: str,
        month: str | None,
        by: str,
        problem: str = "",
        draft: Draft | None = None,
        preview: structs.ChargebackPreview | None = None,
    ) -> bytes:
        running = datetime.fromtimestamp(self.service.clock(), UTC).strftime("%Y-%m")
        month = month or running
        about = await self.about(organization_id)
        clusters: Sequence[Cluster] = about["clusters"]
        asked = (organization_id, clusters)
        told, rules = await asyncio.gather(
            part(self.chargebacks.chargeback(*asked, month, by, self.request_id)),
            part(self.chargebacks.rules(*asked, self.request_id)),
        )
        in_effect = in_force(rules.found.versions, month) if rules.found is not None else None
        editable = draft is not None
        if draft is None and rules.found is not None:
            first = running if month in rules.found.closed_months else month
            changed = in_force(rules.found.versions, first)
            version = form_version(rules.found.version, names_version(clusters))
            draft = draft_of(changed, first, version, about["names_of"])
            editable = await asyncio.to_thread(fits_the_form, changed, draft, clusters)
        return await self.rendered(
            "chargeback.html",
            **about,
            month=month,
            by=by,
            running=running,
            told=told,
            rules=rules,
            in_force=in_effect,
            draft=draft,
            editable=editable,
            blank_rows=blank_rows,
            preview=preview,
            problem=problem,
            totals=totals_of(told),
        )


class ChargebackPage(ChargebackSection):
    """A month by cost center, namespace, cluster or label, and the rules that it is shared out by."""

    @operation(needs=Needs.READ_COSTS, query=ChargebackPageQuery, answer=str, content="text/html", files=MEDIA_TYPES)
    async def get(self, query: ChargebackPageQuery) -> bytes | StreamedFile:
        if query.format == "json" or query.month is None:
            return await self.shown(query.organization_id, query.month, query.by)
        month, by, organization_id = query.month, query.by, query.organization_id
        clusters = await self.gate.clusters(organization_id)

        async def table() -> Table:
            found = await self.chargebacks.chargeback(organization_id, clusters, month, by, self.request_id)
            return await asyncio.to_thread(chargeback_table, found, self.service.clock())

        return self.files.file(f"chargeback-{month}-{by}", query.format, organization_id, table)


class PreviewRules(ChargebackSection):
    """A month under the rules of the form, beside those that hold; nothing is saved."""

    @operation(needs=Needs.READ_COSTS, query=RulesQuery, form=RulesForm, answer=str, content="text/html", also=REFUSALS)
    async def post(self, query: RulesQuery, form: RulesForm) -> bytes:
        self.refuse_forged(form.csrf)
        clusters = await self.gate.clusters(query.organization_id)

        async def preview() -> structs.ChargebackPreview:
            asked = (query.organization_id, clusters, form.month, form.by, rules_of(form, clusters), self.request_id)
            return await self.chargebacks.preview(*asked)

        found = await self.attempt(preview())
        asked = (query.organization_id, form.month, form.by)
        return await self.shown(*asked, found.why, draft_of_form(form), found.found)


class SaveRules(ChargebackSection):
    """Keeps the rules of the form, from their month on."""

    @operation(
        needs=Needs.CHANGE_RULES,
        query=RulesQuery,
        form=RulesForm,
        answer=str,
        content="text/html",
        also=(303, *REFUSALS),
    )
    async def post(self, query: RulesQuery, form: RulesForm) -> bytes | None:
        self.refuse_forged(form.csrf)
        self.tell_audit(change=f"rules from {form.valid_from[:7]}")
        clusters = await self.gate.clusters(query.organization_id)

        async def save() -> structs.AllocationRules:
            wanted, version = rules_of(form, clusters), version_in(form.version, clusters)
            held = await self.chargebacks.rules(query.organization_id, clusters, self.request_id)
            if version == held.version and same_rules(in_force(held.versions, form.valid_from), wanted):
                return held
            asked = (query.organization_id, clusters, wanted, version)
            return await self.chargebacks.put_rules(*asked, self.request_id)

        saved = await self.attempt(save())
        if saved.found is None:
            return await self.shown(query.organization_id, form.month, form.by, saved.why, draft_of_form(form))
        self.go(link(self.path(query.organization_id), {}, month=form.month, by=form.by))
        return None


class CloseMonth(ChargebackSection):
    """Freezes a month."""

    @operation(
        needs=Needs.CHANGE_RULES,
        query=RulesQuery,
        form=CloseForm,
        answer=str,
        content="text/html",
        also=(303, *REFUSALS),
    )
    async def post(self, query: RulesQuery, form: CloseForm) -> bytes | None:
        self.refuse_forged(form.csrf)
        self.tell_audit(change=f"close {form.month}")
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.organization_id, clusters, form.month, form.accept_incomplete or None, self.request_id)
        closed = await self.attempt(self.chargebacks.close(*asked))
        if closed.found is None:
            return await self.shown(query.organization_id, form.month, "cost_center", closed.why)
        self.go(link(self.path(query.organization_id), {}, month=form.month))
        return None


def in_force(versions: Iterable[structs.Rules], month: str) -> structs.Rules | None:
    """The version that a month is shared out by."""
    return max((one for one in versions if one.valid_from[:7] <= month), key=lambda one: one.valid_from, default=None)


def fits_the_form(rules: structs.Rules | None, draft: Draft, clusters: Sequence[Cluster]) -> bool:
    """Whether the form can give back what it shows: its fields are few, and nothing in them reads otherwise."""
    cells = cells_of(draft)
    if not can_be_sent(cells) or not all(map(fits_a_field, cells)):
        return False
    try:
        again = rules_of_draft(draft, clusters)
    except ApiError:
        return False
    return same_rules(rules, again)


def cells_of(draft: Draft) -> list[str]:
    """The fields of a form's tables."""
    return [cell for row in (*draft.centers, *draft.shared, *draft.overhead) for cell in astuple(row)]


def can_be_sent(cells: Sequence[str]) -> bool:
    """Whether a form of such fields is read whole when it comes back."""
    return len(cells) <= MOST_FIELDS and sum(len(quote_plus(cell)) + NAME_BYTES for cell in cells) <= MOST_BYTES


def blank_rows(draft: Draft) -> int:
    """How many empty rows each table is shown with: none where the form could not be sent with them."""
    empty = [cell for row in (CenterRow(), SharedRow(), OverheadRow()) for cell in astuple(row)] * BLANK
    return BLANK if can_be_sent([*cells_of(draft), *empty]) else 0


def same_rules(rules: structs.Rules | None, others: structs.Rules) -> bool:
    """Whether two versions share out alike, from whichever month on; None are those before the first."""
    return replace(others, valid_from="") == replace(rules or structs.Rules(valid_from=""), valid_from="")


def totals_of(told: Part[structs.Chargeback]) -> list[dict[str, Any]]:
    """The last line of a month's table, a line a currency."""
    if told.found is None:
        return []
    lines = []
    for currency, total in sorted(told.found.totals.items()):
        rows = [row for row in told.found.rows if row.currency == currency]
        before = [row.previous_total_cost for row in rows if row.previous_total_cost is not None]
        lines.append(
            {
                "currency": currency,
                "total": total,
                "direct": sum(row.direct_cost for row in rows),
                "shared": sum(sum(row.shared.values()) for row in rows),
                "idle": sum(row.idle_cost for row in rows),
                "management": sum(row.management_cost for row in rows),
                "overhead": sum(sum(row.overhead.values()) for row in rows),
                "before": sum(before) if before else None,
            }
        )
    return lines


def draft_of(rules: structs.Rules | None, month: str, version: str, names_of: Mapping[str, str]) -> Draft:
    """Rules as a form shows them, from a month on."""
    if rules is None:
        return Draft(valid_from=month, version=version)
    return Draft(
        version=version,
        valid_from=month,
        idle=rules.idle,
        management=rules.management,
        centers=tuple(CenterRow(*_cells(names_of, one, match)) for one in rules.cost_centers for match in one.match),
        shared=tuple(
            SharedRow(*_cells(names_of, one, match), *_split(one.split)) for one in rules.shared for match in one.match
        ),
        overhead=tuple(
            OverheadRow(one.name, number_text(one.amount_month), one.currency, *_split(one.split))
            for one in rules.overhead
        ),
    )


def _cells(
    names_of: Mapping[str, str], one: structs.CostCenter, match: structs.Match
) -> tuple[str, str, str, str, str]:
    cluster, values = match.cluster or "", ", ".join(match.values)
    return one.name, names_of.get(cluster, cluster), match.namespace or "", match.label or "", values


def _split(split: structs.Split) -> tuple[str, str]:
    if isinstance(split, str):
        return split, ""
    return "weights", ", ".join(f"{name}: {number_text(weight)}" for name, weight in split.weights.items())


def draft_of_form(form: RulesForm) -> Draft:
    """What a form said, as it is shown again."""
    centers = (form.center_name, form.center_cluster, form.center_namespace, form.center_label, form.center_values)
    shared = (form.shared_name, form.shared_cluster, form.shared_namespace, form.shared_label, form.shared_values)
    splits = (form.shared_split, form.shared_weights)
    overhead = (form.overhead_name, form.overhead_amount, form.overhead_currency)
    more = (form.overhead_split, form.overhead_weights)
    return Draft(
        version=str(form.version),
        valid_from=form.valid_from.strip(),
        idle=form.idle,
        management=form.management,
        centers=tuple(CenterRow(*row) for row in _rows("cost centers", *centers) if any(row)),
        shared=tuple(SharedRow(*row) for row in _rows("shared costs", *shared, *splits) if any(row[:5])),
        overhead=tuple(OverheadRow(*row) for row in _rows("overhead", *overhead, *more) if row[0] or row[1]),
    )


def _rows(what: str, *columns: tuple[Cell, ...]) -> list[tuple[str, ...]]:
    if len({len(column) for column in columns}) > 1:
        raise ApiError(INVALID, f"{what}: each row must have all of its fields", [what])
    return [tuple(cell.strip() for cell in row) for row in zip(*columns, strict=True)]


def rules_of(form: RulesForm, clusters: Sequence[Cluster]) -> structs.Rules:
    """What a form said, as the rules that the API takes.

    Raises:
        ApiError
    """
    return rules_of_draft(draft_of_form(form), clusters)


def rules_of_draft(draft: Draft, clusters: Sequence[Cluster]) -> structs.Rules:
    """Raises: ApiError"""
    try:
        Month.parse(draft.valid_from)
    except ValueError as problem:
        raise ApiError(INVALID, f"valid_from {problem}", ["valid_from"]) from None
    told = {
        "valid_from": draft.valid_from,
        "idle": draft.idle,
        "management": draft.management,
        "cost_centers": _matched("cost centers", draft.centers, clusters),
        "shared": _matched("shared costs", draft.shared, clusters),
        "overhead": [
            {
                "name": row.name,
                "amount_month": number(f"amount of {row.name}", row.amount),
                "currency": row.currency,
                "split": _split_of(row),
            }
            for row in draft.overhead
        ],
    }
    return body_of(structs.Rules, told)


def _matched(what: str, rows: Iterable[CenterRow], clusters: Sequence[Cluster]) -> list[dict[str, Any]]:
    """Rows of one name as one entry, in the order of their first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row.name:
            raise ApiError(INVALID, f"{what}: a row has no name", [what])
        entry = found.setdefault(row.name, {"name": row.name, "match": []})
        if isinstance(row, SharedRow) and entry.setdefault("split", _split_of(row)) != _split_of(row):
            raise ApiError(INVALID, f"{row.name}: all its lines must have the same split", ["split"])
        cluster = cluster_id_of(clusters, row.cluster)
        given = {"cluster": cluster, "namespace": row.namespace, "label": row.label, "values": names(row.values)}
        entry["match"].append({name: value for name, value in given.items() if value})
    return list(found.values())


def _split_of(row: SharedRow | OverheadRow) -> str | dict[str, dict[str, float]]:
    if row.split != "weights":
        if row.weights:
            raise ApiError(INVALID, f"{row.name} has weights, and is not split by weights", ["weights"])
        return row.split
    listed = WEIGHT.findall(row.weights)
    weights = {name: float(weight) for name, weight in listed}
    if not weights or len(weights) < len(listed) or WEIGHT.sub("", row.weights).strip():
        raise ApiError(INVALID, f"weights of {row.name} must be like: payments: 3, search: 1", ["weights"])
    return {"weights": weights}
