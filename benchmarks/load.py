"""Load by ``wrk`` on a core of its own, so that the load generator is never the bottleneck."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 16
SECONDS = 2


class LoadError(Exception):
    """The load could not be made, or what was asked did not answer as it should."""


@dataclass(frozen=True)
class Load:
    """What one run of ``wrk`` saw."""

    requests_per_second: float
    p99_ms: float


def run(
    url: str, headers: Mapping[str, str] | None = None, connections: int = CONNECTIONS, script: Path | None = None
) -> Load:
    """Ask one URL for some seconds.

    Args:
        script: Lua that says what is sent, where that is no GET.

    Raises:
        LoadError: ``wrk`` is not installed, or an answer was neither 2xx nor 304.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LoadError("wrk is not installed: apt-get install wrk")
    command = [wrk, "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency"]
    for name, value in (headers or {}).items():
        command += ["-H", f"{name}: {value}"]
    command += ["-s", str(script)] if script is not None else []
    pinned = ["taskset", "-c", str(load_core())] if shutil.which("taskset") else []
    done = subprocess.run([*pinned, *command, url], capture_output=True, text=True, check=True)
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise LoadError(f"{url}:\n{done.stdout}")
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    p99 = re.search(r"99%\s+([0-9.]+)(us|ms|s)\b", done.stdout)
    if rate is None or p99 is None:
        raise LoadError(f"wrk said:\n{done.stdout}")
    milliseconds = float(p99[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[p99[2]]
    return Load(float(rate[1]), milliseconds)


def server_core() -> int:
    return min(os.sched_getaffinity(0))


def load_core() -> int:
    """The last core that this process may use: another one than the servers', where there are two."""
    return max(os.sched_getaffinity(0))
