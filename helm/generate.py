"""Writes each chart's ``values.schema.json`` and the table of values of its README, from ``values.yaml``.

``python -m helm.generate`` writes them, ``--check`` says whether they are up to date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from diproxy.diproxy_server.config import SETTINGS as GATEWAY_SETTINGS
from metroculus.config import SETTINGS as METROCULUS_SETTINGS
from rest_api.rest_api_server.config import SETTINGS as REST_SETTINGS

HERE = Path(__file__).parent
NAME = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$"
"""Of an object, or nothing."""
SERVICE_NAME = r"^([a-z]([a-z0-9-]{0,38}[a-z0-9])?)?$"
"""Of what is part of a Service's name, or nothing."""
HOST = r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
SIZE = r"^[0-9]+(\.[0-9]+)?(K|M|G|T|Ki|Mi|Gi|Ti)$"
BY_THE_CHART = {
    "CLUSTER_SECRET", "METROCULUS_LISTEN", "WORKER_LISTEN", "REST_API_LISTEN", "DIPROXY_LISTEN",
    "CLICKHOUSE_URL", "REGISTRY_URL",
    "ENCRYPTION_KEY", "QUEUE_URL", "REDIS_URL", "DIRECTORY_URL", "METROCULUS_URL", "DATA_DIR", "WORKER_ROLE",
    "ALERT_WEBHOOK_URL", "ALERT_WEBHOOK_SECRET",
    "WORKER_LOCKS", "AUDIT_LOG", "LOG_FORMAT", "TLS_CERT", "TLS_KEY",
}  # fmt: skip
"""Settings that have a value of the chart's own; TLS ends at the Ingress, and probes speak HTTP."""

FREE = {"type": "object"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
LIST_OF_OBJECTS = {"type": "array", "items": {"type": "object"}}
COUNT = {"type": "integer", "minimum": 1, "maximum": 1000}
RULES: dict[str, dict[str, Any]] = {
    r"\.(podAnnotations|annotations|nodeSelector|labels)$": TEXTS,
    r"\.affinity$": FREE,
    r"^\.kubecost$": {"type": "object", "required": ["enabled"], "properties": {"enabled": {"type": "boolean"}}},
    r"^\.gateway\.url$": {"type": "string", "pattern": r"^(https?://[A-Za-z0-9_.:\[\]-]+(/[A-Za-z0-9_./-]*)?)?$"},
    r"^\.agent\.(opencost|kubecost)Url$": {"type": "string", "pattern": r"^(https?://[^ @?#]+)?$"},
    r"^\.gateway\.account$": {"type": "string", "pattern": f"^({UUID})?$"},
    r"^\.agent\.currency$": {"type": "string", "pattern": "^([A-Z]{3})?$"},
    r"Seconds$": {"type": "integer", "minimum": 1, "maximum": 3600},
    r"\.(tolerations|topologySpreadConstraints|extraEnv|extraVolumes|extraVolumeMounts|parentRefs|tls|extraObjects)$": (
        LIST_OF_OBJECTS
    ),
    r"\.networkPolicy\.(\w+From|egressTo)$": LIST_OF_OBJECTS,
    r"\.(hosts|hostnames)$": {"type": "array", "items": {"type": "string", "pattern": HOST}},
    r"\.imagePullSecrets$": {
        "type": "array",
        "items": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "object", "required": ["name"]}]},
    },
    r"\.resources$": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": FREE, "limits": FREE, "claims": {"type": "array"}},
    },
    r"^\.settings$": {"settings": METROCULUS_SETTINGS},
    r"^\.restApi\.settings$": {"settings": REST_SETTINGS},
    r"^\.diproxy\.settings$": {"settings": GATEWAY_SETTINGS},
    r"\.replicas$": COUNT | {"minimum": 0},
    r"\.(minReplicas|maxReplicas)$": COUNT,
    r"\.tag$": {"type": ["string", "integer"], "pattern": r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"},
    r"\.storageClass$": {"type": "string", "pattern": r"^(-|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$"},
    r"\.serviceAccount\.name$": {"type": "string", "pattern": NAME},
    r"\.(fullnameOverride|nameOverride)$": {"type": "string", "pattern": SERVICE_NAME},
    r"\.targetCPU$": {"type": "integer", "minimum": 1, "maximum": 100},
    r"\.pullPolicy$": {"enum": ["Always", "IfNotPresent", "Never"]},
    r"\.digest$": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    r"\.repository$": {"type": "string", "pattern": r"^([a-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*$"},
    r"^\.store\.kind$": {"enum": ["embedded", "clickhouse"]},
    r"^\.registry\.kind$": {"enum": ["sqlite", "etcd"]},
    r"^\.registry\.etcdUrl$": {"type": "string", "pattern": r"^(etcd://[A-Za-z0-9_.:\[\]-]+:[0-9]+)?$"},
    r"^\.directory\.kind$": {"enum": ["sqlite", "mongodb"]},
    r"\.service\.type$": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    r"\.size$": {"type": "string", "pattern": SIZE},
    r"\.interval$": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
    r"\.(existingSecret|existingClaim|existingConfigMap)$": {
        "type": "string",
        "pattern": NAME,
    },
    r"\.key$": {"type": "string", "pattern": r"^[A-Za-z0-9._-]{1,253}$"},
}


