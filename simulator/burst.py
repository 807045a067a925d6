"""An hour in which a cluster costs far more than before: a machine that one workload made it add."""

from __future__ import annotations

from dataclasses import replace
from math import fsum

from simulator.world import HOUR, Container, World

CONTROLLER = "backfill-run"
NODE = "burst-1"


def with_burst(world: World, hour: int, rise: float, namespace: str = "batch") -> World:
    """The world with a machine of that hour alone, which costs ``rise`` times as much as all others together.

    Args:
        hour: first second of a UTC hour.
    """
    there = [node for node in world.nodes if node.start <= hour < node.end]
    model = there[0]
    size = rise * fsum(node.usd_per_hour for node in there) / model.usd_per_hour
    node = replace(
        model,
        name=NODE,
        provider_id=f"{model.provider_id}-burst",
        cores=model.cores * size,
        ram_gib=model.ram_gib * size,
        gpus=0.0,
        start=hour,
        end=hour + HOUR,
    )
    container = Container(
        namespace=namespace,
        controller=CONTROLLER,
        kind="job",
        pod=f"{CONTROLLER}-1",
        name="run",
        node=node,
        cpu_request=node.cores,
        ram_request_gib=node.ram_gib,
        cpu_usage=node.cores * 0.9,
        ram_usage_gib=node.ram_gib * 0.9,
        start=hour,
        end=hour + HOUR,
        labels={"team": "data"},
    )
    return replace(world, nodes=(*world.nodes, node), containers=(*world.containers, container))
