"""What Kubecost says of itself: the currency of its money."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from metroculus.sources.answers.envelope import MALFORMED, open_envelope

CURRENCY = re.compile("[A-Z]{3}")
US_DOLLARS = "USD"


class _Configuration(Struct):
    currencyCode: str | None = None


_CONFIGURATION = msgspec.json.Decoder(_Configuration)


def decode_currency(source: str, body: bytes) -> str | None:
    """The code of the currency (ISO 4217); an empty one is US dollars, one that is none says nothing.

    Raises:
        BadAnswer
    """
    data, _ = open_envelope(source, body)
    try:
        code = _CONFIGURATION.decode(data).currencyCode
    except MALFORMED:
        return None
    if code == "":
        return US_DOLLARS
    return code if code is not None and CURRENCY.fullmatch(code) else None
