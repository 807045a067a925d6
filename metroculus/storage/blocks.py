"""Batches of allocations as blocks of columns, as they go into ``k8s_allocations``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from metroculus.cost_model.allocation import MANAGEMENT, Allocation, as_prometheus_spells
from metroculus.cost_model.columns import Allocations, Coded
from metroculus.cost_model.components import MANAGEMENT_COMPONENT, MEASURES
from metroculus.storage.engine import Column
from tools.window import HOUR

if TYPE_CHECKING:
    from metroculus.storage.ledger import HourBatch

BLOCK_ROWS = 80_000
"""Rows in one insert: one block of the engine, some tens of megabytes on the way."""


class NodeKind(Struct, frozen=True):
    """What a node is, from assets."""

    instance_type: str = ""
    zone: str = ""


UNKNOWN_NODE = NodeKind()


def blocks_of(account: str, batches: Sequence[tuple[HourBatch, int]]) -> Iterator[dict[str, Column]]:
    """The rows of numbered batches, no more than ``BLOCK_ROWS`` a block but for one batch that has more."""
    parts: list[_Part] = []
    waiting = 0
    for batch, number in batches:
        for part in _parts_of(batch, number):
            if parts and waiting + len(part.rows) > BLOCK_ROWS:
                yield _block(account, parts)
                parts, waiting = [], 0
            parts.append(part)
            waiting += len(part.rows)
    if parts:
        yield _block(account, parts)


class _Part(Struct, frozen=True):
    """Rows of one batch, and whether the last of them is its management."""

    batch: HourBatch
    number: int
    rows: Allocations
    with_management: bool


def _parts_of(batch: HourBatch, number: int) -> Iterator[_Part]:
    """A batch's rows in pieces that fit a block; what no namespace owns has its special name as namespace."""
    rows = Allocations.of(batch.allocations)
    rows = rows.replaced(namespace=rows.owner)
    if batch.management is not None:
        row = Allocation(name=MANAGEMENT, namespace=MANAGEMENT, start=batch.hour, end=batch.hour + HOUR)
        rows = Allocations.joined([rows, Allocations.of([row])])
    for first in range(0, len(rows), BLOCK_ROWS):
        last = first + BLOCK_ROWS >= len(rows)
        yield _Part(batch, number, rows[first : first + BLOCK_ROWS], last and batch.management is not None)


def _block(account: str, parts: Sequence[_Part]) -> dict[str, Column]:
    """Some batches' rows as the columns of ``ALLOCATIONS``."""
    rows = Allocations.joined(part.rows for part in parts)
    sizes = [len(part.rows) for part in parts]
    texts = rows.texts
    is_management = np.zeros(len(rows), dtype=bool)
    is_management[(np.cumsum(sizes) - 1)[[part.with_management for part in parts]]] = True
    usd = np.repeat([part.batch.management or 0.0 for part in parts], sizes)
    labels, annotations = texts["labels"].map_to(_spelled), texts["annotations"].map_to(_spelled)
    kinds = [_node_kinds(part.batch.nodes, part.rows.texts["node"]) for part in parts]
    return {
        "account": Coded.same(account, len(rows)),
        "hour": np.repeat(np.array([part.batch.hour for part in parts], dtype=np.uint32), sizes),
        "batch": np.repeat(np.array([part.number for part in parts], dtype=np.uint64), sizes),
        "owned": (rows.owned & ~is_management).astype(np.uint8),
        **{field: texts[field] for field in ("cluster", "namespace", "controller", "controller_kind", "pod")},
        **{field: texts[field] for field in ("container", "node")},
        "instance_type": Coded.joined([kind.map_to(lambda one: one.instance_type) for kind in kinds]),
        "zone": Coded.joined([kind.map_to(lambda one: one.zone) for kind in kinds]),
        "services": texts["services"],
        "label_names": labels.map_to(tuple),
        "label_values": labels.map_to(lambda named: tuple(named.values())),
        "annotation_names": annotations.map_to(tuple),
        "annotation_values": annotations.map_to(lambda named: tuple(named.values())),
        "ran_from": rows.start.astype(np.uint32),
        "ran_until": rows.end.astype(np.uint32),
        **{measure.name: rows.line(measure.name) for measure in MEASURES},
        MANAGEMENT_COMPONENT: np.where(is_management, usd, 0.0),
        "unknown": rows.unknown,
        "covered_seconds": np.clip(rows.end - rows.start, 0, HOUR).astype(np.uint32),
    }


def joined_blocks(blocks: Sequence[dict[str, Column]]) -> dict[str, Column]:
    """Small blocks, perhaps of several accounts, as one."""
    if len(blocks) == 1:
        return blocks[0]
    return {
        name: Coded.joined([block[name] for block in blocks])
        if isinstance(column, Coded)
        else np.concatenate([block[name] for block in blocks])
        for name, column in blocks[0].items()
    }


def _node_kinds(nodes: Mapping[str, NodeKind], names: Coded[str]) -> Coded[NodeKind]:
    return names.map_to(lambda name: nodes.get(name, UNKNOWN_NODE))


def _spelled(named: dict[str, str]) -> dict[str, str]:
    """Labels under both spellings of their names, Kubernetes' and Prometheus', so that either finds them."""
    return {as_prometheus_spells(name): value for name, value in named.items()} | named
