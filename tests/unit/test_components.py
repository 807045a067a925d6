"""One table of components: everything that names them follows it, and a new one is three files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metroculus.cost_model.columns import BITS, LINE
from metroculus.cost_model.components import CLUSTER_COMPONENTS, COMPONENTS, MEASURES, STRUCTS, of_kind
from metroculus.cost_model.statement import Point, Row, Summary
from metroculus.storage.columns import ALLOCATIONS, SUMMARIES
from optscale_client.metroculus_client import structs
from rest_api.rest_api_server import answers

ROOT = Path(__file__).parent.parent.parent


def test_names_bits_and_places_are_each_ones_own():
    assert len({one.name for one in MEASURES}) == len({one.bit for one in MEASURES}) == len(MEASURES)
    assert all(0 <= one.bit < 64 for one in MEASURES)
    kinds = [one.kind for one in MEASURES]
    assert kinds == sorted(kinds, key=list(STRUCTS).index), "the measures of a kind stand together"
    assert list(LINE) == list(BITS) == [one.name for one in MEASURES]
    assert {one.part_of for one in MEASURES} - {""} <= set(COMPONENTS)


@pytest.mark.parametrize("kind", STRUCTS)
def test_a_row_holds_the_measures_of_each_kind_in_the_tables_order(kind):
    assert list(STRUCTS[kind].__struct_fields__) == [one.field for one in of_kind(kind)]


def test_every_column_of_costs_follows_the_table():
    named = {f"{name}_cost" for name in COMPONENTS}
    whole = {f"{name}_cost" for name in CLUSTER_COMPONENTS}
    assert {one.name for one in MEASURES} | set(CLUSTER_COMPONENTS) <= set(ALLOCATIONS.names) & set(SUMMARIES.names)
    for shape, wanted in ((Row, named), (Summary, whole), (Point, whole)):
        assert wanted <= set(shape.__struct_fields__)
    assert wanted <= set(structs.SummaryColumns.__struct_fields__)
    assert named <= set(structs.CostRow.__struct_fields__)
    assert set(answers.PARTS) == whole


LICENSES = {
    "metroculus/cost_model/components.py": [
        (
            '    _cost(7, "external", "externalCost", adjusted=False, credits=True),\n',
            '    _cost(7, "external", "externalCost", adjusted=False, credits=True),\n'
            '    _cost(19, "license", "licenseCost"),\n',
        ),
        ("    external: float = 0.0\n", "    external: float = 0.0\n    license: float = 0.0\n"),
    ],
    "optscale_client/metroculus_client/structs.py": [
        ("    external_cost: Usd\n", "    external_cost: Usd\n    license_cost: Usd\n"),
    ],
}
MIGRATION = """
from metroculus.storage.migrations.steps import AddColumns, Migration

MIGRATION = Migration(
    number={number},
    readable_from={number},
    steps=tuple(
        AddColumns(table, (("license", "Float64", "0"),)) for table in ("k8s_allocations", "k8s_cost_summaries")
    ),
)
"""
ASK = """
import json, sys
from pathlib import Path
from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.reading import judge_sets
from metroculus.cost_model.reconcile import reconcile
from metroculus.cost_model.statement import Question
from metroculus.metroculus_api.controllers.expenses import row_of
from metroculus.sources.answers.allocation_json import decode_allocation
from metroculus.storage.ledger import FencedWriter, HourBatch
from metroculus.storage.store import open_store
from rest_api.rest_api_server import answers
from tools.window import Window, iso

window = Window.past(0, 3600)
dates = {"start": iso(0), "end": iso(3600)}
row = {"name": "shop/web", "window": dates, **dates, "cpuCost": 2.0, "ramCost": 1.0, "licenseCost": 100.0,
       "properties": {"namespace": "shop", "pod": "web"}}
idle = {"name": "__idle__", "window": dates, **dates, "cpuCost": 0.0, "ramCost": 0.0}
body = json.dumps({"code": 200, "data": [{"shop/web": row, "__idle__": idle}]}).encode()
decoded = decode_allocation("upstream", body, ("namespace", "pod"))
found = reconcile(Question(cloud_account_id="a", window=window, detail="pod"), judge_sets("a", decoded.sets, window, 0),
                  None, [])
assert found.summary.license_cost == found.breakdown_by_pod[0].license_cost == 100.0
assert found.summary.known_cost == 103.0 and found.summary.management_cost is None
assert "license_cost" in answers.PARTS

store = open_store(f"embedded:{sys.argv[1]}", lambda: 7200)
account = "5635f99d-4dc6-4e31-891f-4e8990925c83"
batch = HourBatch(account=account, hour=0, allocations=decoded.sets[0].columns, management=7.0)
store.ledger.commit([batch], FencedWriter(1))
store.summaries.rebuild(account, 0, 3600, FencedWriter(2))
for group_by in ((), ("namespace",), ("pod",)):
    sums = store.summaries.sums(account, 0, 3600, group_by, Filters()).sums
    assert sum(one.costs.license for one in sums) == 100.0 and sum(one.management for one in sums) == 7.0
    assert "license_cost" in row_of((), "", (), sums[0], frozenset()) if not group_by else True
told, management = store.history.allocations(store.ledger.committed(account, 0, 3600), ("pod",))
assert told.columns.sum_costs().license == 100.0 and management == 7.0
assert "license" in store.ledger.committed(account, 0, 3600).hours[0].components
store.close()
"""


def with_licenses(folder: Path, migration: bool) -> None:
    """A copy of the program with one more component."""
    for package in ("metroculus", "optscale_client", "rest_api", "tools"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in LICENSES.items():
        text = (folder / name).read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (folder / name).write_text(text)
    if migration:
        migrations = folder / "metroculus/storage/migrations"
        number = len(list(migrations.glob("n0*.py"))) + 1
        (migrations / f"n{number:04}.py").write_text(MIGRATION.format(number=number))
        with (migrations / "__init__.py").open("a") as file:
            file.write(
                f"from metroculus.storage.migrations import n{number:04}\nMIGRATIONS += (n{number:04}.MIGRATION,)\n"
            )


def ask(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ASK, str(folder / "store")], cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_new_component_is_three_files_and_found_everywhere(tmp_path):
    with_licenses(tmp_path, migration=True)
    done = ask(tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_component_without_a_migration_is_refused_by_name(tmp_path):
    with_licenses(tmp_path, migration=False)
    done = ask(tmp_path)
    assert done.returncode != 0
    assert "no migration adds k8s_allocations.license" in done.stderr
