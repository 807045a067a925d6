"""Columns as Arrow streams, which the embedded engine reads and writes; pyarrow comes with that engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from metroculus.cost_model.columns import Coded
from metroculus.storage.engine import Column

Buffer = Any


def stream_of(columns: Mapping[str, Column]) -> Buffer:
    """A stream of one batch; texts go as dictionaries, lists of texts as lists."""
    import pyarrow as pa  # here: it takes a tenth of a second, and a store on a server needs none of it

    arrays = [_array(pa, column) for column in columns.values()]
    batch = pa.RecordBatch.from_arrays(arrays, names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _array(pa: Any, column: Column) -> Any:
    if not isinstance(column, Coded):
        return pa.array(column)
    if not column.values or isinstance(column.values[0], str):
        distinct = column.texts(lambda text: text)  # the engine refuses a dictionary that holds a value twice
        return pa.DictionaryArray.from_arrays(pa.array(distinct.codes), pa.array(distinct.values, pa.string()))
    lists = pa.array([list(value) for value in column.values], pa.list_(pa.string()))
    return lists.take(pa.array(column.codes))


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
