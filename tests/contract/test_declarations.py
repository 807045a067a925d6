"""Every route says what it needs; OpenAPI, docs and settings follow from the same declarations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tornado.web import RequestHandler

from diproxy.diproxy_server import errors as gateway_errors
from diproxy.diproxy_server.config import SETTINGS as GATEWAY_SETTINGS
from diproxy.diproxy_server.config import GatewayConfig
from diproxy.diproxy_server.handlers import GatewayHandler
from diproxy.diproxy_server.handlers import Needs as GatewayNeeds
from diproxy.diproxy_server.server import make_app as make_gateway
from metroculus import codes as metroculus_errors
from metroculus.config import SETTINGS as METROCULUS_SETTINGS
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from metroculus.metroculus_api.urls import routes as metroculus_routes
from rest_api.rest_api_server import errors as rest_errors
from rest_api.rest_api_server.auth import Needs as RestNeeds
from rest_api.rest_api_server.auth import RestHandler
from rest_api.rest_api_server.config import SETTINGS as REST_SETTINGS
from rest_api.rest_api_server.urls import routes as rest_routes
from tools.settings import SettingsError, load
from tools.tornado_service.application import METHODS, OpenHandler
from tools.tornado_service.errors import ErrorCode
from tools.tornado_service.openapi import document

DOCS = Path(__file__).parent.parent.parent / "docs"


class Anything(dict):
    def __missing__(self, key):
        return None


METROCULUS = metroculus_routes({}, Anything())
REST = rest_routes({}, Anything())
GATEWAY = [
    (rule.matcher.regex.pattern.rstrip("$"), rule.target)
    for rule in make_gateway(GatewayConfig()).application.wildcard_router.rules
]
GATEWAY = [(pattern, handler) for pattern, handler in GATEWAY if issubclass(handler, GatewayHandler)]
OPEN = {"KubecentHealth", "SignIn", "Static"}


@pytest.mark.parametrize(("pattern", "handler"), [(r[0], r[1]) for r in [*METROCULUS, *REST, *GATEWAY]])
def test_every_method_of_every_route_declares_what_it_needs(pattern, handler):
    own = [
        getattr(handler, m.lower())
        for m in METHODS
        if getattr(handler, m.lower()) is not getattr(RequestHandler, m.lower())
    ]
    assert own and all(hasattr(method, "operation") for method in own), handler
    declared = [method.operation for method in own]
    for one in declared:
        if handler.__name__ in OPEN:
            assert issubclass(handler, OpenHandler)
        elif issubclass(handler, MetroculusHandler):
            assert one.needs is Needs.CLUSTER_SECRET
        elif issubclass(handler, GatewayHandler):
            assert one.needs is GatewayNeeds.PUSH_TOKEN
        else:
            assert issubclass(handler, RestHandler) and isinstance(one.needs, RestNeeds)


@pytest.mark.parametrize("routes", [METROCULUS, REST, GATEWAY])
def test_openapi_lists_every_route_with_its_parameters(routes):
    found = document("x", "1", routes)
    assert len(found["paths"]) == len(routes)
    for path, operations in found["paths"].items():
        in_path = set(re.findall(r"{(\w+)}", path))
        for operation in operations.values():
            declared = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert declared == in_path
            assert operation["summary"] and {"200", "201", "202"} & set(operation["responses"])


def codes(module):
    return [value for value in vars(module).values() if isinstance(value, ErrorCode)]


def test_error_codes_are_told_apart_and_stand_in_the_docs():
    text = (DOCS / "errors.md").read_text()
    for module in (metroculus_errors, rest_errors, gateway_errors):
        listed = codes(module)
        assert len({one.code for one in listed}) == len(listed)
        for one in listed:
            assert f"| {one.code} | {one.status} |" in text, one.code


def test_every_setting_stands_in_the_docs():
    text = (DOCS / "settings.md").read_text()
    for setting in {*METROCULUS_SETTINGS, *REST_SETTINGS, *GATEWAY_SETTINGS}:
        assert f"`{setting.name}`" in text, setting.name


def test_every_route_stands_in_the_docs():
    text = (DOCS / "api.md").read_text()
    for pattern, *_ in [*METROCULUS, *REST, *GATEWAY]:
        path = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", pattern)
        assert f"`{path}`" in text, path


def test_a_setting_comes_from_flag_then_environment_then_file_then_etcd(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("kubecost_timeout: 3\n")
    etcd = {"/secret/cluster": "from-etcd"}.get

    def timeout(flags=None, environment=None, config=None):
        return load(METROCULUS_SETTINGS, flags or {}, environment or {}, config, etcd)["kubecost_timeout"]

    assert timeout() == 30.0 and timeout(config=str(file)) == 3.0
    assert timeout(environment={"KUBECOST_TIMEOUT": "4"}, config=str(file)) == 4.0
    assert timeout({"kubecost_timeout": "5"}, {"KUBECOST_TIMEOUT": "4"}, str(file)) == 5.0
    assert load(METROCULUS_SETTINGS, {}, {}, None, etcd)["cluster_secret"] == "from-etcd"


@pytest.mark.parametrize(
    ("name", "text"),
    [("KUBECOST_TIMEOUT", "soon"), ("KUBECOST_TIMEOUT", "0"), ("KUBECOST_TIMEOUT", "nan"), ("METROCULUS_LISTEN", "8969"),
     ("METROCULUS_LISTEN", "x:99999"), ("THANOS_QUERY_URL", "thanos:10902"), ("KUBECOST_ACCOUNT_ID", "me"),
     ("UPSTREAM_ALLOW", "10.0.0.0/99"), ("LOG_LEVEL", "loud"), ("TENANT_LABEL", 'a="'), ("CLUSTER_SECRET", "short")],
)  # fmt: skip
def test_a_malformed_setting_stops_the_start_with_one_line_that_names_it(name, text):
    with pytest.raises(SettingsError) as problem:
        load(METROCULUS_SETTINGS, {}, {name: text})
    assert name in str(problem.value) and "\n" not in str(problem.value)
    if name == "CLUSTER_SECRET":
        assert text not in str(problem.value).replace("CLUSTER_SECRET", "")


def test_an_unknown_setting_in_a_file_is_named(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("kubecost_tiemout: 3\n")
    with pytest.raises(SettingsError, match="kubecost_tiemout"):
        load(METROCULUS_SETTINGS, {}, {"SOMETHING_OF_KUBERNETES": "1"}, str(file))
