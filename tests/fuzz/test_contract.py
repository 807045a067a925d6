"""Generated requests against both OpenAPI documents: no undeclared status, no answer off its schema, no 500.

Schemathesis lives in an environment of its own (``make tools``); ``FUZZ_EXAMPLES`` says how many requests to make up of
each operation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import requests

from tests.conftest import missing
from tests.support import ACCOUNT, SECRET, Stack, exact_world, make_tenant

FUZZER = Path(__file__).parent.parent.parent / "build" / "parts" / "tools" / "bin" / "schemathesis"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
LEAST_CASES = 5_000
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
PHASES = "examples,coverage,fuzzing,stateful"
cases: dict[str, int] = {}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One linked cluster that answers, so that successes are held against their schema too."""
    if not FUZZER.is_file():
        missing("make tools")
    stack = Stack(tmp_path_factory.mktemp("fuzz"))
    _, url = stack.simulate(exact_world(days=2))
    running = stack.start(clickhouse_url=f"embedded:{stack.folder / 'store'}")
    tenant = make_tenant(running, "t")
    directory = running.rest_api.directory
    directory.create_cluster(tenant.organization_id, "c", "kubecost", url, ACCOUNT)
    directory.update_cluster(ACCOUNT, name="c", flavour="kubecost", url=url, state="linked")
    running.rest_api.metroculus.client.put_kubecost_source(ACCOUNT, "kubecost", url)
    yield stack, running, tenant
    stack.close()


def fuzz(folder, base, header, known, *more):
    """Run the fuzzer; how many requests it made up."""
    config = folder / "schemathesis.toml"
    config.write_text("[parameters]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in known.items()))
    done = subprocess.run(
        [FUZZER, "--config-file", config, "run", f"{base}/openapi.json", "-H", header, "--checks", ",".join(CHECKS),
         "--phases", PHASES, "-n", str(EXAMPLES), "--seed", "1", "--continue-on-failure", "--warnings", "off", *more],
        cwd=folder, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert requests.get(f"{base}/healthz", timeout=10).status_code == 200
    return int(re.search(r"([\d,]+) generated", done.stdout)[1].replace(",", ""))


@pytest.mark.fuzz
@pytest.mark.parametrize("which", ["made up", "known"])
def test_metroculus_keeps_its_contract(world, tmp_path, record_property, which):
    _, running, _ = world
    known = {"query.cloud_account_id": ACCOUNT} if which == "known" else {}
    more = () if which == "made up" else ("--exclude-method", "PUT", "--exclude-method", "DELETE")
    cases[f"metroculus {which}"] = count = fuzz(
        tmp_path, running.metroculus_listener.url, f"Secret: {SECRET}", known, *more
    )
    record_property("cases", count)


@pytest.mark.fuzz
@pytest.mark.parametrize("which", ["made up", "known"])
def test_the_rest_api_keeps_its_contract(world, tmp_path, record_property, which):
    _, running, tenant = world
    known = {"cluster_id": ACCOUNT, "organization_id": tenant.organization_id, "cluster": "c", "namespace": "shop"}
    more = () if which == "made up" else ("--exclude-method", "DELETE", "--exclude-method", "PATCH")
    header = f"Authorization: Bearer {tenant.tokens['admin']}"
    cases[f"rest-api {which}"] = count = fuzz(
        tmp_path, running.rest_api_listener.url, header, known if which == "known" else {}, *more
    )
    record_property("cases", count)


def test_there_were_enough_of_them():
    if len(cases) < 4:
        pytest.skip("the fuzzers did not run")
    assert sum(cases.values()) >= LEAST_CASES, cases
