"""What an upstream's number may be: beyond these it is no figure, and sums of it would not be finite."""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

from msgspec import Meta

MAX_USD = 1e12
MAX_QUANTITY = 1e24

Usd: TypeAlias = Annotated[float, Meta(ge=-MAX_USD, le=MAX_USD)]
Quantity: TypeAlias = Annotated[float, Meta(ge=-MAX_QUANTITY, le=MAX_QUANTITY)]


def is_quantity(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= MAX_QUANTITY
