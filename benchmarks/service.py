"""What a kept answer costs beside a bare Tornado handler that sends the same bytes; both on one core, in one run.

Ours does meanwhile all that it promises: audit lines, lines of the log, figures. The bare handler writes none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import requests

from benchmarks.figures import Declared, median_ratio
from benchmarks.load import run
from benchmarks.servers import serving
from benchmarks.stacks import SECRET

FIGURES = (
    Declared(
        "kept_statement_to_bare", "ratio", "a kept statement, to a bare Tornado handler with the same bytes",
        at_least=0.85,
    ),
    Declared("not_modified_to_bare", "ratio", "a 304 for it, to the same handler", at_least=0.8),
    Declared("healthz_to_bare", "ratio", "`/healthz`, to a bare handler with its bytes", at_least=0.9),
    Declared("rest_costs_to_bare", "ratio", "a REST view of it, to a bare handler with its bytes", at_least=0.6),
    Declared("kept_statement_p99_ms", "ms", "99th percentile of a kept statement under that load"),
)  # fmt: skip


def measure() -> dict[str, float]:
    with serving("product") as where:
        secret = {"Secret": SECRET}
        bearer = {"Authorization": f"Bearer {where['token']}"}
        tagged = secret | {"If-None-Match": _asked(where["statement"], secret).headers["ETag"]}
        found = {
            "kept_statement_to_bare": _to_bare(where["statement"], secret),
            "not_modified_to_bare": _to_bare(where["statement"], tagged, _asked(where["statement"], secret).content),
            "healthz_to_bare": _to_bare(where["healthz"], {}),
            "rest_costs_to_bare": _to_bare(where["costs"], bearer),
        }
        found["kept_statement_p99_ms"] = run(where["statement"], secret).p99_ms
    return found


def _asked(url: str, headers: Mapping[str, str]) -> requests.Response:
    answer = requests.get(url, headers=dict(headers), timeout=60)
    answer.raise_for_status()
    return answer


def _to_bare(url: str, headers: Mapping[str, str], body: bytes | None = None) -> float:
    """Requests a second, to those of a bare handler that sends ``body``, by default the same bytes."""
    sent = _asked(url, headers).content if body is None else body
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(sent)
        with serving("bare", file.name) as bare:

            def rate_of(at: str, with_headers: Mapping[str, str]) -> Callable[[], float]:
                return lambda: run(at, with_headers).requests_per_second

            return median_ratio(rate_of(url, headers), rate_of(bare["url"], {}))[0]
