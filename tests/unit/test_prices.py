"""Prices of one's own, for what the upstream does not price."""

from __future__ import annotations

import msgspec
import pytest

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.assets import Asset
from metroculus.cost_model.components import GIB, Amounts, Costs
from metroculus.cost_model.prices import CustomPrices, with_prices
from metroculus.cost_model.reading import AllocationReading, AllocationSet, AssetsReading, SourceReport
from metroculus.cost_model.reconcile import reconcile
from metroculus.cost_model.statement import Question
from tools.window import Window

DAY = Window.past(0, 86400)
PRICES = CustomPrices(core_hour=0.02, ram_gib_hour=0.01, storage_gib_hour=0.001)


def reading(ram_usd=0.0):
    shop = Allocation(
        name="shop", namespace="shop", end=86400, amounts=Amounts(cpu=24, ram=48, pv=240), costs=Costs(ram=ram_usd)
    )
    idle = Allocation(name="__idle__", end=86400)
    return AllocationReading(
        source=SourceReport(name="allocation", status="ok"), sets=(AllocationSet(0, 86400, (shop, idle)),)
    )


def nodes():
    """Four cores and 16 GiB all day."""
    node = Asset(type="node", name="n", cpu_cores=4.0, ram_bytes=16 * GIB, hours=24.0)
    return AssetsReading(source=SourceReport(name="assets", status="ok"), assets=(node,))


def statement(found):
    return reconcile(Question(cloud_account_id="a", window=DAY), found, None, [])


def test_what_has_no_price_is_priced_and_idle_is_what_nodes_had_beyond_it():
    found = statement(with_prices(reading(), [nodes()], PRICES))
    assert found.summary.cpu_cost == pytest.approx(96 * 0.02)
    assert found.summary.ram_cost == pytest.approx(384 * 0.01)
    assert found.summary.pv_cost == pytest.approx(0.24)
    assert found.idle_cost == pytest.approx(72 * 0.02 + 336 * 0.01)
    assert found.complete and any("operator" in text for text in found.sources[0].warnings)


def test_what_the_upstream_prices_keeps_its_price():
    found = statement(with_prices(reading(ram_usd=5.0), [nodes()], PRICES))
    assert found.summary.ram_cost == 5.0 and found.summary.cpu_cost == pytest.approx(96 * 0.02)


def test_idle_that_cannot_be_known_leaves_the_component_unknown():
    found = statement(with_prices(reading(), [None], PRICES))
    assert found.summary.cpu_cost is None and found.total_cost is None
    assert found.summary.known_cost == pytest.approx(24 * 0.02 + 48 * 0.01 + 0.24)


@pytest.mark.parametrize("body", ['{"core_hour": -1}', '{"core_hour": "1"}', '{"cores": 1}', '{"core_hour": 1e9}'])
def test_prices_that_cannot_be(body):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=CustomPrices)
