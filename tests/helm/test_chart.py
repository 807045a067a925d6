"""The backend's chart: what it renders is valid, hardened and of one piece; wrong values are refused by name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import need
from tests.helm.chart import (
    CHART,
    MINIMAL,
    NEWEST,
    OLDEST,
    PRODUCTION,
    ROOT,
    VERSION,
    Manifest,
    faults,
    helm,
    merged,
    of_kind,
    rendered,
    run,
    workloads,
)

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ingress": {"ingress": {"enabled": True, "className": "nginx", "hosts": ["costs.example.com"],
                            "tls": [{"secretName": "tls", "hosts": ["costs.example.com"]}]}},
    "route": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["costs.example.com"]},
              "diproxy": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}],
                                        "hostnames": ["push.example.com"]}}},
    "monitored": {"serviceMonitor": {"enabled": True, "labels": {"team": "costs"}},
                  "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]}},
    "alerting": {"serviceMonitor": {"enabled": True}, "networkPolicy": {"enabled": False},
                 "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
                 "settings": {"ALERTMANAGER_URL": "http://alertmanager:9093", "STORE_BYTES": "500GiB"},
                 "alertWebhook": {"existingSecret": "hook"}},
    "open network": {"networkPolicy": {"enabled": False}},
    "egress named": {"networkPolicy": {"denyEgress": True, "egressTo": [
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 9000}, {"port": 5672}]}]}},
    "closed network": {"networkPolicy": {"restApiFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
                                         "diproxyFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
                                         "metroculusFrom": [{"podSelector": {"matchLabels": {"app": "bills"}}}]}},
    "mirrored": {"global": {"imageRegistry": "mirror.example.com/costs/", "imagePullSecrets": ["pull", {"name": "other"}], "storageClass": "x"},
                 "metroculus": {"image": {"digest": "sha256:" + "a" * 64}}, "restApi": {"image": {"tag": "1.2.3"}}},
    "placed": {part: {"nodeSelector": {"pool": "costs"}, "tolerations": [{"operator": "Exists"}],
                      "affinity": {"podAntiAffinity": {}}, "podAnnotations": {"a": "b"},
                      "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
                                                     "whenUnsatisfiable": "ScheduleAnyway",
                                                     "labelSelector": {"matchLabels": {"a": "b"}}}]}
               for part in ("metroculus", "worker", "restApi", "diproxy")},
    "extended": {part: {"extraEnv": [{"name": "A", "value": "b"}], "extraVolumes": [{"name": "x", "emptyDir": {}}],
                        "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}]}
                 for part in ("metroculus", "worker", "restApi", "diproxy")} | {
        "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}}]},
    "authorities": {"caBundle": {"existingConfigMap": "ca"}},
    "set": {"settings": {"THANOS_QUERY_URL": "http://thanos:9090", "CACHE_TTL": 60},
            "restApi": {"settings": {"CORS_ORIGINS": "https://costs.example.com"}},
            "diproxy": {"settings": {"THANOS_RECEIVE_URL": "http://receive:19291", "PUSH_MAX_BYTES": 1000000}}},
    "gateway": {"diproxy": {"service": {"type": "LoadBalancer"},
                            "ingress": {"enabled": True, "className": "nginx", "hosts": ["push.example.com"],
                                        "tls": [{"secretName": "tls", "hosts": ["push.example.com"]}]}}},
    "alone": {"restApi": {"enabled": False}, "diproxy": {"enabled": False}},
    "named": {"fullnameOverride": "costs", "serviceAccount": {"create": False, "name": "mine"}},
}  # fmt: skip
BACKENDS: dict[str, dict[str, Any]] = {
    "minimal": MINIMAL,
    "production": PRODUCTION,
    "roles": merged(PRODUCTION, {"worker": {"separateRoles": True}}),
    "scaled": merged(PRODUCTION, {"metroculus": {"autoscaling": {"enabled": True}},
                                  "restApi": {"autoscaling": {"enabled": True, "maxReplicas": 9}},
                                  "diproxy": {"autoscaling": {"enabled": True}}}),
    "claims": merged(MINIMAL, {"store": {"persistence": {"existingClaim": "store"}},
                               "directory": {"persistence": {"existingClaim": "directory"}}}),
}  # fmt: skip
COMBINATIONS = list(product(BACKENDS, FEATURES))


def of_backend(backend: str, feature: dict[str, Any]) -> dict[str, Any]:
    """With the embedded store the worker runs inside Metroculus, and has no values of its own."""
    embedded = backend in ("minimal", "claims")
    return {key: value for key, value in feature.items() if key != "worker" or not embedded}


def test_there_are_enough_combinations() -> None:
    assert len(COMBINATIONS) >= 40


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Manifest]]:
    folder = tmp_path_factory.mktemp("rendered")
    return {
        (backend, feature): rendered(merged(BACKENDS[backend], of_backend(backend, FEATURES[feature])), folder)
        for backend, feature in COMBINATIONS
    }


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_combination_is_valid(every: dict[tuple[str, str], list[Manifest]], version: str, tmp_path: Path) -> None:
    assert faults([one for manifests in every.values() for one in manifests], version, tmp_path) == []


def test_lint_is_content(tmp_path: Path) -> None:
    for name, values in BACKENDS.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        done = subprocess.run(
            [helm(), "lint", "--strict", *VERSION, CHART, "--values", file], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_every_pod_is_hardened(every: dict[tuple[str, str], list[Manifest]]) -> None:
    pods = [one["spec"]["template"]["spec"] for manifests in every.values() for one in workloads(manifests)]
    pods += [one["spec"] for manifests in every.values() for one in of_kind(manifests, "Pod")]
    assert len(pods) > 100
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
            assert security["capabilities"]["drop"] == ["ALL"]
            for name in (
                "CLUSTER_SECRET",
                "ENCRYPTION_KEY",
                "CLICKHOUSE_URL",
                "QUEUE_URL",
                "REDIS_URL",
                "DIRECTORY_URL",
            ):
                for variable in (one for one in container.get("env", ()) if one["name"] == name):
                    assert "valueFrom" in variable or variable["value"].startswith("embedded:"), name


def test_selectors_find_just_their_own_pods(every: dict[tuple[str, str], list[Manifest]]) -> None:
    for manifests in every.values():
        labels = {
            one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"] for one in workloads(manifests)
        }
        for one in workloads(manifests):
            wanted = one["spec"]["selector"]["matchLabels"]
            assert [name for name, has in labels.items() if wanted.items() <= has.items()] == [one["metadata"]["name"]]
        for service in of_kind(manifests, "Service"):
            wanted = service["spec"]["selector"]
            (found,) = [name for name, has in labels.items() if wanted.items() <= has.items()]
            (workload,) = [one for one in workloads(manifests) if one["metadata"]["name"] == found]
            (container,) = workload["spec"]["template"]["spec"]["containers"]
            ports = {one["name"]: one["containerPort"] for one in container["ports"]}
            assert all(one["targetPort"] in ports for one in service["spec"]["ports"])
        for policy in of_kind(manifests, "NetworkPolicy"):
            wanted = policy["spec"]["podSelector"]["matchLabels"]
            chosen = [1 for has in labels.values() if wanted.items() <= has.items()]
            assert len(chosen) == (len(labels) if policy["spec"]["policyTypes"] == ["Egress"] else 1)
        names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
        assert len(names) == len(set(names))


def test_the_network_is_closed_to_all_but_those_who_are_named(tmp_path: Path) -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    ingress = {"ipBlock": {"cidr": "10.0.0.0/8"}}
    named = {"networkPolicy": {"metricsFrom": [monitoring], "restApiFrom": [ingress]}}
    manifests = rendered(merged(PRODUCTION, named), tmp_path)
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(manifests, "NetworkPolicy")}
    assert set(policies) == {one["metadata"]["name"] for one in workloads(manifests)}, "each workload has one"
    assert all(one["policyTypes"] == ["Ingress"] for one in policies.values())
    (rest_api,) = policies["release-metroculus-rest-api"]["ingress"]
    assert ingress in rest_api["from"] and monitoring in rest_api["from"]
    callers, metrics = policies["release-metroculus"]["ingress"]
    assert metrics["from"] == [monitoring] and monitoring not in callers["from"]
    assert policies["release-metroculus-worker"]["ingress"][0]["from"] == [monitoring]
    closed = rendered(PRODUCTION, tmp_path)
    (worker,) = [one for one in of_kind(closed, "NetworkPolicy") if one["metadata"]["name"].endswith("-worker")]
    assert "ingress" not in worker["spec"], "nobody"


def test_the_pods_reach_what_is_named_alone(tmp_path: Path) -> None:
    store = {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 9000}]}
    manifests = rendered(merged(PRODUCTION, {"networkPolicy": {"denyEgress": True, "egressTo": [store]}}), tmp_path)
    (policy,) = [one["spec"] for one in of_kind(manifests, "NetworkPolicy") if one["spec"]["policyTypes"] == ["Egress"]]
    own, dns, named = policy["egress"]
    assert own["to"][0]["podSelector"] == policy["podSelector"] and "ports" not in own
    assert {(one["port"], one["protocol"]) for one in dns["ports"]} == {(53, "UDP"), (53, "TCP")} and named == store


def test_what_is_one_process_is_never_two(every: dict[tuple[str, str], list[Manifest]]) -> None:
    for (backend, feature), manifests in every.items():
        if backend in ("minimal", "claims"):
            (store,) = of_kind(manifests, "StatefulSet") or [None]
            assert store is not None and store["spec"]["replicas"] == 1
            assert store["spec"]["template"]["spec"]["containers"][0]["args"] == ["serve", "--worker"]
            assert not [one for one in workloads(manifests) if "worker" in one["metadata"]["name"]]
            for one in of_kind(manifests, "Deployment"):
                assert one["spec"]["replicas"] == 1
                holds_a_file = one["metadata"]["name"].endswith("-rest-api")
                assert (one["spec"].get("strategy", {}).get("type") == "Recreate") is holds_a_file
        else:
            assert not of_kind(manifests, "StatefulSet") and not of_kind(manifests, "PersistentVolumeClaim"), feature


def test_roles_are_workloads_and_replicas_are_the_scalers(every: dict[tuple[str, str], list[Manifest]]) -> None:
    roles = [one["spec"]["template"]["spec"]["containers"][0]["args"] for one in workloads(every["roles", "plain"])]
    assert ["worker", "--role", "extractor"] in roles and ["worker", "--role", "aggregator"] in roles
    scaled = every["scaled", "plain"]
    targets = {one["spec"]["scaleTargetRef"]["name"] for one in of_kind(scaled, "HorizontalPodAutoscaler")}
    for one in of_kind(scaled, "Deployment"):
        assert ("replicas" in one["spec"]) is (one["metadata"]["name"] not in targets)


def test_images_are_as_they_are_asked_for(every: dict[tuple[str, str], list[Manifest]]) -> None:
    images = {
        one["spec"]["template"]["spec"]["containers"][0]["image"] for one in workloads(every["production", "mirrored"])
    }
    mirror = "mirror.example.com/costs"
    assert images == {
        f"{mirror}/metroculus@sha256:{'a' * 64}",
        f"{mirror}/metroculus-rest-api:1.2.3",
        f"{mirror}/metroculus-diproxy:0.1.0",
    }


def test_the_rules_of_prometheus_fire_on_what_they_are_for(tmp_path: Path) -> None:
    """The rules as they are rendered, by Prometheus' own test of rules."""
    need("promtool", package="prometheus")
    (found,) = of_kind(rendered(merged(MINIMAL, FEATURES["alerting"]), tmp_path), "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(found["spec"]))
    shutil.copy(Path(__file__).parent / "rules_test.yaml", tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_generated_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "-m", "helm.generate", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_of_long_releases_are_short_and_told_apart(tmp_path: Path) -> None:
    long = "team-platform-production-europe-west4-metroculus"
    names = []
    for release in (f"{long}-a", f"{long}-b", "costs"):
        manifests = rendered(
            merged(PRODUCTION, {"worker": {"separateRoles": True}}), tmp_path, "--name-template", release
        )
        names += [one["metadata"]["name"] for one in manifests if one["kind"] == "Service"]
    assert len(set(names)) == len(names) and all(len(name) <= 63 for name in names)
    for release in ("my.costs", "1costs"):
        done = run(MINIMAL, tmp_path, "--name-template", release)
        assert done.returncode != 0 and "fullnameOverride" in done.stderr


def test_values_are_rendered_as_they_are_meant(tmp_path: Path) -> None:
    values = {
        "settings": {"BAD_TOKENS_A_MINUTE": 5000000, "CACHE_TTL": 0.5, "LOG_LEVEL": "warning"},
        "store": {"persistence": {"storageClass": "-", "size": "20G"}},
        "directory": {"persistence": {"storageClass": "fast"}},
        "metroculus": {"image": {"tag": 20240101}},
        "restApi": {"replicas": 0},
    }
    manifests = rendered(merged(MINIMAL, values), tmp_path)
    (store,) = of_kind(manifests, "StatefulSet")
    (container,) = store["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one.get("value") for one in container["env"]}
    assert (told["BAD_TOKENS_A_MINUTE"], told["CACHE_TTL"], told["LOG_LEVEL"]) == ("5000000", "0.5", "warning")
    assert container["image"] == "metroculus:20240101"
    assert store["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == ""
    (claim,) = of_kind(manifests, "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "fast"


def test_an_upgrade_with_the_same_values_changes_nothing(tmp_path: Path) -> None:
    assert rendered(PRODUCTION, tmp_path) == rendered(PRODUCTION, tmp_path), "nothing is made up while rendering"


def test_the_values_of_the_docs_render(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert blocks
    for block in blocks:
        assert workloads(rendered(yaml.safe_load(block), tmp_path))
    options = re.findall(r"helm install .*?--set (\S+)", text)
    assert options
    for option in options:
        (tmp_path / "none.yaml").write_text("")
        assert workloads(rendered({}, tmp_path, "--set", option))


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (MINIMAL, {"worker": {"nodeSelector": {"a": "b"}}}, "worker"),
    (MINIMAL, {"worker": {"extraEnv": [{"name": "A", "value": "b"}]}}, "worker"),
    (MINIMAL, {"serviceMonitor": {"enabled": True}}, "networkPolicy.metricsFrom"),
    (MINIMAL, {"prometheusRule": {"enabled": True}}, "prometheusRule.enabled"),
    (MINIMAL, {"settings": {"ALERT_WEBHOOK_URL": "https://x"}}, "ALERT_WEBHOOK_URL"),
    (MINIMAL, {"metroculus": {"extraEnv": [{"name": "ALERT_WEBHOOK_SECRET", "value": "x"}]}}, "ALERT_WEBHOOK_SECRET"),
    (MINIMAL, {"diproxy": {"settings": {"TENANT_LABEL": "tenant"}}}, "diproxy.settings.TENANT_LABEL"),
    (
        MINIMAL,
        {"metroculus": {"extraEnv": [{"name": "METROCULUS_LISTEN", "value": "0.0.0.0:80"}]}},
        "METROCULUS_LISTEN",
    ),
    (MINIMAL, {"diproxy": {"extraEnv": [{"name": "TLS_CERT", "value": "x"}]}}, "TLS_CERT"),
    (PRODUCTION, {"restApi": {"extraEnv": [{"name": "DIRECTORY_URL", "value": "x"}]}}, "DIRECTORY_URL"),
    (
        MINIMAL,
        {"settings": {"CACHE_TTL": 5}, "metroculus": {"extraEnv": [{"name": "CACHE_TTL", "value": "9"}]}},
        "CACHE_TTL",
    ),
    ({}, {}, "clusterSecret.existingSecret"),
    (MINIMAL, {"clusterSecret": {"existingSecret": "Upper"}}, "existingSecret"),
    (MINIMAL, {"clusterSecret": {"existingSecret": 5}}, "existingSecret"),
    (MINIMAL, {"clusterSecret": {"secret": "x"}}, "secret"),
    (MINIMAL, {"clusterSecret": {"key": "a b"}}, "key"),
    (MINIMAL, {"metroculs": {}}, "metroculs"),
    (MINIMAL, {"metroculus": {"replica": 2}}, "replica"),
    (MINIMAL, {"metroculus": {"replicas": 2}}, "metroculus.replicas"),
    (MINIMAL, {"metroculus": {"replicas": -1}}, "replicas"),
    (MINIMAL, {"metroculus": {"podAnnotations": {"prometheus.io/scrape": True}}}, "prometheus.io"),
    (MINIMAL, {"metroculus": {"nodeSelector": {"spot": True}}}, "spot"),
    (MINIMAL, {"metroculus": {"autoscaling": None}}, "autoscaling"),
    (MINIMAL, {"restApi": None}, "restApi"),
    (MINIMAL, {"store": {"persistence": {"size": None}}}, "size"),
    (MINIMAL, {"clusterSecret": {"key": None}}, "key"),
    (MINIMAL, {"fullnameOverride": "my.costs"}, "fullnameOverride"),
    (MINIMAL, {"nameOverride": "9costs"}, "nameOverride"),
    (MINIMAL, {"store": {"persistence": {"storageClass": "Fast SSD"}}}, "storageClass"),
    (MINIMAL, {"serviceAccount": {"name": "My SA"}}, "name"),
    (MINIMAL, {"metroculus": {"image": {"tag": "a b:c"}}}, "tag"),
    (MINIMAL, {"metroculus": {"image": {"repository": "reg:5000/x:1"}}}, "repository"),
    (MINIMAL, {"ingress": {"enabled": True, "hosts": ["https://a.b/x"]}}, "hosts"),
    (PRODUCTION, {"restApi": {"autoscaling": {"enabled": True, "minReplicas": 9}}}, "restApi.autoscaling.minReplicas"),
    (PRODUCTION, {"registry": {"etcdUrl": "etcd://root:1s3cret@etcd:2379"}}, "etcdUrl"),
    (MINIMAL, {"settings": {"THANOS_QUERY_URL": "http://user:s3cret@thanos"}}, "settings.THANOS_QUERY_URL"),
    (MINIMAL, {"settings": {"TLS_CERT": "/x"}}, "TLS_CERT"),
    (MINIMAL, {"metroculus": {"extraEnv": [{"name": "CLUSTER_SECRET", "value": "x"}]}}, "metroculus.extraEnv"),
    (MINIMAL, {"restApi": {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}}, "restApi.extraVolumes"),
    (MINIMAL, {"metroculus": {"replicas": "2"}}, "replicas"),
    (MINIMAL, {"metroculus": {"autoscaling": {"enabled": True}}}, "metroculus.autoscaling.enabled"),
    (MINIMAL, {"metroculus": {"autoscaling": {"targetCPU": 0}}}, "targetCPU"),
    (MINIMAL, {"metroculus": {"autoscaling": {"enabled": "yes"}}}, "enabled"),
    (MINIMAL, {"metroculus": {"image": {"pullPolicy": "Sometimes"}}}, "pullPolicy"),
    (MINIMAL, {"metroculus": {"image": {"digest": "sha256:abc"}}}, "digest"),
    (MINIMAL, {"metroculus": {"image": {"repository": ""}}}, "repository"),
    (MINIMAL, {"metroculus": {"image": "metroculus:1"}}, "image"),
    (MINIMAL, {"metroculus": {"resources": {"request": {}}}}, "request"),
    (MINIMAL, {"metroculus": {"extraEnv": {"A": "b"}}}, "extraEnv"),
    (MINIMAL, {"worker": {"replicas": 2}}, "worker.replicas"),
    (MINIMAL, {"worker": {"separateRoles": True}}, "worker.separateRoles"),
    (MINIMAL, {"store": {"kind": "postgres"}}, "kind"),
    (MINIMAL, {"store": {"persistence": {"size": "20"}}}, "size"),
    (MINIMAL, {"store": {"kind": "clickhouse"}}, "store.clickhouse.existingSecret"),
    (PRODUCTION, {"registry": {"kind": "sqlite"}}, "registry.kind"),
    (PRODUCTION, {"registry": {"etcdUrl": ""}}, "registry.etcdUrl"),
    (PRODUCTION, {"registry": {"etcdUrl": "http://etcd:2379"}}, "etcdUrl"),
    (PRODUCTION, {"encryptionKey": {"existingSecret": ""}}, "encryptionKey.existingSecret"),
    (PRODUCTION, {"queue": {"existingSecret": ""}}, "queue.existingSecret"),
    (PRODUCTION, {"queue": {"url": "amqp://user:password@host"}}, "url"),
    (MINIMAL, {"queue": {"existingSecret": "rabbitmq"}}, "queue.existingSecret"),
    (PRODUCTION, {"directory": {"kind": "mysql"}}, "kind"),
    (PRODUCTION, {"directory": {"mongodb": {"existingSecret": ""}}}, "directory.mongodb.existingSecret"),
    (MINIMAL, {"restApi": {"replicas": 2}}, "restApi.replicas"),
    (MINIMAL, {"restApi": {"autoscaling": {"enabled": True}}}, "restApi.replicas"),
    (MINIMAL, {"settings": {"THANOS_URL": "http://thanos"}}, "THANOS_URL"),
    (MINIMAL, {"settings": {"CLUSTER_SECRET": "in the clear"}}, "CLUSTER_SECRET"),
    (MINIMAL, {"settings": {"CACHE_TTL": [60]}}, "CACHE_TTL"),
    (MINIMAL, {"restApi": {"settings": {"THANOS_QUERY_URL": "http://thanos"}}}, "THANOS_QUERY_URL"),
    (MINIMAL, {"ingress": {"enabled": True}}, "ingress.hosts"),
    (MINIMAL, {"ingress": {"hosts": "costs.example.com"}}, "hosts"),
    (MINIMAL, {"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    (MINIMAL, {"diproxy": {"httpRoute": {"enabled": True}}}, "diproxy.httpRoute.parentRefs"),
    (
        MINIMAL,
        {"diproxy": {"enabled": False, "httpRoute": {"enabled": True, "parentRefs": [{"name": "a"}]}}},
        "diproxy.enabled",
    ),
    (MINIMAL, {"ingress": {"enabled": True, "hosts": ["a.b"]}, "restApi": {"enabled": False}}, "restApi.enabled"),
    (MINIMAL, {"service": {"type": "External"}}, "type"),
    (MINIMAL, {"serviceMonitor": {"interval": "half a minute"}}, "interval"),
    (MINIMAL, {"global": {"imagePullSecrets": [5]}}, "imagePullSecrets"),
    (MINIMAL, {"networkPolicy": {"restApiFrom": "10.0.0.0/8"}}, "restApiFrom"),
    (MINIMAL, {"networkPolicy": {"egressTo": "10.0.0.0/8"}}, "egressTo"),
    (MINIMAL, {"networkPolicy": {"denyEgress": True}}, "networkPolicy.egressTo"),
    (MINIMAL, {"extraObjects": {"a": 1}}, "extraObjects"),
    (MINIMAL, {"diproxy": {"settings": {"CACHE_TTL": 5}}}, "CACHE_TTL"),
    (MINIMAL, {"diproxy": {"settings": {"THANOS_RECEIVE_URL": "http://u:pw@receive"}}}, "diproxy.settings"),
    (MINIMAL, {"diproxy": {"ingress": {"enabled": True}}}, "diproxy.ingress.hosts"),
    (MINIMAL, {"diproxy": {"enabled": False, "ingress": {"enabled": True, "hosts": ["a.b"]}}}, "diproxy.enabled"),
    (MINIMAL, {"diproxy": {"service": {"type": "External"}}}, "type"),
    (MINIMAL, {"diproxy": {"autoscaling": {"minReplicas": 9}}}, "diproxy.autoscaling.minReplicas"),
]


def test_routes_lead_to_each_service(tmp_path: Path) -> None:
    routes = of_kind(rendered(merged(MINIMAL, FEATURES["route"]), tmp_path), "HTTPRoute")
    led = {one["spec"]["hostnames"][0]: one["spec"]["rules"][0]["backendRefs"][0]["port"] for one in routes}
    assert led == {"costs.example.com": 8999, "push.example.com": 8935}


def test_the_tenant_label_is_the_same_on_both_sides(tmp_path: Path) -> None:
    found = rendered(merged(MINIMAL, {"settings": {"TENANT_LABEL": "tenant"}}), tmp_path)
    told = [
        variable["value"]
        for one in workloads(found)
        for variable in one["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"] == "TENANT_LABEL"
    ]
    assert told == ["tenant", "tenant"]


@pytest.mark.parametrize("name", ["20261129", "no", "null"])
def test_a_name_that_looks_like_something_else_is_a_text(tmp_path: Path, name: str) -> None:
    values = {
        "clusterSecret": {"existingSecret": name},
        "fullnameOverride": "costs",
        "caBundle": {"existingConfigMap": name},
    }
    found = rendered(merged(MINIMAL, values), tmp_path, "--name-template", "no")
    for one in workloads(found):
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "no"
        texts = [
            variable["valueFrom"]["secretKeyRef"]["name"]
            for variable in one["spec"]["template"]["spec"]["containers"][0]["env"]
            if variable["name"] == "CLUSTER_SECRET"
        ]
        assert texts == [name]


def test_there_are_enough_refusals() -> None:
    assert len(REFUSED) >= 40


@pytest.mark.parametrize(("base", "wrong", "named"), REFUSED, ids=[f"{n}-{one[2]}" for n, one in enumerate(REFUSED)])
def test_a_wrong_value_is_refused_by_name(
    tmp_path: Path, base: dict[str, Any], wrong: dict[str, Any], named: str
) -> None:
    done = run(merged(base, wrong), tmp_path)
    assert done.returncode != 0 and named in done.stderr, done.stderr[-500:]
