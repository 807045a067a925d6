"""Whether what is installed and what setup.cfg allows is at least what constraints.txt asks for."""

from __future__ import annotations

import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
FACING = {"tornado", "requests", "cryptography", "pyyaml", "msgspec", "pymongo", "clickhouse-driver", "protobuf"}
"""What setup.cfg names and reads bytes from elsewhere: each needs a floor."""


def floors() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line.partition("#")[0].strip()) for line in lines if not line.startswith("#")]
    return {one.name.lower(): one for one in found}


def problems() -> list[str]:
    wanted, told = floors(), []
    told += [f"{name} faces the network and has no floor" for name in sorted(FACING - wanted.keys())]
    for name, floor in wanted.items():
        try:
            installed = Version(version(name))
        except PackageNotFoundError:
            told.append(f"{name} has a floor and is not installed")
            continue
        if installed not in floor.specifier:
            told.append(f"{name} {installed} is installed, {floor.specifier} is the floor")
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = config["options"]["install_requires"] + "\n".join(config["options.extras_require"].values())
    for text in filter(None, map(str.strip, named.splitlines())):
        asked = Requirement(text)
        floor = wanted.get(asked.name.lower())
        lowest = min((Version(one.version) for one in asked.specifier if one.operator == ">="), default=None)
        if floor is not None and (lowest is None or lowest not in floor.specifier):
            told.append(f"setup.cfg allows {text}, {floor.specifier} is the floor")
    return told


if __name__ == "__main__":
    found = problems()
    for problem in found:
        print(problem, file=sys.stderr)
    sys.exit(bool(found))
