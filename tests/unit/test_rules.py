"""Each rule of our own finds what it is for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import missing
from tests.parts import floors

PARTS = Path(__file__).parent.parent / "parts"
SEMGREP = PARTS.parent.parent / "build" / "parts" / "tools" / "bin" / "semgrep"
BROKEN = {
    "one-way-out": ("metroculus/sources/x.py", "import requests\n"),
    "no-redirects": ("rest_api/x.py", "session.get(url, allow_redirects=True)\n"),
    "verified-tls": ("rest_api/x.py", "session.get(url, verify=False)\n"),
    "compared-in-constant-time": ("rest_api/x.py", "if offered == known:\n    go()\n"),
    "values-are-escaped": ("metroculus/storage/x.py", "sql = f\"SELECT 1 WHERE a = '{name}'\"\n"),
    "selectors-in-one-place": ("metroculus/sources/x.py", "query = f'm{{tenant=\"{a}\"}}'\n"),
    "decoders-are-made-once": ("rest_api/x.py", "msgspec.json.decode(body, type=Shape)\n"),
    "trusted-is-the-operators": ("metroculus/sources/x.py", "Upstream('s', url, trusted=True)\n"),
    "no-operators-from-outside": ("rest_api/x.py", "find({'$where': text})\n"),
    "no-swallowed-failure": ("rest_api/x.py", "try:\n    go()\nexcept Exception:\n    pass\n"),
    "no-secret-in-a-log": ("rest_api/x.py", "log.info('%s', self.secret)\n"),
    "no-sleep-on-the-loop": ("rest_api/x.py", "async def f():\n    time.sleep(1)\n"),
    "nothing-evaluated": ("rest_api/x.py", "subprocess.run(a, shell=True)\n"),
    "spoken-in-one-shape": ("rest_api/x.py", "raise HTTPError(404)\n"),
}


def test_every_rule_finds_what_it_is_for(tmp_path):
    if not SEMGREP.is_file():
        missing("make tools")
    rules = [one["id"] for one in yaml.safe_load((PARTS / "semgrep.yaml").read_text())["rules"]]
    assert sorted(rules) == sorted(BROKEN)
    for rule, (where, text) in BROKEN.items():
        file = tmp_path / where
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name(f"{rule.replace('-', '_')}.py").write_text(text)
    done = subprocess.run(
        [SEMGREP, "scan", "--json", "--quiet", "--metrics=off", "--disable-version-check", "--no-git-ignore",
         "--config", PARTS / "semgrep.yaml", "."],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    results = json.loads(done.stdout)["results"]
    found = {(one["check_id"].rpartition(".")[2], Path(one["path"]).stem.replace("_", "-")) for one in results}
    assert {(rule, rule) for rule in BROKEN} <= found


def test_a_floor_that_is_not_met_is_named(monkeypatch):
    assert floors.problems() == []
    real = floors.version
    monkeypatch.setattr(floors, "version", lambda name: "6.1" if name == "tornado" else real(name))
    assert floors.problems() == ["tornado 6.1 is installed, >=6.6 is the floor"]


@pytest.mark.parametrize("name", sorted(floors.FACING))
def test_what_faces_the_network_has_a_floor(name):
    assert name in floors.floors()
