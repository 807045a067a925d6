"""Columns as Arrow streams, which the embedded engine reads and writes; pyarrow comes with that engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metroculus.cost_model.columns import Coded
from metroculus.storage.engine import Block, Column


def write_stream(path: Path, blocks: Sequence[Block]) -> None:
    """A file of blocks of the same columns; texts go as dictionaries of each block, also those in lists.

    Raises:
        OSError
    """
    import pyarrow as pa  # here: it takes a tenth of a second, and a store on a server needs none of it

    names = list(blocks[0])
    rows = [[_array(pa, block[name]) for name in names] for block in blocks]
    # Of a nullable field the engine makes a nullable column and converts it: a third of its time.
    schema = pa.schema([pa.field(name, array.type, nullable=False) for name, array in zip(names, rows[0], strict=True)])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for arrays in rows:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _array(pa: Any, column: Column) -> Any:
    if not isinstance(column, Coded):
        return pa.array(column)
    if not column.values or isinstance(column.values[0], str):
        return _texts(pa, column)
    ends = np.cumsum([0, *map(len, column.values)], dtype=np.int32)
    items = Coded.of(item for value in column.values for item in value)
    return pa.ListArray.from_arrays(pa.array(ends), _texts(pa, items)).take(pa.array(column.codes))


def _texts(pa: Any, column: Coded[str]) -> Any:
    if len(set(column.values)) < len(column.values):  # which the engine refuses
        column = column.texts(lambda text: text)
    return pa.DictionaryArray.from_arrays(pa.array(column.codes), pa.array(column.values, pa.string()))


def columns_of(blocks: Iterable[bytes]) -> dict[str, Column]:
    """Columns by name out of the engine's answer, whose blocks are streams of their own."""
    import pyarrow as pa

    tables = [pa.ipc.open_stream(block).read_all() for block in blocks if block]
    if not tables:
        return {}
    whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return {name: _column(pa, whole[name].combine_chunks()) for name in whole.column_names}


def _column(pa: Any, array: Any) -> Column:
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        return Coded(array.indices.to_numpy().astype(np.int32), array.dictionary.to_pylist())
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return Coded.of(map(tuple, array.to_pylist()))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_binary(array.type):
        return Coded.of(_text(value) for value in array.to_pylist())
    return array.to_numpy(zero_copy_only=False)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
