"""Answers of the REST API as tables on a terminal: what is not known is said in words, and never 0."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tools.wording import (
    COMPONENTS,
    MANAGEMENT,
    NOT_KNOWN,
    SPECIAL,
    not_covered_text,
    source_trouble,
    why_incomplete,
)

Json = dict[str, Any]
WELL, POOR = 0.6, 0.3
"""Efficiencies from which on they are shown green, and below which red."""
GIB = 1 << 30
NAME_WIDTH = 20


def money(value: float | None) -> Text:
    return Text(NOT_KNOWN, style="yellow") if value is None else Text(f"{value:,.2f}")


def ratio(value: float | None) -> Text:
    """An efficiency, green to red."""
    if value is None:
        return Text(NOT_KNOWN, style="yellow")
    style = "green" if value >= WELL else "red" if value < POOR else "yellow"
    return Text(f"{value:.0%}", style=style)


def plain(value: object) -> Text:
    """A name as it is: nothing of it is read as markup, or by the terminal as a command."""
    return Text("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(value)))


def costs_table(body: Json, by: Sequence[str], width: int) -> Table:
    """A cluster's rows with what is of no row by its own name, and the total.

    Where the terminal is too narrow for all components the smallest are left out, never a name or a digit.

    Args:
        width: columns of the terminal.
    """
    rows, window = list(body["costs"]), body["window"]
    shown = _fitting(
        [one for one in COMPONENTS if any(row[one[0]] != 0 for row in (*rows, body["summary"]))], body, width
    )
    table = _table(f"{body['cluster_name']}: {window['start']} to {window['end']}, {body['currency']}")
    table.add_column(" / ".join(by), overflow="fold", min_width=NAME_WIDTH)
    for _, title in shown:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("total", justify="right", no_wrap=True, style="bold")
    table.add_column("efficiency", justify="right", no_wrap=True)
    for row in rows:
        cells = [money(row[name]) for name, _ in shown]
        table.add_row(plain(row["name"]), *cells, money(row["total_cost"]), ratio(row["total_efficiency"]))
    more = body["total_count"] - len(rows)
    if more > 0:
        table.add_row(Text(f"({more} more)", style="dim"), *[""] * len(shown), money(_rest(body)), "")
    for name, cost in special_of(body):
        table.add_row(Text(name, style="dim"), *[""] * len(shown), money(cost), "")
    table.add_section()
    totals = [money(body["summary"][name]) for name, _ in shown]
    efficiency = (body["efficiency"] or {}).get("total_efficiency")
    table.add_row("total", *totals, money(body["total_cost"]), ratio(efficiency), style="bold")
    return table


def _fitting(shown: list[tuple[str, str]], body: Json, width: int) -> list[tuple[str, str]]:
    """The components that there is room for, beside the names, the total and the efficiency; in their order."""
    summary = body["summary"]

    def wide(name: str, title: str) -> int:
        cells = (row[name] for row in (*body["costs"], summary))
        return 2 + max(len(title), *(len(money(cell).plain) for cell in cells))

    room = width - NAME_WIDTH - wide("total_cost", "total") - len("efficiency") - 4
    kept = set()
    for name, title in sorted(shown, key=lambda one: -(summary[one[0]] if summary[one[0]] is not None else 1e30)):
        room -= wide(name, title)
        if room < 0:
            break
        kept.add(name)
    return [one for one in shown if one[0] in kept]


def special_of(body: Json) -> list[tuple[str, float | None]]:
    """What a statement's total holds beside its rows."""
    found: list[tuple[str, float | None]] = [
        (f"({SPECIAL.get(name, name.strip('_'))})", cost) for name, cost in sorted(body["special"].items()) if cost != 0
    ]
    management = body["summary"]["management_cost"]
    return [*found, (f"({MANAGEMENT[1]})", management)] if management != 0 else found


def clusters_table(body: Json) -> Table:
    """An organization's clusters; one that failed says why."""
    table = _table("")
    for title in ("cluster", "total", "idle", "efficiency", "final until", "state"):
        right = title in ("total", "idle", "efficiency")
        least = NAME_WIDTH // 2 if title == "cluster" else None
        table.add_column(title, justify="right" if right else "left", no_wrap=right, overflow="fold", min_width=least)
    several = len(body["totals"]) > 1
    for one in body["clusters"]:
        currency = f" {one['currency']}" if several and one["currency"] else ""
        failed = one["error"] is not None
        state = Text(one["error"]["reason"], style="red") if failed else _state(one)
        until = one["freshness"]["final_until"] if one["freshness"] else ""
        efficiency = (one["efficiency"] or {}).get("total_efficiency")
        costs = (money(one["total_cost"]) + currency, money(one["idle_cost"]))
        table.add_row(plain(one["name"]), *costs, ratio(efficiency), until, state)
    table.add_section()
    for currency, total in body["totals"].items():
        table.add_row(f"total {currency}", money(total), "", "", "", "", style="bold")
    return table


def _state(one: Json) -> Text:
    troubles = troubles_of(one)
    state = Text("; ".join(troubles), style="yellow") if troubles else Text("complete", style="green")
    return state.append(f"; {text}", style="dim") if (text := not_covered(one)) else state


def savings_table(body: Json, recommendations: Sequence[Json], most: int | None) -> Table:
    """What to do, by what it saves a month."""
    table = _table(f"{body['cluster_name']}: what could be saved a month, {body['currency']}")
    for title in ("what", "where", "resource", "now", "better", "saves", "risk"):
        right = title in ("now", "better", "saves")
        table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=right)
    ranked = sorted(recommendations, key=lambda one: -one["monthly_saving"])
    for one in ranked if most is None else ranked[:most]:
        where = "/".join(filter(None, (one["namespace"], one["controller"], one["container"]))) or one["name"]
        table.add_row(
            plain(one["kind"].replace("_", " ")),
            plain(where),
            plain(one["resource"]),
            _amount(one["requested"], one["resource"]),
            _amount(one["recommended"], one["resource"]),
            money(one["monthly_saving"]),
            plain(one["risk"]),
        )
    return table


def _amount(value: float | None, resource: str) -> str:
    if value is None:
        return ""
    if resource in ("memory", "ram", "storage"):
        return f"{value / GIB:,.2f} GiB"
    return f"{value:,.3g}"


def troubles_of(body: Json) -> list[str]:
    """Why an answer is not all that happened, a line each; empty where it is complete."""
    if body["complete"]:
        return []
    about = ("name", "status", "coverage", "error", "warnings")
    troubles = [source_trouble(*(source[key] for key in about)) for source in body["sources"]]
    return why_incomplete(troubles, body.get("summary"), body.get("not_covered") or ())


def not_covered(body: Json) -> str:
    """What no source that is configured can tell; empty where there is nothing of that kind."""
    return not_covered_text(body.get("not_covered") or ())


def _rest(body: Json) -> float | None:
    """What rows that are not listed cost: the total less everything that is."""
    listed = [row["total_cost"] for row in body["costs"]]
    special = special_of(body)
    others = [cost for _, cost in special if cost is not None]
    if body["total_cost"] is None or len(others) < len(special):
        return None
    return float(body["total_cost"] - fsum((*listed, *others)))


def _table(title: str) -> Table:
    shown = plain(title) if title else None
    return Table(title=shown, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
