"""The Dockerfile, followed without a daemon: each target's steps in an empty folder, and its entry point run."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from tests.support import ACCOUNT, SECRET, until

ROOT = Path(__file__).parent.parent.parent
EVERY = ("metroculus", "rest-api", "diproxy", "agent")
TARGETS = EVERY if os.environ.get("IMAGES") == "all" else ("agent",)
"""``make test-long`` follows them all; the store alone is 300 MB to install."""


@dataclass
class Stage:
    base: str
    run: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    copied_from: list[str] = field(default_factory=list)
    user: str = ""
    start: list[str] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name; what a stage is built on is its ``base``."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    found: dict[str, Stage] = {}
    stage = Stage("")
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base)
        elif word == "RUN":
            stage.run.append(rest)
        elif word == "ENV":
            stage.env |= dict(re.findall(r"(\w+)=(\S+)", rest))
        elif word == "COPY" and rest.startswith("--from="):
            stage.copied_from.append(rest.split()[0].removeprefix("--from="))
        elif word == "USER":
            stage.user = rest
        elif word in ("ENTRYPOINT", "CMD"):
            stage.start += json.loads(rest)
    return found


def line_of(name: str, known: dict[str, Stage]) -> list[Stage]:
    """A stage and all that it is built on, the first first."""
    stage = known[name]
    return [*(line_of(stage.base, known) if stage.base in known else []), stage]


def build_context(folder: Path) -> None:
    """What ``.dockerignore`` lets into an image."""
    names = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in filter(lambda one: (ROOT / one).exists(), names):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_installs_and_serves(target: str, tmp_path: Path) -> None:
    known = stages()
    source, programs = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    build_context(source)

    def here(text: str) -> str:
        """A step with this folder's paths, and this Python."""
        moved = text.replace("/opt/metroculus", str(programs)).replace("/src", str(source))
        return moved.replace("python -m venv", f"{sys.executable} -m venv")

    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CONFIG_URL")}
    image = line_of(target, known)
    (built,) = known[target].copied_from
    for stage in line_of(built, known):
        settings = {name: here(value) for name, value in stage.env.items()}
        for step in stage.run:
            subprocess.run(
                ["sh", "-euc", here(step)], cwd=source, env=clean | settings | {"PIP_ARGS": ""}, check=True, timeout=600
            )
    settings = {name: value for stage in image for name, value in stage.env.items() if name != "PATH"}
    listens = {name: "127.0.0.1:0" for name in settings if name.endswith("_LISTEN")}
    data = tmp_path / "data"
    given = {"DATA_DIR": str(data), "CLUSTER_SECRET": SECRET}
    if target == "agent":
        (tmp_path / "token").write_text("a token")
        given = {"METROCULUS_AGENT_TO": "http://127.0.0.1:9", "METROCULUS_AGENT_ACCOUNT": ACCOUNT,
                 "METROCULUS_AGENT_TOKEN_FILE": str(tmp_path / "token"),
                 "METROCULUS_AGENT_OPENCOST": "http://127.0.0.1:9"}  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as output:
        serving = subprocess.Popen(
            [programs / "bin" / known[target].start[0], *known[target].start[1:]],
            cwd=tmp_path,
            env=clean | settings | listens | given,
            stdout=output,
            stderr=output,
        )
    try:
        assert until(lambda: "http://" in log.read_text() or serving.poll() is not None)
        url = next(word for word in log.read_text().split() if word.startswith("http://"))
        assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
    finally:
        serving.terminate()
        assert serving.wait(40) == 0, log.read_text()


def test_every_package_is_in_the_images() -> None:
    """What is installed without one of its packages starts, and fails where that is asked for."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    packages = {name.rstrip("*") for name in settings["options.packages.find"]["include"].split()}
    assert packages <= {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


def test_targets_are_not_root_and_their_base_can_be_pinned() -> None:
    text, known = (ROOT / "Dockerfile").read_text(), stages()
    assert "ARG PYTHON_IMAGE=" in text and text.count("FROM ${PYTHON_IMAGE}") == 2, "one base, by an argument"
    for target in EVERY:
        user = next(stage.user for stage in reversed(line_of(target, known)) if stage.user)
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "numbers, so that runAsNonRoot can be checked"
        listening = [value for name, value in known[target].env.items() if name.endswith("_LISTEN")]
        assert listening and all(value.startswith("0.0.0.0:") for value in listening)


def test_nothing_secret_gets_into_an_image(tmp_path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored, "only what is named goes in"
    named = {line[1:] for line in ignored if line.startswith("!")}
    assert not named & {".git", ".venv", ".metroculus", ".demo", "tests", "build"}
