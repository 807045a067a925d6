"""Chargeback: a month's costs shared out to cost centers by an organization's rules.

Nothing is lost on the way: the charges of a month add up to what its clusters cost and its overhead, whatever the
rules. Money in different currencies is never added; each currency is shared out by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any, Literal, TypeVar

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, UNALLOCATED
from metroculus.cost_model.components import CLUSTER_COMPONENTS

UNASSIGNED = "unassigned"
"""The cost center of what matches none."""
MONTH = r"[0-9]{4}-(0[1-9]|1[0-2])"
MAX_NAME = 100
NAME_RULE = f"name must be 1 to {MAX_NAME} characters that can be printed"
CURRENCY_RULE = "currency must be three capital letters, such as USD"
MAX_RULES = 500
MAX_MATCHES = 2000
MAX_LABELS = 20
"""Costs are read by every label that some match asks for: each makes what is read wider."""
LEAST_WEIGHT = 1e-6
MAX_AMOUNT = 1e12

T = TypeVar("T")
Rest = Literal["separate", "weighted", "even"]
Kind = Literal["cost_center", "unassigned", "shared", "overhead", "idle", "management"]


class Weights(Struct, frozen=True, forbid_unknown_fields=True):
    """Shares by name, in any unit: 3 and 1 are three quarters and one."""

    weights: dict[str, float]


Split = Literal["weighted", "even"] | Weights
"""``weighted``: by the own cost of each cost center."""


class Match(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an allocation must have, all of it. ``*`` in a namespace or a value stands for any text.

    ``label`` without ``values`` takes every allocation that has the label.
    """

    cluster: str | None = None
    namespace: str | None = None
    label: str | None = None
    values: tuple[str, ...] = ()


