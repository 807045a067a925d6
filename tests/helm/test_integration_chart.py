"""The tenant's chart: rendered, held against Kubernetes' schemas, and what it refuses."""

from __future__ import annotations

import json
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import (
    INTEGRATION,
    NEWEST,
    OLDEST,
    VERSION,
    Manifest,
    faults,
    helm,
    integration,
    merged,
    of_kind,
    rendered,
    run,
    workloads,
)
from tests.support import ACCOUNT

GATEWAY = {"url": "https://push.example.com", "account": ACCOUNT, "token": {"existingSecret": "metroculus-push"}}
OPENCOST: dict[str, Any] = {"gateway": GATEWAY, "agent": {"opencostUrl": "http://opencost.opencost:9003"}}
KUBECOST: dict[str, Any] = {"gateway": GATEWAY, "agent": {"kubecostUrl": "http://kubecost.kubecost:9090"}}
OURS: dict[str, Any] = {
    "gateway": GATEWAY,
    "kubecost": {"enabled": True, "prometheus": {"server": {"global": {"external_labels": {"cluster_id": "prod"}}}}},
}
KINDS = {"opencost": OPENCOST, "kubecost": KUBECOST, "installed": OURS,
         "kubecost alone": merged(OURS, {"agent": {"enabled": False}})}  # fmt: skip
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "authority": {"caBundle": {"existingConfigMap": "ca"}},
    "mirrored": {"global": {"imageRegistry": "mirror.example.com", "imagePullSecrets": ["pull"]},
                 "agent": {"image": {"digest": "sha256:" + "a" * 64}}},
    "monitored": {"podMonitor": {"enabled": True, "labels": {"team": "costs"}},
                  "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]}},
    "open network": {"networkPolicy": {"enabled": False}},
    "egress named": {"networkPolicy": {"denyEgress": True, "egressTo": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}]}},
    "placed": {"agent": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}],
                         "affinity": {"podAntiAffinity": {}}, "podAnnotations": {"a": "b"}}},
    "extended": {"agent": {"extraEnv": [{"name": "HTTPS_PROXY", "value": "x"}],
                           "extraVolumes": [{"name": "x", "emptyDir": {}}],
                           "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}]},
                 "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-x"}}]},
    "slow": {"agent": {"pollSeconds": 300, "timeoutSeconds": 600}},
    "named": {"fullnameOverride": "costs", "serviceAccount": {"create": False, "name": "mine"}},
    "tagged": {"agent": {"image": {"tag": 20240101}}},
}  # fmt: skip
COMBINATIONS = list(product(KINDS, FEATURES))


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return integration(tmp_path_factory.mktemp("charts"))


@pytest.fixture(scope="module")
def every(chart: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Manifest]]:
    folder = tmp_path_factory.mktemp("rendered")
    return {
        (kind, feature): rendered(merged(KINDS[kind], FEATURES[feature]), folder, chart=chart)
        for kind, feature in COMBINATIONS
    }


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_combination_is_valid(every: dict[tuple[str, str], list[Manifest]], version: str, tmp_path: Path) -> None:
    assert len(every) >= 40
    assert faults([one for manifests in every.values() for one in manifests], version, tmp_path) == []


