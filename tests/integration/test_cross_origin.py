"""Pages of other origins: which may read answers, and what OPTIONS says."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from tornado.httputil import HTTPHeaders

from rest_api.rest_api_server.config import SETTINGS, RestApiConfig, config_of
from rest_api.rest_api_server.server import make_app
from standalone.running import Running
from tests.integration.test_services import link
from tests.support import DAY, END, Stack, ask, exact_world, make_tenant
from tools.settings import SettingsError, load
from tools.tornado_service.cross_origin import CrossOrigin

PAGE = "https://costs.example.com"
PATH = f"/namespaces?window={END - DAY},{END}"


@pytest.fixture
def running(stack: Stack) -> Running:
    return stack.start()


def option(running: Running, path: str, **headers: str) -> requests.Response:
    return requests.options(running.rest_api_listener.url + path, headers=headers, timeout=20)


def test_without_the_setting_no_page_may_read_and_options_says_what_is_allowed(running: Running) -> None:
    answer = option(running, "/healthz", Origin=PAGE, **{"Access-Control-Request-Method": "GET"})
    assert answer.status_code == 204 and answer.content == b"" and answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert not [name for name in answer.headers if name.startswith("Access-Control")]
    assert option(running, "/nowhere").status_code == 404


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
def test_a_page_that_may_reads_answers_that_are_made_kept_and_refused(
    stack: Stack, running: Running, origins: tuple[str, ...]
) -> None:
    running.rest_api.service.cross_origin = CrossOrigin(origins)
    tenant = make_tenant(running, "acme")
    simulator, _ = stack.simulate(exact_world(7, days=2))
    cluster = link(running, tenant, "main", "opencost", stack.serve(simulator.application()))
    path = f"/restapi/v2/kubecost/clusters/{cluster}{PATH}"
    shown = "*" if origins == ("*",) else PAGE
    for state in ("miss", "hit", "hit"):
        answer = ask(running, tenant.tokens["viewer"], path, headers={"Origin": PAGE})
        assert answer.headers["X-Cache"] == state and answer.headers["Access-Control-Allow-Origin"] == shown
        assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert ("Origin" in answer.headers["Vary"]) is (shown != "*"), "a cache between must tell pages apart"
    refused = ask(running, "mct_wrong", path, headers={"Origin": PAGE})
    assert refused.status_code == 401 and refused.headers["Access-Control-Allow-Origin"] == shown
    preflight = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}
    below = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters/{cluster}"
    asked = option(running, below, Origin=PAGE, **preflight)
    assert asked.status_code == 204 and "PATCH" in asked.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]


def test_another_page_may_not(running: Running) -> None:
    running.rest_api.service.cross_origin = CrossOrigin((PAGE,))
    for origin in ("https://evil.example.com", f"{PAGE}.evil.com", "null", ""):
        answer = option(running, "/healthz", Origin=origin, **{"Access-Control-Request-Method": "GET"})
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert answer.headers["Vary"] == "Accept-Encoding, Origin"


def test_the_setting_is_read_or_refused_by_name(tmp_path: Path) -> None:
    def config(text: str) -> RestApiConfig:
        environment = {"CORS_ORIGINS": text, "CLUSTER_SECRET": "s" * 20, "DATA_DIR": str(tmp_path)}
        return config_of(load(SETTINGS, {}, environment, None, lambda key: None))

    assert config("https://A.example.com/, http://localhost:8080").cors_origins == (
        "https://a.example.com",
        "http://localhost:8080",
    )
    service = make_app(config(PAGE))
    assert option_headers(service.service.cross_origin) == PAGE
    service.close()
    for bad in ("costs.example.com", "https://a/b", "*, https://a.example.com", "ftp://a"):
        with pytest.raises(SettingsError, match="CORS_ORIGINS"):
            config(bad)


def option_headers(cross_origin: CrossOrigin) -> str | None:
    headers = HTTPHeaders()
    cross_origin.tell(headers, PAGE)
    return headers.get("Access-Control-Allow-Origin")
