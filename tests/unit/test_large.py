"""Large answers are decoded in a process: the same sets, the same errors, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from pathlib import Path

import pytest

from metroculus.sources.answers import large
from metroculus.sources.answers.allocation_json import decode_allocation
from metroculus.sources.answers.large import PROCESS_BYTES, decode_allocations
from metroculus.sources.errors import BadAnswer
from tools.offload import Offload
from tools.window import DAY, iso

WINDOW = {"start": iso(0), "end": iso(DAY)}
PODS = {
    f"shop/web-{n}": {
        "name": f"shop/web-{n}", "properties": {"namespace": "shop", "pod": f"web-{n}", "labels": {"team": "x" * 300}},
        "window": WINDOW, **WINDOW, "cpuCost": n / 32, "ramCost": 1 / 32,
    }
    for n in range(20_000)
}  # fmt: skip
BODY = json.dumps({"code": 200, "data": [PODS]}).encode()
GROUPED = ("namespace", "pod")


def run(work):
    async def with_offload():
        offload = Offload()
        try:
            return await work(offload)
        finally:
            offload.close()

    return asyncio.run(with_offload())


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.glob("metroculus-answer-*")), "a large answer was left behind"


def test_a_process_says_what_decoding_here_says():
    assert len(BODY) > PROCESS_BYTES
    there = run(lambda offload: decode_allocations(offload, "upstream", BODY, GROUPED))
    here = decode_allocation("upstream", BODY, GROUPED)
    assert there.sets[0].columns.total() == here.sets[0].columns.total() == sum(n / 32 + 1 / 32 for n in range(20_000))
    assert there.sets[0].allocations[7] == here.sets[0].allocations[7]


def test_a_bad_answer_is_one_there_too():
    broken = BODY[: len(BODY) - 10]
    with pytest.raises(BadAnswer, match="not its JSON"):
        run(lambda offload: decode_allocations(offload, "upstream", broken, GROUPED))


def test_a_process_that_is_killed_is_said_and_the_next_answer_is_decoded():
    async def work(offload):
        await decode_allocations(offload, "upstream", BODY, GROUPED)
        for pid in offload._pool._processes:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(BadAnswer, match="died"):
            await decode_allocations(offload, "upstream", BODY, GROUPED)
        return await decode_allocations(offload, "upstream", BODY, GROUPED)

    assert len(run(work).sets[0].allocations) == 20_000


def test_without_room_for_the_file_it_is_decoded_on_a_thread(monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(Path("/nowhere")))
    found = run(lambda offload: decode_allocations(offload, "upstream", BODY, GROUPED))
    assert len(found.sets[0].allocations) == 20_000 and "no room" in caplog.text
    assert large.log.name == "sources"
