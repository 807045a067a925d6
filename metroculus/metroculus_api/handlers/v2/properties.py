"""Properties of allocations as requests name them: what to group by, and what to filter by."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Self

from metroculus.cost_model.allocation import UNALLOCATED, Filters
from metroculus.sources.source import LABEL_NAME
from optscale_client.metroculus_client import structs
from tools.tornado_service.params import Text


class Aggregate(Text):
    """A property to group by."""

    pattern = structs.AGGREGATE_PATTERN
    what = f"one of {', '.join(structs.PROPERTIES)}, label:NAME or annotation:NAME"

    @classmethod
    def parse(cls, text: str) -> Self:
        parsed = super().parse(text)
        name = text.partition(":")[2]
        if name.startswith("__") or (name and not LABEL_NAME.fullmatch(re.sub(r"[-./]", "_", "_" + name))):
            raise ValueError(f"must be {cls.what}")
        return parsed


class PropertyFilter(Text):
    """A property and a value that it must have; several of one property are alternatives."""

    pattern = structs.FILTER_PATTERN
    what = "PROPERTY=VALUE, such as controller=web, label:team=blue, or label:team= for what has no such label"
    listed = False

    @classmethod
    def parse(cls, text: str) -> Self:
        parsed = super().parse(text)
        Aggregate.parse(text.partition("=")[0])
        return parsed


@lru_cache(256)
def filters_of(
    namespaces: tuple[str, ...], nodes: tuple[str, ...], services: tuple[str, ...], given: tuple[PropertyFilter, ...]
) -> Filters:
    """What rows must have, by the three parameters of their own and by any property."""
    found: dict[str, dict[str, None]] = {
        "namespace": dict.fromkeys(namespaces),
        "node": dict.fromkeys(nodes),
        "service": dict.fromkeys(services),
    }
    for one in given:
        name, _, value = one.partition("=")
        values = found.setdefault(name, {})
        values[value] = None
        if value == UNALLOCATED:  # as rows without it are called
            values[""] = None
    own = {f"{name}s": tuple(found.pop(name)) for name in ("namespace", "node", "service")}
    return Filters(**own, properties=tuple((name, tuple(values)) for name, values in sorted(found.items())))