def test_lint_is_content(chart: Path, tmp_path: Path) -> None:
    for values in KINDS.values():
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        done = subprocess.run(
            [helm(), "lint", "--strict", *VERSION, chart, "--values", tmp_path / "values.yaml"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_every_pod_is_hardened_and_its_token_is_a_file(every: dict[tuple[str, str], list[Manifest]]) -> None:
    pods = [one["spec"]["template"]["spec"] for manifests in every.values() for one in workloads(manifests)]
    pods += [one["spec"] for manifests in every.values() for one in of_kind(manifests, "Pod")]
    assert len(pods) == 66
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not [one for one in container["env"] if "valueFrom" in one], "so that a new token needs no restart"
        assert any("secret" in one for one in pod["volumes"])


def test_the_agent_reaches_what_is_named_alone(every: dict[tuple[str, str], list[Manifest]]) -> None:
    (policy,) = [one["spec"] for one in of_kind(every["opencost", "egress named"], "NetworkPolicy")]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    dns, named = policy["egress"]
    assert {(one["port"], one["protocol"]) for one in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert named == FEATURES["egress named"]["networkPolicy"]["egressTo"][0]


def test_without_the_agent_there_is_kubecost_alone(every: dict[tuple[str, str], list[Manifest]]) -> None:
    assert not workloads(every["kubecost alone", "plain"])
    assert of_kind(every["kubecost alone", "plain"], "ConfigMap")
    assert not [one for one in of_kind(every["opencost", "plain"], "ConfigMap")], "the dependency is off by default"


def test_kubecost_is_given_our_values(chart: Path, tmp_path: Path) -> None:
    """The file of values for Kubecost, with its capitals replaced, arrives below the dependency as it is."""
    text = (INTEGRATION / "kubecost-values.yaml").read_text()
    for word, ours in (("NAME-OF-THE-CLUSTER", "prod"), ("GATEWAY", "push.example.com"), ("ACCOUNT", ACCOUNT),
                       ("TOKEN-SECRET", "metroculus-push")):  # fmt: skip
        text = text.replace(word, ours)
    told = yaml.safe_load(text)
    manifests = rendered({"gateway": GATEWAY, "kubecost": {"enabled": True} | told}, tmp_path, chart=chart)
    (given,) = of_kind(manifests, "ConfigMap")
    values = json.loads(given["data"]["values"])
    server = values["prometheus"]["server"]
    assert server["global"]["external_labels"] == {"cluster_id": "prod"}
    assert json.loads(given["data"]["globals"])["grafana"] == {"enabled": False}
    (write,) = server["remoteWrite"]
    assert write["url"] == "https://push.example.com/storage/api/v2/write"
    assert write["queue_config"]["retry_on_http_429"] is True and write["headers"] == {"Cloud-Account-Id": ACCOUNT}
    (agent,) = workloads(manifests)
    environment = {one["name"]: one["value"] for one in agent["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["METROCULUS_AGENT_KUBECOST"] == "http://release-kubecost:9090"


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (OPENCOST, {"podMonitor": {"enabled": True}}, "networkPolicy.metricsFrom"),
    (OURS, {"kubecost": {"fullnameOverride": "release-kubecost-integration"}}, "fullnameOverride"),
    (OPENCOST, {"agent": {"currency": "euro"}}, "currency"),
    ({}, {}, "gateway.url"),
    (OPENCOST, {"gateway": {"url": ""}}, "gateway.url"),
    (OPENCOST, {"gateway": {"url": "push.example.com"}}, "url"),
    (OPENCOST, {"gateway": {"url": "https://user:pw@push.example.com"}}, "url"),
    (OPENCOST, {"gateway": {"account": ""}}, "gateway.account"),
    (OPENCOST, {"gateway": {"account": "prod"}}, "account"),
    (OPENCOST, {"gateway": {"account": ACCOUNT.upper()}}, "account"),
    (OPENCOST, {"gateway": {"token": {"existingSecret": ""}}}, "gateway.token.existingSecret"),
    (OPENCOST, {"gateway": {"token": {"value": "mpt_x"}}}, "value"),
    (OPENCOST, {"gateway": {"token": {"key": "a b"}}}, "key"),
    (OPENCOST, {"gateway": None}, "gateway"),
    (OPENCOST, {"agent": {"kubecostUrl": "http://kubecost:9090"}}, "agent.opencostUrl"),
    (OPENCOST, {"agent": {"opencostUrl": ""}}, "agent.opencostUrl"),
    (OPENCOST, {"agent": {"opencostUrl": "opencost:9003"}}, "opencostUrl"),
    (OPENCOST, {"agent": {"enabled": False}}, "agent.enabled"),
    (OPENCOST, {"agent": {"enabled": "yes"}}, "enabled"),
    (OPENCOST, {"agent": {"replicas": 2}}, "replicas"),
    (OPENCOST, {"agent": {"pollSeconds": 0}}, "pollSeconds"),
    (OPENCOST, {"agent": {"pollSeconds": "60s"}}, "pollSeconds"),
    (OPENCOST, {"agent": {"timeoutSeconds": 99999}}, "timeoutSeconds"),
    (OPENCOST, {"agent": {"image": {"digest": "abc"}}}, "digest"),
    (OPENCOST, {"agent": {"image": {"tag": "a b"}}}, "tag"),
    (OPENCOST, {"agent": {"image": {"repository": ""}}}, "repository"),
    (OPENCOST, {"agent": {"image": {"pullPolicy": "Sometimes"}}}, "pullPolicy"),
    (OPENCOST, {"agent": {"image": "agent:1"}}, "image"),
    (OPENCOST, {"agent": {"extraEnv": [{"name": "METROCULUS_AGENT_TO", "value": "x"}]}}, "agent.extraEnv"),
    (OPENCOST, {"agent": {"extraEnv": {"A": "b"}}}, "extraEnv"),
    (OPENCOST, {"agent": {"extraVolumes": [{"name": "token", "emptyDir": {}}]}}, "agent.extraVolumes"),
    (OPENCOST, {"agent": {"resources": {"request": {}}}}, "request"),
    (OPENCOST, {"agent": {"podAnnotations": {"a": True}}}, "podAnnotations"),
    (OPENCOST, {"agent": {"nodeSelector": {"spot": True}}}, "nodeSelector"),
    (OPENCOST, {"agent": {"tolerations": {}}}, "tolerations"),
    (OPENCOST, {"caBundle": {"existingConfigMap": "Upper"}}, "existingConfigMap"),
    (OPENCOST, {"caBundle": {"key": ""}}, "key"),
    (OPENCOST, {"networkPolicy": {"metricsFrom": "10.0.0.0/8"}}, "metricsFrom"),
    (OPENCOST, {"networkPolicy": {"enabled": "on"}}, "enabled"),
    (OPENCOST, {"networkPolicy": {"egressTo": "10.0.0.0/8"}}, "egressTo"),
    (OPENCOST, {"networkPolicy": {"denyEgress": True}}, "networkPolicy.egressTo"),
    (OPENCOST, {"podMonitor": {"interval": "often"}}, "interval"),
    (OPENCOST, {"serviceAccount": {"name": "My SA"}}, "name"),
    (OPENCOST, {"fullnameOverride": "my.agent"}, "fullnameOverride"),
    (OPENCOST, {"global": {"imagePullSecrets": [5]}}, "imagePullSecrets"),
    (OPENCOST, {"clusterName": "prod"}, "clusterName"),
    (OPENCOST, {"extraObjects": {"a": 1}}, "extraObjects"),
    (OURS, {"kubecost": {"prometheus": {"server": {"global": {"external_labels": {"cluster_id": "cluster-one"}}}}}},
     "external_labels.cluster_id"),
    (OURS, {"kubecost": {"prometheus": None}}, "external_labels.cluster_id"),
    (OURS, {"kubecost": {"prometheus": {"server": {"remoteWrite": [{"url": "https://GATEWAY/x"}]}}}}, "remoteWrite"),
    (OURS, {"kubecost": {"enabled": "yes"}}, "enabled"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "wrong", "named"), REFUSED, ids=[f"{n}-{one[2]}" for n, one in enumerate(REFUSED)])
def test_a_wrong_value_is_refused_by_name(
    chart: Path, tmp_path: Path, base: dict[str, Any], wrong: dict[str, Any], named: str
) -> None:
    done = run(merged(base, wrong), tmp_path, chart=chart)
    assert done.returncode != 0 and named in done.stderr, done.stderr[-500:]


@pytest.mark.parametrize(
    ("release", "values", "url"),
    [
        ("costs", {}, "http://costs-kubecost:9090"),
        ("kubecost", {}, "http://kubecost:9090"),
        ("my-kubecost", {}, "http://my-kubecost:9090"),
        ("costs", {"nameOverride": "cost"}, "http://costs:9090"),
        ("rel", {"nameOverride": "cost"}, "http://rel-cost:9090"),
        ("rel", {"fullnameOverride": "own"}, "http://own:9090"),
        ("rel", {"service": {"port": 80}}, "http://rel-kubecost:80"),
    ],
)
def test_the_agent_asks_the_kubecost_that_is_installed(
    chart: Path, tmp_path: Path, release: str, values: dict[str, Any], url: str
) -> None:
    found = rendered(merged(OURS, {"kubecost": values}), tmp_path, "--name-template", release, chart=chart)
    (agent,) = workloads(found)
    told = {one["name"]: one.get("value") for one in agent["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert told["METROCULUS_AGENT_KUBECOST"] == url