def schema_of(value: Any, path: str = "") -> dict[str, Any]:
    """What a value of the chart may be: by the rules, else as its default is."""
    rule = next((rule for pattern, rule in RULES.items() if re.search(pattern, path)), None)
    if rule is not None and "settings" in rule:
        names = sorted(one.name for one in rule["settings"] if one.name not in BY_THE_CHART)
        scalar = {"type": ["string", "number", "boolean"]}
        return {"type": "object", "propertyNames": {"enum": names}, "additionalProperties": scalar}
    if rule is not None:
        return rule
    if isinstance(value, Mapping):
        properties = {name: schema_of(one, f"{path}.{name}") for name, one in value.items()}
        # Each has a default, so that only a null takes one away; others' ``global`` values are none of ours.
        closed = {"additionalProperties": False} if path != ".global" else {}
        return {"type": "object", "required": list(value), "properties": properties} | closed
    kinds = {bool: "boolean", int: "integer", str: "string"}
    return {"type": kinds[type(value)]}


def documented(text: str) -> Iterator[tuple[str, str]]:
    """``(path, description)`` of each value with a ``# --`` comment above it, in order."""
    path: list[tuple[int, str]] = []
    about = ""
    for line in text.splitlines():
        comment = re.match(r"\s*# -- (.*)", line)
        key = re.match(r"( *)([A-Za-z]\w*):", line)
        if comment:
            about = comment[1]
        elif key:
            path = [*(part for part in path if part[0] < len(key[1])), (len(key[1]), key[2])]
            if about:
                yield ".".join(name for _, name in path), about
            about = ""


def value_at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for name in path.split("."):
        found = found[name]
    return found


def readme_of(chart: Path) -> str:
    """The chart's README with its table of values made anew."""
    text = (chart / "values.yaml").read_text()
    values = yaml.safe_load(text)
    rows = [f"| `{path}` | {about} | `{json.dumps(value_at(values, path))}` |" for path, about in documented(text)]
    table = "\n".join(["| value | what it is | default |", "|---|---|---|", *rows])
    before, _, rest = (chart / "README.md").read_text().partition("<!-- values -->")
    after = rest.partition("<!-- end of values -->")[2]
    return f"{before}<!-- values -->\n{table}\n<!-- end of values -->{after}"


def made(chart: Path) -> dict[Path, str]:
    values = yaml.safe_load((chart / "values.yaml").read_text())
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"{chart.name} values"} | schema_of(values)
    return {
        chart / "values.schema.json": json.dumps(schema, indent=2) + "\n",
        chart / "README.md": readme_of(chart),
    }


def main() -> None:
    stale = []
    for chart in sorted(one.parent for one in HERE.glob("*/Chart.yaml")):
        for file, text in made(chart).items():
            if not file.exists() or file.read_text() != text:
                stale.append(file)
                if "--check" not in sys.argv:
                    file.write_text(text)
    if stale and "--check" in sys.argv:
        sys.exit("python -m helm.generate: " + ", ".join(str(file.relative_to(HERE)) for file in stale))


if __name__ == "__main__":
    main()