class CostCenter(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whoever pays; ``match`` are alternatives."""

    name: str
    match: tuple[Match, ...]


class Shared(CostCenter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Allocations that serve several cost centers; matched before cost centers are, worked off in order.

    Weights may name a shared cost that comes later.
    """

    split: Split = "weighted"


class Overhead(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A month's amount that no cluster tells, such as a support contract."""

    name: str
    amount_month: float
    currency: str = "USD"
    split: Split = "weighted"


class Rules(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How months are shared out, from ``valid_from`` (``2026-11``) on."""

    valid_from: str
    cost_centers: tuple[CostCenter, ...] = ()
    shared: tuple[Shared, ...] = ()
    overhead: tuple[Overhead, ...] = ()
    idle: Rest = "separate"
    management: Rest = "separate"

    @property
    def matched(self) -> tuple[CostCenter, ...]:
        """Shared costs and cost centers in the order in which they are matched."""
        return (*self.shared, *self.cost_centers)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that some match asks for, once."""
        matches = (match for one in self.matched for match in one.match)
        return tuple(dict.fromkeys(match.label for match in matches if match.label is not None))


class RulesError(ValueError):
    """Rules that cannot be worked by; says which, and why."""


def is_name(text: str) -> bool:
    """Whether a text can name what an organization decides."""
    return bool(text.strip()) and len(text) <= MAX_NAME and text.isprintable()


def is_currency(text: str) -> bool:
    """Whether a text looks like a currency (ISO 4217)."""
    return re.fullmatch(r"[A-Z]{3}", text) is not None


def check(rules: Rules, clusters: frozenset[str]) -> None:
    """Whether an organization of such clusters can work by these rules.

    Raises:
        RulesError
    """
    if not re.fullmatch(MONTH, rules.valid_from):
        raise RulesError("valid_from must be a month such as 2026-11")
    if len(rules.cost_centers) + len(rules.shared) + len(rules.overhead) > MAX_RULES:
        raise RulesError(f"at most {MAX_RULES} cost centers, shared costs and overheads together")
    if sum(len(one.match) for one in rules.matched) > MAX_MATCHES:
        raise RulesError(f"at most {MAX_MATCHES} matches together")
    if len(rules.labels) > MAX_LABELS:
        raise RulesError(f"matches may ask for at most {MAX_LABELS} labels together")
    named = [one.name for one in rules.matched] + [one.name for one in rules.overhead]
    for name in named:
        if not is_name(name):
            raise RulesError(NAME_RULE)
        if name == UNASSIGNED or name.startswith("__"):
            raise RulesError(f"name {name!r} is taken: names that begin with __, and {UNASSIGNED}, are ours")
        if named.count(name) > 1:
            raise RulesError(f"name {name!r} is given twice")
    for one in rules.matched:
        if not one.match:
            raise RulesError(f"{one.name}: match must not be empty")
        for match in one.match:
            _check_match(one.name, match, clusters)
    centers = {one.name for one in rules.cost_centers} | {UNASSIGNED}
    later = {one.name for one in rules.shared}
    for shared in rules.shared:
        later.discard(shared.name)
        _check_split(shared.name, shared.split, centers | later)
    for overhead in rules.overhead:
        _check_split(overhead.name, overhead.split, centers)
        if not math.isfinite(overhead.amount_month) or abs(overhead.amount_month) > MAX_AMOUNT:
            raise RulesError(f"{overhead.name}: amount_month must be at most {MAX_AMOUNT:.0f} either way")
        if not is_currency(overhead.currency):
            raise RulesError(f"{overhead.name}: {CURRENCY_RULE}")


def _check_match(name: str, match: Match, clusters: frozenset[str]) -> None:
    if match.cluster is None and match.namespace is None and match.label is None:
        raise RulesError(f"{name}: a match must name a cluster, a namespace or a label")
    if match.values and match.label is None:
        raise RulesError(f"{name}: values need a label")
    if match.cluster is not None and match.cluster not in clusters:
        raise RulesError(f"{name}: cluster {match.cluster!r} is none of this organization's")
    if any(len(text) > 500 for text in (match.namespace or "", match.label or "", *match.values)):
        raise RulesError(f"{name}: a match is at most 500 characters")


def _check_split(name: str, split: Split, known: set[str]) -> None:
    if not isinstance(split, Weights):
        return
    for target, weight in split.weights.items():
        if target not in known:
            raise RulesError(f"{name}: weights name {target!r}, which is no cost center and no shared cost after it")
        if weight and not LEAST_WEIGHT <= weight <= MAX_AMOUNT:
            raise RulesError(f"{name}: the weight of {target!r} must be 0, or from {LEAST_WEIGHT} to {MAX_AMOUNT:.0f}")
    if not any(split.weights.values()):
        raise RulesError(f"{name}: some weight must be above 0")


class Cell(Struct, frozen=True, array_like=True, gc=False):
    """The cost of one namespace of a cluster with the same values of every label that rules ask for.

    ``labels`` stand in the order of ``Rules.labels``; ``costs`` in that of ``CLUSTER_COMPONENTS``.
    """

    cluster: str
    currency: str
    namespace: str
    labels: tuple[str, ...]
    costs: tuple[float, ...]


class Charges(Struct, frozen=True):
    """What each cell bears: the finest grain, from which every view is summed.

    ``amounts`` has a row a cell, and as columns its own cost by component, what it takes of each shared cost, of each
    overhead, of idle and of management. ``origins`` says how much of a shared cost came from which cluster.
    """

    kinds: tuple[Kind, ...]
    centers: tuple[str, ...]
    clusters: tuple[str, ...]
    currencies: tuple[str, ...]
    namespaces: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    label_names: tuple[str, ...]
    shared: tuple[str, ...]
    overhead: tuple[str, ...]
    amounts: np.ndarray[Any, Any]
    origins: dict[str, dict[str, dict[str, float]]]
    """By currency, by shared cost, by cluster."""
    notes: tuple[str, ...] = ()
    """What was not shared out, and why."""

    @property
    def matrix(self) -> np.ndarray[Any, Any]:
        """``amounts`` with all its columns, also where it has no row."""
        return self.amounts.reshape(len(self.centers), WIDTH + len(self.shared) + len(self.overhead) + 2)


class Row(Struct, frozen=True, kw_only=True):
    """A line of a chargeback: what one cost center (or namespace, cluster, value of a label) bears."""

    name: str
    kind: str
    currency: str
    direct: tuple[float, ...]
    """In the order of ``CLUSTER_COMPONENTS``."""
    shared: dict[str, float]
    overhead: dict[str, float]
    idle: float
    management: float

    @property
    def direct_cost(self) -> float:
        return math.fsum(self.direct)

    @property
    def total(self) -> float:
        return math.fsum((*self.direct, *self.shared.values(), *self.overhead.values(), self.idle, self.management))


WIDTH = len(CLUSTER_COMPONENTS)


def share_out(rules: Rules, cells: Sequence[Cell]) -> Charges:
    """A month's cells shared out; ``rules`` have passed ``check``."""
    currencies = sorted({cell.currency for cell in cells} | {one.currency for one in rules.overhead})
    sheets = [_Sheet(rules, currency, [cell for cell in cells if cell.currency == currency]) for currency in currencies]
    for sheet in sheets:
        sheet.share()
    return _joined(rules, sheets)


class _Sheet:
    """The cells of one currency while they are shared out."""

    def __init__(self, rules: Rules, currency: str, cells: list[Cell]) -> None:
        self._rules = rules
        self.currency = currency
        self.notes: list[str] = []
        self.origins: dict[str, dict[str, float]] = {}
        self._passed_on: dict[str, list[tuple[str, dict[str, float]]]] = {}
        """What a shared cost has of those before it, by cluster."""
        self._shared = [one.name for one in rules.shared]
        self._overhead = [one.name for one in rules.overhead if one.currency == currency]
        owners = _owners(rules, cells)
        there = frozenset(owners)
        self.present = [name for name in (*(one.name for one in rules.cost_centers), UNASSIGNED) if name in there]
        """Cost centers that have cells."""
        self.owners = owners + self._named(owners)
        self._real = len(cells)
        nothing = Cell("", currency, "", ("",) * len(rules.labels), (0.0,) * WIDTH)
        self.cells = cells + [nothing] * (len(self.owners) - len(cells))
        self.names = self._shared + [one.name for one in rules.overhead]
        self.amounts = np.zeros((len(self.cells), WIDTH + len(self.names) + 2))
        if cells:
            self.amounts[: len(cells), :WIDTH] = [cell.costs for cell in cells]
        direct = self.amounts[:, :WIDTH].sum(axis=1)
        self._direct, self._own = direct, np.maximum(direct, 0.0)
        self._rows: dict[str, Any] = {}
        for place, owner in enumerate(self.owners):
            self._rows.setdefault(owner, []).append(place)
        self._rows = {owner: np.array(places) for owner, places in self._rows.items()}
        self._own_costs = {one: _exact(direct[places]) for one, places in self._rows.items()}
        self._left: Any = np.ones(len(self.cells), dtype=bool)
        """Whether a row still bears something: those of a shared cost that was shared out do not."""

    def _named(self, owners: Sequence[str]) -> list[str]:
        """Who may bear something without a cell of its own: named by weights, and the overhead itself."""
        splits = [one.split for one in self._rules.shared]
        splits += [one.split for one in self._rules.overhead if one.currency == self.currency]
        named = self._overhead + [name for split in splits if isinstance(split, Weights) for name in split.weights]
        there = frozenset(owners)
        return [name for name in dict.fromkeys(named) if name not in there]

    def share(self) -> None:
        for shared in self._rules.shared:
            if shared.name in self._rows:
                self._share(shared)
        for overhead in self._rules.overhead:
            if overhead.currency == self.currency:
                self._share_overhead(overhead)
        self._share_rest(IDLE, self._rules.idle, WIDTH + len(self.names))
        self._share_rest(MANAGEMENT, self._rules.management, WIDTH + len(self.names) + 1)

    def _share(self, shared: Shared) -> None:
        rows, shares = self._rows[shared.name], self._shares(shared.split)
        if not self._move(shared.name, rows, shares):
            return
        parts: dict[str, list[float]] = {}
        for row in rows[rows < self._real].tolist():
            parts.setdefault(self.cells[row].cluster, []).extend(self.cells[row].costs)
        for before, taken in self._passed_on.get(shared.name, ()):
            for cluster, usd in taken.items():
                parts.setdefault(cluster, []).append(usd)
                self.origins[before][cluster] -= usd
        came = {cluster: math.fsum(several) for cluster, several in parts.items()}
        self.origins[shared.name] = dict(came)
        for one in shares.keys() & set(self._shared):
            taken = {cluster: usd * shares[one] / math.fsum(shares.values()) for cluster, usd in came.items()}
            self._passed_on.setdefault(one, []).append((shared.name, taken))

    def _share_overhead(self, overhead: Overhead) -> None:
        rows = self._rows[overhead.name]
        self.amounts[rows, self._column(overhead.name)] = overhead.amount_month
        self._move(overhead.name, rows, self._shares(overhead.split))

    def _share_rest(self, name: str, how: Rest, column: int) -> None:
        """Idle, or management: of each cluster to those who run something in it."""
        rows = self._rows.get(name)
        if rows is None or how == "separate":
            return
        by_cluster: dict[str, dict[str, list[int]]] = {self.cells[row].cluster: {} for row in rows.tolist()}
        for one in self.present:
            for row in self._rows[one].tolist():
                if (there := by_cluster.get(self.cells[row].cluster)) is not None:
                    there.setdefault(one, []).append(row)
        for cluster, members in by_cluster.items():
            mine = [row for row in rows.tolist() if self.cells[row].cluster == cluster]
            here = {one: np.array(places) for one, places in members.items()}
            own = {one: _exact(self._direct[places]) for one, places in here.items()}
            shares = _shares_of(own if how == "weighted" else dict.fromkeys(own, 1.0))
            usd = _exact(self.amounts[mine])
            if not shares:
                self.notes.append(f"{name} of cluster {cluster} was not shared out: no cost center has costs there")
                continue
            self._left[mine] = False
            self.amounts[mine] = 0.0
            for one, share in shares.items():
                self._give(here[one], column, usd * share / math.fsum(shares.values()))

    def _shares(self, split: Split) -> dict[str, float]:
        if isinstance(split, Weights):
            return _shares_of(split.weights)
        if split == "even":
            return _shares_of(dict.fromkeys(self.present, 1.0))
        return _shares_of({one: self._own_costs[one] for one in self.present})

    def _move(self, name: str, rows: Any, shares: Mapping[str, float]) -> bool:
        """Give all that some rows have to others, as ``name``; False where nobody takes it, which is noted."""
        usd = _exact(self.amounts[rows])
        if not shares:
            if usd:
                self.notes.append(f"{name} was not shared out: nobody has a weight for it")
            return False
        self.amounts[rows] = 0.0
        self._left[rows] = False
        for one, share in shares.items():
            self._give(self._rows[one], self._column(name), usd * share / math.fsum(shares.values()))
        return True

    def _give(self, rows: Any, column: int, usd: float) -> None:
        own = self._own[rows]
        total = _exact(own)
        self.amounts[rows, column] += usd * (own / total if total > 0 else 1.0 / len(rows))

    def _column(self, name: str) -> int:
        return WIDTH + self.names.index(name)

    def kept(self) -> list[int]:
        """The rows that were not shared out; without a cell only where they bear something."""
        some: Any = self.amounts.any(axis=1)
        some[: self._real] = True
        return [int(row) for row in np.flatnonzero(some & self._left)]


def _exact(amounts: Any) -> float:
    """A sum without what rounding adds up to."""
    return float(np.sum(amounts, dtype=np.longdouble))


def _shares_of(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights that count; none where nobody has any."""
    return {name: weight for name, weight in weights.items() if weight > 0}


def _joined(rules: Rules, sheets: Sequence[_Sheet]) -> Charges:
    kinds: dict[str, Kind] = {one.name: "cost_center" for one in rules.cost_centers}
    kinds.update({one.name: "shared" for one in rules.shared})
    kinds.update({one.name: "overhead" for one in rules.overhead})
    kinds |= {IDLE: "idle", MANAGEMENT: "management", UNASSIGNED: "unassigned"}
    kept = [(sheet, sheet.kept()) for sheet in sheets]
    width = WIDTH + len(rules.shared) + len(rules.overhead) + 2
    owners = tuple(sheet.owners[row] for sheet, rows in kept for row in rows)
    cells = [sheet.cells[row] for sheet, rows in kept for row in rows]
    return Charges(
        kinds=tuple(kinds[owner] for owner in owners),
        centers=owners,
        clusters=tuple(cell.cluster for cell in cells),
        currencies=tuple(cell.currency for cell in cells),
        namespaces=tuple(cell.namespace for cell in cells),
        labels=tuple(cell.labels for cell in cells),
        label_names=rules.labels,
        shared=tuple(one.name for one in rules.shared),
        overhead=tuple(one.name for one in rules.overhead),
        amounts=np.concatenate([np.zeros((0, width)), *(sheet.amounts[rows] for sheet, rows in kept)]),
        origins={sheet.currency: sheet.origins for sheet in sheets},
        notes=tuple(note for sheet in sheets for note in sheet.notes),
    )


def _owners(rules: Rules, cells: Sequence[Cell]) -> list[str]:
    """Whose each cell is: the first shared cost that matches it, else the first cost center, else nobody's."""
    ranked = [(one.name, match) for one in rules.matched for match in one.match]
    everything = (1 << len(ranked)) - 1
    columns = [
        _Bits((rank, match.cluster) for rank, (_, match) in enumerate(ranked)).each([one.cluster for one in cells]),
        _Bits((rank, match.namespace) for rank, (_, match) in enumerate(ranked)).each([one.namespace for one in cells]),
    ]
    for place, label in enumerate(rules.labels):
        asking = [(rank, match) for rank, (_, match) in enumerate(ranked) if match.label == label]
        columns.append(_LabelBits(asking, everything).each([one.labels[place] for one in cells]))
    first = {1 << rank: name for rank, (name, _) in enumerate(ranked)} | {0: UNASSIGNED}
    owners = []
    for cell, several in zip(cells, zip(*columns, strict=True), strict=True):
        bits = reduce(and_, several, everything)
        owners.append(cell.namespace if cell.namespace in (IDLE, MANAGEMENT) else first[bits & -bits])
    return owners


class _Bits:
    """Which matches a text satisfies, as bits by their rank; a pattern of None is satisfied by any."""

    def __init__(self, patterns: Iterable[tuple[int, str | None]]) -> None:
        self._any = 0
        self._exact: dict[str, int] = {}
        self._globs: list[tuple[int, Callable[[str], object]]] = []
        for rank, pattern in patterns:
            if pattern is None:
                self._any |= 1 << rank
            elif "*" not in pattern:
                self._exact[pattern] = self._exact.get(pattern, 0) | 1 << rank
            else:
                self._globs.append((1 << rank, _glob(pattern)))

    def of(self, text: str) -> int:
        found = self._any | self._exact.get(text, 0)
        for bit, fits in self._globs:
            if fits(text):
                found |= bit
        return found

    def each(self, texts: Sequence[str]) -> list[int]:
        """Of many texts, each worked out once."""
        known = {text: self.of(text) for text in set(texts)}
        return [known[text] for text in texts]


class _LabelBits(_Bits):
    """``_Bits`` of one label: matches that do not ask for it are satisfied by any value."""

    def __init__(self, matches: Sequence[tuple[int, Match]], everything: int) -> None:
        asking = sum(1 << rank for rank, _ in matches)
        self._others = everything & ~asking
        self._has_it = sum(1 << rank for rank, match in matches if not match.values)
        super().__init__((rank, value) for rank, match in matches for value in match.values)

    def of(self, value: str) -> int:
        return self._others if value in ("", UNALLOCATED) else self._others | self._has_it | super().of(value)


def fits(pattern: str, text: str) -> bool:
    """Whether a text fits a pattern, in which ``*`` stands for any text."""
    return text == pattern if "*" not in pattern else bool(_glob(pattern)(text))


def _glob(pattern: str) -> Callable[[str], object]:
    """Whether a text fits a pattern in which ``*`` stands for any text: each part is looked for once, in order."""
    first, *middle, last = pattern.split("*")

    def fits(text: str) -> bool:
        if not (text.startswith(first) and text.endswith(last)) or len(text) < len(first) + len(last):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:
            at = text.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    return fits


def rows_by(charges: Charges, by: str) -> list[Row]:
    """Charges summed by ``cost_center``, ``namespace``, ``cluster`` or ``label:x`` and currency, in order of name.

    By cluster, a shared cost is where it came from: each cluster's row is what the cluster cost, and its overhead.

    Raises:
        ValueError: a label that no rule asks for.
    """
    if by == "cluster":
        charges = _by_origin(charges)
    amounts, groups = charges.matrix, dict[tuple[str, str, str], list[int]]()
    for place, key in enumerate(_keys(charges, by)):
        groups.setdefault(key, []).append(place)
    found = []
    for (name, kind, currency), places in sorted(groups.items()):
        sums = np.sum(amounts[places], axis=0, dtype=np.longdouble).astype(float).tolist()
        shared = sums[WIDTH : WIDTH + len(charges.shared)]
        overhead = sums[WIDTH + len(charges.shared) : -2]
        found.append(
            Row(
                name=name,
                kind=kind,
                currency=currency,
                direct=tuple(sums[:WIDTH]),
                shared={one: usd for one, usd in zip(charges.shared, shared, strict=True) if usd},
                overhead={one: usd for one, usd in zip(charges.overhead, overhead, strict=True) if usd},
                idle=sums[-2],
                management=sums[-1],
            )
        )
    return found


def _keys(charges: Charges, by: str) -> Iterator[tuple[str, str, str]]:
    """Name, kind and currency of the row that each charge belongs to."""
    if by == "cost_center":
        yield from zip(charges.centers, charges.kinds, charges.currencies, strict=True)
        return
    if by == "cluster":
        names: Sequence[str] = charges.clusters
    elif by == "namespace":
        names = charges.namespaces
    else:
        place = charges.label_names.index(by.removeprefix("label:"))
        names = [one[place] for one in charges.labels]
    kind = by.partition(":")[0]
    ours = {"overhead"} if by == "cluster" else {"idle", "management", "overhead"}
    for name, own, center, currency in zip(names, charges.kinds, charges.centers, charges.currencies, strict=True):
        yield (center, own, currency) if own in ours else (name or UNALLOCATED, kind, currency)


def _by_origin(charges: Charges) -> Charges:
    """Charges with every shared cost on the clusters that it came from."""
    amounts = charges.matrix.copy()
    amounts[:, WIDTH : WIDTH + len(charges.shared)] = 0.0
    some: Any = amounts.any(axis=1)
    kept = [n for n, bears in enumerate(some.tolist()) if charges.clusters[n] or bears]
    came = [
        (currency, WIDTH + charges.shared.index(name), cluster, usd)
        for currency, origins in charges.origins.items()
        for name, by_cluster in origins.items()
        for cluster, usd in by_cluster.items()
    ]
    more = np.zeros((len(came), amounts.shape[1]))
    for row, (_, column, _, usd) in enumerate(came):
        more[row, column] = usd

    def of(column: Sequence[T]) -> list[T]:
        return [column[n] for n in kept]

    return replace(
        charges,
        kinds=(*of(charges.kinds), *(("shared",) * len(came))),
        centers=(*of(charges.centers), *(("",) * len(came))),
        clusters=(*of(charges.clusters), *(cluster for _, _, cluster, _ in came)),
        currencies=(*of(charges.currencies), *(currency for currency, *_ in came)),
        amounts=np.concatenate([amounts[kept], more]),
    )
