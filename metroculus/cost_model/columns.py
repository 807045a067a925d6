"""A set of allocations as columns, so that the work on a hundred thousand of them is a few operations on arrays.

Numbers are one float64 matrix, a line for each measure of ``components.MEASURES``; what is unknown of a row is a bit
of its mask; texts are codes into a dictionary, so that label sets, service lists and names that repeat are held once.
Sums are made in extended precision where the machine has it, so that their order does not matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from metroculus.cost_model.allocation import (
    IDLE,
    SPECIAL_NAMES,
    UNALLOCATED,
    Allocation,
    Filters,
    Group,
    last_part,
    special_name,
    value_of,
)
from metroculus.cost_model.components import COMPONENTS, MEASURES, STRUCTS, Costs, Kind, Usage, of_kind
from metroculus.cost_model.efficiency import efficiency, weighted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Codes = NDArray[np.int32]
Mask = NDArray[np.bool_]
Bits = NDArray[np.uint64]

LINE = {measure.name: number for number, measure in enumerate(MEASURES)}
"""The line of each measure in the matrix."""
BITS = {measure.name: 1 << measure.bit for measure in MEASURES}
"""The bit of each measure in a mask of what is unknown."""
_LINES: dict[Kind, slice] = {
    kind: slice(LINE[of_kind(kind)[0].name], LINE[of_kind(kind)[-1].name] + 1) for kind in STRUCTS
}
COSTS = _LINES["cost"]
_COMPUTE = ("cpu", "ram", "core_hours", "ram_gib_hours")
_COMPUTE_LINES = [LINE[name] for name in _COMPUTE]
_COMPUTE_BITS = np.uint64(sum(BITS[name] for name in _COMPUTE))

TEXT_FIELDS = ("name", "namespace", "controller", "controller_kind", "pod", "container", "node", "cluster")
SET_FIELDS = ("services", "labels", "annotations", "pods")
EMPTY: dict[str, Any] = {"services": (), "labels": {}, "annotations": {}, "pods": ()}

T = TypeVar("T")
U = TypeVar("U")


def exact(matrix: Floats, axis: int | None = None) -> Any:
    """Sums in extended precision."""
    return np.sum(matrix, axis=axis, dtype=np.longdouble)


def _numbering() -> defaultdict[Hashable, int]:
    """A number for each value: one that was not there yet gets the next."""
    index: defaultdict[Hashable, int] = defaultdict()
    index.default_factory = index.__len__
    return index


class Coded(Generic[T]):
    """A column of values that repeat: codes into the distinct ones."""

    __slots__ = ("codes", "values")

    def __init__(self, codes: Codes, values: Sequence[T]) -> None:
        self.codes = codes
        self.values = values

    @staticmethod
    def of(values: Iterable[T], key: Callable[[T], Hashable] | None = None) -> Coded[T]:
        """Encode values; ``key`` stands for those that cannot be hashed."""
        index = _numbering()
        if key is None:
            codes = np.fromiter(map(index.__getitem__, cast("Iterable[Hashable]", values)), dtype=np.int32)
            return Coded(codes, cast("list[T]", list(index)))
        given = list(values)
        keys = list(map(key, given))
        codes = np.fromiter(map(index.__getitem__, keys), dtype=np.int32, count=len(keys))
        distinct: dict[Hashable, T] = dict(zip(keys, given, strict=True))
        return Coded(codes, [distinct[by] for by in index])

    @staticmethod
    def same(value: T, count: int) -> Coded[T]:
        """One value in every row."""
        return Coded(np.zeros(count, dtype=np.int32), (value,))

    @staticmethod
    def joined(parts: Sequence[Coded[T]], key: Callable[[T], Hashable] | None = None) -> Coded[T]:
        """Columns one below the other, under one dictionary."""
        if len(parts) == 1 or all(part.values is parts[0].values for part in parts):
            return Coded(np.concatenate([part.codes for part in parts]), parts[0].values)
        index = _numbering()
        known: dict[Hashable, T] = {}
        codes = []
        for part in parts:
            keys = cast("Sequence[Hashable]", part.values if key is None else list(map(key, part.values)))
            if key is not None:
                known = dict(zip(keys, part.values, strict=True)) | known
            mapping = np.fromiter(map(index.__getitem__, keys), dtype=np.int32, count=len(keys))
            codes.append(mapping[part.codes])
        distinct = cast("list[T]", list(index)) if key is None else [known[by] for by in index]
        return Coded(np.concatenate(codes), distinct)

    def take(self, rows: Any) -> Coded[T]:
        return Coded(self.codes[rows], self.values)

    def map(self, function: Callable[[T], Any], type_: Any) -> NDArray[Any]:
        """A number or a truth for each row, worked out once for each distinct value."""
        made = np.fromiter(map(function, self.values), dtype=type_, count=len(self.values))
        return made[self.codes]

    def map_to(self, function: Callable[[T], U]) -> Coded[U]:
        """Other values for the distinct ones; they may fall together."""
        return Coded(self.codes, [function(value) for value in self.values])

    def texts(self, function: Callable[[T], str]) -> Coded[str]:
        """Texts made of the distinct values, again each of them once."""
        made: Coded[str] = Coded.of(map(function, self.values))
        return Coded(made.codes[self.codes], made.values)

    def ranked(self) -> tuple[Ints, Sequence[T]]:
        """Codes in the order of the values, and the values in that order."""
        order = sorted(range(len(self.values)), key=lambda number: self.values[number])  # type: ignore[arg-type,return-value]
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        return rank[self.codes], [self.values[number] for number in order]

    def list(self) -> list[T]:
        """The value of each row."""
        values = self.values
        return [values[code] for code in self.codes.tolist()]


_GROUPS = ("costs", "egress", "usage", "amounts")
"""The attributes of a row that hold its measures, in the order of ``STRUCTS``."""


def idle_rows(names: Coded[str]) -> Mask:
    """By row: whether its name is that of idle."""
    ending = np.array([name.endswith(IDLE) for name in names.values], dtype=bool)
    for number in np.flatnonzero(ending).tolist():
        ending[number] = last_part(names.values[number]) == IDLE
    return np.asarray(ending[names.codes])


class JoinedTexts(Mapping[str, Coded[Any]]):
    """Texts of several sets, each column joined when it is first asked for: most questions ask for few."""

    def __init__(self, parts: Sequence[Mapping[str, Coded[Any]]]) -> None:
        self._parts = parts
        self._joined: dict[str, Coded[Any]] = {}

    def __getitem__(self, field: str) -> Coded[Any]:
        if field not in self._joined:
            self._joined[field] = Coded.joined([part[field] for part in self._parts], key_of(field))
        return self._joined[field]

    def __iter__(self) -> Iterator[str]:
        return iter((*TEXT_FIELDS, *SET_FIELDS))

    def __len__(self) -> int:
        return len(TEXT_FIELDS) + len(SET_FIELDS)


class TakenTexts(Mapping[str, Coded[Any]]):
    """Texts of some of the rows, each column cut when it is first asked for."""

    def __init__(self, whole: Mapping[str, Coded[Any]], rows: Any) -> None:
        self._whole = whole
        self._rows = rows
        self._taken: dict[str, Coded[Any]] = {}

    def __getitem__(self, field: str) -> Coded[Any]:
        if field not in self._taken:
            self._taken[field] = self._whole[field].take(self._rows)
        return self._taken[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)


def label_key(labels: dict[str, str]) -> Hashable:
    """What two equal label sets have in common."""
    return tuple(sorted(labels.items()))


def key_of(field: str) -> Callable[[Any], Hashable] | None:
    """What stands for the values of a column in a dictionary."""
    return label_key if field in ("labels", "annotations") else None


class Allocations(Sequence[Allocation]):
    """Many allocations as columns; as a sequence it gives rows, which is for small ones.

    Args:
        measures: a line for each of ``MEASURES``.
        unknown: by row, the bits of the measures that the source left out; their numbers are 0.
        start: by row, Unix seconds, when it began to run; ``end`` likewise.
        texts: each of ``TEXT_FIELDS`` and ``SET_FIELDS``.
    """

    __slots__ = ("_ran", "_special", "end", "measures", "start", "texts", "unknown")

    def __init__(
        self,
        measures: Floats,
        unknown: Bits,
        start: Ints,
        end: Ints,
        texts: Mapping[str, Coded[Any]],
        special: Coded[str | None] | None = None,
        ran: Mask | None = None,
    ) -> None:
        self.measures = measures
        self.unknown = unknown
        self.start = start
        self.end = end
        self.texts = texts
        self._special = special
        self._ran = ran

    @staticmethod
    def of(given: Iterable[Allocation]) -> Allocations:
        """Columns of rows; what is columns already comes back as it is."""
        if isinstance(given, Allocations):
            return given
        rows = list(given)
        numbers = [(*a.costs.by_component(), *_values(a.egress), *_values(a.usage), *_values(a.amounts)) for a in rows]
        matrix = np.array(numbers, dtype=np.float64).reshape(len(rows), len(MEASURES)).T
        texts: dict[str, Coded[Any]] = {
            field: Coded.of((getattr(a, field) for a in rows), key_of(field)) for field in (*TEXT_FIELDS, *SET_FIELDS)
        }
        return Allocations(
            np.ascontiguousarray(matrix),
            np.array([sum(BITS[name] for name in a.unknown) for a in rows], dtype=np.uint64),
            np.array([a.start for a in rows], dtype=np.int64),
            np.array([a.end for a in rows], dtype=np.int64),
            texts,
        )

    @staticmethod
    def joined(parts: Iterable[Allocations]) -> Allocations:
        """Sets one below the other."""
        kept = [part for part in parts if len(part)]
        if len(kept) == 1:
            return kept[0]
        if not kept:
            return NOTHING
        return Allocations(
            np.concatenate([part.measures for part in kept], axis=1),
            np.concatenate([part.unknown for part in kept]),
            np.concatenate([part.start for part in kept]),
            np.concatenate([part.end for part in kept]),
            JoinedTexts([part.texts for part in kept]),
            Coded.joined([part.special for part in kept]),
        )

    def __len__(self) -> int:
        return len(self.start)

    @overload
    def __getitem__(self, index: int) -> Allocation: ...
    @overload
    def __getitem__(self, index: slice) -> Allocations: ...
    def __getitem__(self, index: int | slice) -> Allocation | Allocations:
        if isinstance(index, slice):
            return self.take(index)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return next(iter(self.take(slice(index, index + 1))))

    def __iter__(self) -> Iterator[Allocation]:
        columns = [self.texts[field].list() for field in (*TEXT_FIELDS, *SET_FIELDS)]
        names = [(measure.name, BITS[measure.name]) for measure in MEASURES]
        numbers = self.measures.T.tolist()
        cuts = [_LINES[kind] for kind in STRUCTS]
        for texts, row, mask, start, end in zip(
            zip(*columns, strict=True),
            numbers,
            self.unknown.tolist(),
            self.start.tolist(),
            self.end.tolist(),
            strict=True,
        ):
            fields: dict[str, Any] = dict(zip((*TEXT_FIELDS, *SET_FIELDS), texts, strict=True))
            numbers_of: dict[str, Any] = {
                field: struct(*row[cut]) for field, struct, cut in zip(_GROUPS, STRUCTS.values(), cuts, strict=True)
            }
            unknown = tuple(name for name, bit in names if mask & bit)
            yield Allocation(**fields, **numbers_of, start=start, end=end, unknown=unknown)

    def __eq__(self, other: object) -> bool:
        """Row by row, also with rows that stand in a list or tuple."""
        if isinstance(other, (Allocations, list, tuple)):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: Any) -> Allocations:
        """Some rows: a mask, an array of positions, or a slice."""
        return Allocations(
            self.measures[:, rows],
            self.unknown[rows],
            self.start[rows],
            self.end[rows],
            TakenTexts(self.texts, rows),
            None if self._special is None else self._special.take(rows),
            None if self._ran is None else self._ran[rows],
        )

    def replaced(self, measures: Floats | None = None, unknown: Bits | None = None, **texts: Coded[Any]) -> Allocations:
        """The same rows with other numbers, another mask or other texts."""
        return Allocations(
            self.measures if measures is None else measures,
            self.unknown if unknown is None else unknown,
            self.start,
            self.end,
            {**self.texts, **texts},
        )

    @property
    def special(self) -> Coded[str | None]:
        """By row: which special entity it is, None for what a namespace owns."""
        if self._special is None:
            names, spaces = self.texts["name"], self.texts["namespace"]
            ours = spaces.map(lambda namespace: namespace in SPECIAL_NAMES, bool) | idle_rows(names)
            codes = np.zeros(len(self), dtype=np.int32)
            values: list[str | None] = [None]
            for row in np.flatnonzero(ours).tolist():
                name = special_name(names.values[names.codes[row]], spaces.values[spaces.codes[row]])
                if name not in values:
                    values.append(name)
                codes[row] = values.index(name)
            self._special = Coded(codes, values)
        return self._special

    @property
    def owned(self) -> Mask:
        """By row: whether a namespace owns it."""
        return self.is_special(None)

    @property
    def ran(self) -> Mask:
        """By row: whether it is of what ran on nodes: cpu or memory was allocated, or may have been."""
        if self._ran is None:
            allocated = self.measures[_COMPUTE_LINES].any(axis=0) | ((self.unknown & _COMPUTE_BITS) != 0)
            self._ran = np.asarray(~self.is_special(IDLE) & allocated)
        return self._ran

    def is_special(self, name: str | None) -> Mask:
        """By row: whether it is this special entity, or None of them."""
        special = self.special
        if name not in special.values:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(special.codes == special.values.index(name))

    @property
    def owner(self) -> Coded[str]:
        """By row: whose cost it is, a namespace's or a special entity's."""
        special, spaces = self.special, self.texts["namespace"]
        codes = np.where(self.owned, spaces.codes, special.codes + len(spaces.values)).astype(np.int32)
        return Coded(codes, [*spaces.values, *(name or "" for name in special.values)]).texts(lambda name: name)

    def by_cluster(self) -> list[Allocations]:
        """The rows of each cluster."""
        codes = self.texts["cluster"].codes
        return [self.take(codes == code) for code in np.unique(codes).tolist()]

    @property
    def costs(self) -> Floats:
        """The matrix of cost components, USD."""
        return self.measures[COSTS]

    def line(self, name: str) -> Floats:
        """One measure of every row."""
        line: Floats = self.measures[LINE[name]]
        return line

    def sum_costs(self) -> Costs:
        return Costs(*(float(usd) for usd in exact(self.costs, 1))) if len(self) else Costs()

    def total(self) -> float:
        """USD of all rows and components."""
        return float(exact(self.costs))

    def unknown_components(self) -> tuple[str, ...]:
        """The cost components that some row leaves out, in order."""
        unknown = self.unknown_measures
        return tuple(name for name in COMPONENTS if name in unknown)

    @property
    def unknown_measures(self) -> frozenset[str]:
        """The measures that some row leaves out."""
        if not self.unknown.any():
            return frozenset()
        mask = int(np.bitwise_or.reduce(self.unknown))
        return frozenset(name for name, bit in BITS.items() if mask & bit)

    def kept(self, filters: Filters) -> Mask:
        """By row: whether a filter asks for it, as an allocation of a namespace."""
        mask = np.ones(len(self), dtype=bool)
        for wanted, field in ((filters.namespaces, "namespace"), (filters.nodes, "node")):
            if wanted:
                mask &= self.texts[field].map(set(wanted).__contains__, bool)
        if filters.services:
            services = set(filters.services)
            mask &= self.texts["services"].map(lambda served: not services.isdisjoint(served or ("",)), bool)
        for name, wanted in filters.properties:
            mask &= self.property(name).map(set(wanted).__contains__, bool)
        return mask

    def property(self, name: str) -> Coded[str]:
        """What rows are grouped by: a property, ``label:x`` or ``annotation:x``; empty where a row lacks it."""
        kind, colon, key = name.partition(":")
        if colon:
            return self.texts[f"{kind}s"].texts(lambda labels: value_of(labels, key))
        if name == "service":
            return self.texts["services"].texts(lambda served: min(served, default=""))
        return self.texts[{"controllerKind": "controller_kind"}.get(name, name)]

    def spans(self, start: int, end: int, rows: Any = slice(None)) -> Iterator[tuple[int, int]]:
        """When rows ran within ``[start, end)``, sorted by when they began; each stretch once.

        Args:
            rows: which of them: a mask, an array of positions, or a slice.
        """
        begun, over = np.maximum(self.start[rows], start), np.minimum(self.end[rows], end)
        spans = begun.astype(np.uint64) << 32 | over.astype(np.uint64)
        if len(spans) and (spans == spans[0]).all():  # as most sets are: sorting them would tell no more
            spans = spans[:1]
        for span in np.unique(spans).tolist():
            yield span >> 32, span & 0xFFFFFFFF


def _values(struct: Any) -> tuple[float, ...]:
    return tuple(getattr(struct, field) for field in struct.__struct_fields__)


NOTHING = Allocations.of(())


class Groups:
    """Allocations by some properties, in the order of their keys.

    ``costs`` and ``usage`` have a line a measure and a column a group.
    """

    def __init__(self, allocations: Allocations, index: Ints, keys: Sequence[tuple[str, ...]]) -> None:
        self.names = keys
        self._index = index
        self._order = np.argsort(index, kind="stable")
        self._first = np.flatnonzero(np.diff(index[self._order], prepend=-1)) if len(index) else np.zeros(0, np.int64)
        self.costs = self.summed(allocations.costs)
        self.usage = self.summed(allocations.measures[_LINES["usage"]])
        ordered = self._order
        if len(index):
            self.start = np.minimum.reduceat(allocations.start[ordered], self._first)
            self.end = np.maximum.reduceat(allocations.end[ordered], self._first)
        else:
            self.start = self.end = np.zeros(0, dtype=np.int64)
        self.pods = _pods(allocations, index, len(keys))
        self.unknown = self._unknown(allocations.unknown)

    def summed(self, matrix: Floats) -> Floats:
        """Sums of the columns of a matrix by group."""
        if not matrix.shape[1]:
            return np.zeros((matrix.shape[0], 0))
        ordered = matrix[:, self._order].astype(np.longdouble)
        return np.asarray(np.add.reduceat(ordered, self._first, axis=1), dtype=np.float64)

    def _unknown(self, bits: Bits) -> Bits:
        """By group, the bits of the measures that some of its rows lack."""
        if not len(bits):
            return np.zeros(0, dtype=np.uint64)
        return np.asarray(np.bitwise_or.reduceat(bits[self._order], self._first))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def minutes(self) -> Floats:
        """By group, the hull of when its rows ran."""
        return np.asarray(np.maximum(self.end - self.start, 0) / 60)

    def averages(self) -> dict[str, list[float | None]]:
        """By group, ``Group.average`` of each measure of usage."""
        minutes = self.minutes
        averages = np.divide(self.usage, minutes, out=np.zeros(self.usage.shape), where=minutes != 0)
        return {name: self._known(line, bit) for line, (name, bit) in zip(averages, _USAGE_BITS, strict=True)}

    def efficiencies(self) -> tuple[list[float | None], list[float | None], list[float | None]]:
        """By group, ``Group.efficiency``: of cpu, of memory and of both."""
        ratios, usd = [], []
        for resource in ("cpu", "ram"):
            paid = self.costs[LINE[resource]]
            used, asked = (self.usage[_USAGE_LINE[f"{resource}_{what}"]] for what in ("usage", "request"))
            told = np.array(list(map(efficiency, used.tolist(), asked.tolist(), paid.tolist())))
            ratios.append(self._known(told, BITS[f"{resource}_usage"] | BITS[f"{resource}_request"]))
            usd.append(paid.tolist())
        cpu, ram = ratios
        return cpu, ram, list(map(weighted, cpu, usd[0], ram, usd[1]))

    def _known(self, line: Floats, bits: int) -> list[float | None]:
        """A number a group, None where some row of it lacks what the bits stand for."""
        lacks = (self.unknown & np.uint64(bits)) != 0
        if not lacks.any():
            return list(line.tolist())
        return [None if lack else number for number, lack in zip(line.tolist(), lacks.tolist(), strict=True)]

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], Group]]:
        costs, usage, minutes = self.costs.T.tolist(), self.usage.T.tolist(), self.minutes.tolist()
        columns = (self.names, costs, usage, self.pods.tolist(), minutes, self.unknown.tolist())
        for key, usd, used, pods, length, bits in zip(*columns, strict=True):
            yield key, Group(Costs(*usd), Usage(*used), pods, length, unknown_usage(bits))


def _pods(allocations: Allocations, index: Ints, groups: int) -> Ints:
    """How many pods each group has; two of one name in two namespaces are two, and ``__unmounted__`` is none."""
    spaces, sets = allocations.texts["namespace"], allocations.texts["pods"]
    pods: Coded[str] = allocations.texts["pod"]
    places = index * len(spaces.values) + spaces.codes
    if any(sets.values):
        sizes = sets.map(len, np.int64)
        names = Coded.of(name for listed in sets.list() for name in listed)
        places = np.concatenate([places, np.repeat(places, sizes)])
        pods = Coded.joined([pods, names])
    named = pods.map(lambda name: name not in SPECIAL_NAMES, bool) if len(places) else np.zeros(0, dtype=bool)
    distinct = np.unique((places * max(1, len(pods.values)) + pods.codes)[named])
    return np.bincount(distinct // max(1, len(pods.values)) // max(1, len(spaces.values)), minlength=groups)


_USAGE_BITS = tuple((one.name, BITS[one.name]) for one in of_kind("usage"))
_USAGE_LINE = {one.name: line for line, one in enumerate(of_kind("usage"))}


def unknown_usage(bits: int) -> frozenset[str]:
    """The measures of usage that a mask says are unknown."""
    return frozenset(name for name, bit in _USAGE_BITS if bits & bit) if bits else frozenset()


_COST_BITS = tuple((one.name, BITS[one.name]) for one in of_kind("cost"))


def known_costs(costs: Sequence[float], bits: int, silent: Collection[str]) -> list[float | None]:
    """The costs of a group by component: None where some row of it lacks one, or nobody told any of it.

    Args:
        bits: the measures that some of its rows lack.
        silent: components that no source tells for some of the time; where a group's sum of one is 0, it is unknown.
    """
    if not bits and not silent:
        return list(costs)
    return [
        None if bits & bit or (not usd and name in silent) else usd
        for usd, (name, bit) in zip(costs, _COST_BITS, strict=True)
    ]


_LARGEST_KEY = 2**62


def group(rows: Iterable[Allocation], aggregate: Sequence[str]) -> Groups:
    """Allocations by the properties of ``aggregate``; what lacks one is ``__unallocated__``."""
    allocations = Allocations.of(rows)
    key = np.zeros(len(allocations), dtype=np.int64)
    size = 1
    columns = []
    for name in aggregate:
        ranks, values = allocations.property(name).texts(lambda text: text or UNALLOCATED).ranked()
        if size * len(values) >= _LARGEST_KEY:
            _, key = np.unique(key, return_inverse=True)
            size = int(key.max(initial=0)) + 1
        key = key * max(1, len(values)) + ranks
        size *= max(1, len(values))
        columns.append((ranks, values))
    _, first, index = np.unique(key, return_index=True, return_inverse=True)
    parts = [[values[rank] for rank in ranks[first].tolist()] for ranks, values in columns]
    keys = list(zip(*parts, strict=True)) if parts else [()] * len(first)
    return Groups(allocations, index.astype(np.int64), keys)


def add(rows: Iterable[Allocation]) -> Group:
    """Many allocations as one, whichever windows they are of."""
    groups = list(group(rows, ()))
    return groups[0][1] if groups else Group(Costs(), Usage(), 0, 0.0)


def by_owner(rows: Iterable[Allocation]) -> dict[str, Costs]:
    """Sums of costs by owner: a namespace, or a special entity."""
    allocations = Allocations.of(rows)
    present, sums = sums_by(allocations.owner, allocations.costs)
    return {name: Costs(*sums[:, number].tolist()) for number, name in enumerate(present)}


def sums_by(column: Coded[str], matrix: Floats) -> tuple[list[str], Floats]:
    """The values that stand in some row, and for each the sums of the matrix' columns in its rows."""
    order = np.argsort(column.codes, kind="stable")
    codes = column.codes[order]
    first = np.flatnonzero(np.diff(codes, prepend=-1)) if len(codes) else np.zeros(0, dtype=np.int64)
    names = [column.values[code] for code in codes[first].tolist()]
    if not names:
        return [], np.zeros((matrix.shape[0], 0))
    return names, np.add.reduceat(matrix[:, order].astype(np.longdouble), first, axis=1).astype(np.float64)


def share_idle(rows: Iterable[Allocation], idle: Costs) -> tuple[Allocations, Costs]:
    """Spread idle cpu, ram and gpu over allocations by their cost of each, each resource by itself.

    Returns:
        the allocations, each with its share, and what could not be spread because nobody has that resource.
    """
    allocations = Allocations.of(rows)
    measures = allocations.measures.copy()
    kept = {"cpu": idle.cpu, "ram": idle.ram, "gpu": idle.gpu}
    for resource in kept:
        weights = np.maximum(allocations.line(resource), 0.0)
        whole = float(exact(weights))
        if whole > 0:
            measures[LINE[resource]] += kept[resource] * (weights / whole)
            kept[resource] = 0.0
    left = {name: getattr(idle, name) for name in COMPONENTS} | kept
    return allocations.replaced(measures), Costs(**left)
