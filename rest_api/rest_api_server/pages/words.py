"""What the API calls by a short name, in the words of people who run clusters."""

from __future__ import annotations

import re

from optscale_client.metroculus_client.structs import ChangeStep

RESOURCES = {"cpu": "CPU", "ram": "memory", "memory": "memory", "gpu": "GPU", "pv": "volumes", "network": "network"}
STEPS = {
    "appeared": "new",
    "vanished": "gone",
    "price": "price",
    "amount": "size",
    "hours": "running time",
    "cost": "cost",
    "network_internet": "traffic to the internet",
    "network_region": "traffic between regions",
    "network_zone": "traffic between zones",
    "network_other": "other traffic",
    "nodes": "nodes",
    "idle_price": "price of idle capacity",
    "idle_taken_up": "idle capacity taken up",
    "idle": "idle capacity",
    "management": "cluster management",
    "not_known": "hours that are not known",
    "length": "one window is longer",
}


def step_text(step: ChangeStep) -> str:
    """What changed, in a few words."""
    kind = STEPS.get(step.kind, step.kind.replace("_", " "))
    resource = RESOURCES.get(step.resource or "", step.resource or "")
    return f"{kind}: {resource}" if resource and step.kind != "network_other" else kind


def amounts_text(step: ChangeStep) -> str:
    """From how much to how much; empty where that is not told."""
    if step.before is None or step.after is None or not step.unit:
        return ""
    return f"{_amount(step.before)} to {_amount(step.after)} {step.unit}"


def _amount(value: float) -> str:
    """Four digits, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def words(name: str) -> str:
    """``requestSizing`` or ``right_sizing`` as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
