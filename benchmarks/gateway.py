"""Metrics through the gateway, to the same straight into its receiver: a real Prometheus, batches as it sends them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import load
from benchmarks.figures import Declared
from benchmarks.servers import serving
from simulator.remote_write import field, labels, packed, sample
from tests.conftest import Prometheus

ROUNDS, BODIES, SERIES = 3, 60, 2000
"""A batch of 2,000 samples is what Prometheus sends by default."""
SENDERS = 64

FIGURES = (
    Declared("gateway_to_direct", "ratio", "samples a second through the gateway, to those that its receiver takes "
             "directly", at_least=0.5),
    Declared("gateway_memory_growth_mib", "MiB", "memory of the gateway after 64 senders, to before", at_most=64),
)  # fmt: skip

SCRIPT = """
local bodies = {}
for number = 1, %d do
  local file = io.open("%s/" .. number, "rb")
  bodies[number] = file:read("*a")
  file:close()
end
local headers = {
  ["Content-Type"] = "application/x-protobuf", ["Content-Encoding"] = "snappy", ["Authorization"] = "Bearer %s"
}
local sent = 0
request = function()
  sent = sent + 1
  return wrk.format("POST", nil, headers, bodies[(sent - 1) %% #bodies + 1])
end
"""


def _batch(milliseconds: int) -> bytes:
    """One sample each of 2,000 series, as an exporter of pods' costs labels them."""
    stamp = sample(0.25, milliseconds)
    series = []
    for number in range(SERIES):
        named = {
            "__name__": "container_cpu_allocation", "cluster_id": "prod", "container": "app",
            "instance": "10.0.0.1:9003", "job": "opencost", "namespace": f"team-{number % 40}",
            "node": f"node-{number % 50}",
            "pod": f"app-{number}-7d9f8b6c5d-x2x{number % 10}", "uid": f"6f1c2c1e-6d1a-4a51-9d5e-{number:012d}",
        }  # fmt: skip
        series.append(field(1, labels(named) + stamp))
    return packed(b"".join(series))


@contextmanager
def _receiver(folder: Path) -> Iterator[str]:
    if shutil.which("prometheus") is None:
        raise load.LoadError("prometheus is not installed: apt-get install prometheus")
    prometheus = Prometheus(folder)
    prometheus.start(
        "--web.enable-remote-write-receiver", configuration="storage: {tsdb: {out_of_order_time_window: 1d}}"
    )
    try:
        yield f"{prometheus.url}/api/v1/write"
    finally:
        prometheus.stop()


def measure() -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="bench-gateway-"))
    try:
        begin = (int(time.time()) - 3600) * 1000
        for number in range(BODIES):
            (folder / str(number + 1)).write_bytes(_batch(begin + 15_000 * number))
        with _receiver(folder) as direct, serving("gateway", direct) as gateway:
            script = folder / "send.lua"
            script.write_text(SCRIPT % (BODIES, folder, gateway["token"]))
            load.run(gateway["url"], script=script)  # the receiver knows every series from now on
            before = _resident(gateway["pid"])
            ratios = []
            for _ in range(ROUNDS):
                through = load.run(gateway["url"], script=script).requests_per_second
                ratios.append(through / load.run(direct, script=script).requests_per_second)
            load.run(gateway["url"], connections=SENDERS, script=script)
            growth = _resident(gateway["pid"]) - before
        return {"gateway_to_direct": median(ratios), "gateway_memory_growth_mib": growth}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _resident(pid: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)
