"""Batches of allocations as blocks of columns, as they go into ``k8s_allocations``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from metroculus.cost_model.allocation import MANAGEMENT, Allocation, as_prometheus_spells
from metroculus.cost_model.columns import Allocations, Coded
from metroculus.cost_model.components import MANAGEMENT_COMPONENT, MEASURES
from metroculus.storage.engine import Block, Column
from tools.window import HOUR

if TYPE_CHECKING:
    from metroculus.storage.ledger import HourBatch

INSERT_ROWS = 120_000
"""Rows in one insert, some tens of megabytes on the way."""
ALWAYS_SENT = frozenset({"covered_seconds"})
"""Columns of ``ALLOCATIONS`` whose default is not 0; the Distributed table of a cluster has lost that default."""


class NodeKind(Struct, frozen=True):
    """What a node is, from assets."""

    instance_type: str = ""
    zone: str = ""


UNKNOWN_NODE = NodeKind()


def inserts_of(account: str, batches: Sequence[tuple[HourBatch, int]]) -> Iterator[list[Block]]:
    """The blocks of each insert: at most ``INSERT_ROWS`` rows of numbered batches, and a row for each management."""
    blocks: list[Block] = []
    managements: list[tuple[HourBatch, int]] = []
    waiting = 0
    for batch, number in batches:
        for rows in _pieces(batch):
            if blocks and waiting + len(rows) > INSERT_ROWS:
                yield [*blocks, *_management(account, managements)]
                blocks, managements, waiting = [], [], 0
            blocks.append(_block(account, batch.hour, number, rows, batch.nodes))
            waiting += len(rows)
        if batch.management is not None:
            managements.append((batch, number))
    if blocks or managements:
        yield [*blocks, *_management(account, managements)]


def without_empty(blocks: Sequence[Block]) -> list[Block]:
    """Blocks of the same columns, without those that are 0 or empty in every row: the engine fills those in.

    Few clusters have GPUs or load balancers in each hour, so this is often half of a block.
    """
    left_out = {name for name in blocks[0] if all(map(_is_empty, (block[name] for block in blocks)))} - ALWAYS_SENT
    return [{name: column for name, column in block.items() if name not in left_out} for block in blocks]


def _is_empty(column: Column) -> bool:
    return not (any(column.values) if isinstance(column, Coded) else column.any())


def _pieces(batch: HourBatch) -> Iterator[Allocations]:
    """A batch's rows, in pieces that fit an insert."""
    rows = Allocations.of(batch.allocations)
    if 0 < len(rows) <= INSERT_ROWS:
        yield rows
        return
    for first in range(0, len(rows), INSERT_ROWS):
        yield rows[first : first + INSERT_ROWS]


def _block(account: str, hour: int, number: int, rows: Allocations, nodes: Mapping[str, NodeKind]) -> Block:
    """Rows of a batch as the columns of ``ALLOCATIONS``; what no namespace owns has its special name as namespace."""
    count, texts = len(rows), rows.texts
    labels, annotations = texts["labels"].map_to(_spelled), texts["annotations"].map_to(_spelled)
    kinds = texts["node"].map_to(lambda name: nodes.get(name, UNKNOWN_NODE))
    return {
        "account": Coded.same(account, count),
        "hour": np.full(count, hour, dtype=np.uint32),
        "batch": np.full(count, number, dtype=np.uint64),
        "owned": rows.owned.astype(np.uint8),
        "cluster": texts["cluster"],
        "namespace": rows.owner,
        **{field: texts[field] for field in ("controller", "controller_kind", "pod", "container", "node")},
        "instance_type": kinds.map_to(lambda one: one.instance_type),
        "zone": kinds.map_to(lambda one: one.zone),
        "services": texts["services"],
        "label_names": labels.map_to(tuple),
        "label_values": labels.map_to(lambda named: tuple(named.values())),
        "annotation_names": annotations.map_to(tuple),
        "annotation_values": annotations.map_to(lambda named: tuple(named.values())),
        "ran_from": rows.start.astype(np.uint32),
        "ran_until": rows.end.astype(np.uint32),
        **{measure.name: rows.line(measure.name) for measure in MEASURES},
        MANAGEMENT_COMPONENT: np.zeros(count),
        "unknown": rows.unknown,
        "covered_seconds": np.clip(rows.end - rows.start, 0, HOUR).astype(np.uint32),
    }


def _management(account: str, batches: Sequence[tuple[HourBatch, int]]) -> Iterator[Block]:
    """The managements of batches, a row each, in one block; none where there are none."""
    if not batches:
        return
    rows = Allocations.of(
        Allocation(name=MANAGEMENT, namespace=MANAGEMENT, start=batch.hour, end=batch.hour + HOUR)
        for batch, _ in batches
    )
    yield _block(account, 0, 0, rows, {}) | {
        "hour": np.array([batch.hour for batch, _ in batches], dtype=np.uint32),
        "batch": np.array([number for _, number in batches], dtype=np.uint64),
        "owned": np.zeros(len(rows), dtype=np.uint8),
        MANAGEMENT_COMPONENT: np.array([batch.management for batch, _ in batches], dtype=np.float64),
    }


def _spelled(named: dict[str, str]) -> dict[str, str]:
    """Labels under both spellings of their names, Kubernetes' and Prometheus', so that either finds them."""
    return {as_prometheus_spells(name): value for name, value in named.items()} | named
