"""What every kind of ownership must do: one owner at a time, and fences that only rise."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metroculus.metroculus_worker.etcd_owners import EtcdOwners
from metroculus.metroculus_worker.ownership import FileOwners, Owners
from optscale_client.config_client import EtcdConfig
from tests.support import ACCOUNT

OTHER = "00000000-0000-4000-8000-00000000000b"


@pytest.fixture(params=["file", "etcd"])
def owners(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Owners]]:
    """Makes owners that compete with each other, as workers of their own do."""
    made: list[Owners] = []

    def make() -> Owners:
        if request.param == "file":
            made.append(FileOwners(tmp_path / "locks"))
        else:
            made.append(EtcdOwners(EtcdConfig(request.getfixturevalue("etcd").url).client(), lease_seconds=2))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_one_owns_a_cluster_until_it_lets_go(owners: Callable[[], Owners]) -> None:
    first, second = owners(), owners()
    owned = first.own(ACCOUNT, lambda: 0)
    assert owned is not None and owned.still()
    assert second.own(ACCOUNT, lambda: 0) is None
    assert second.own(OTHER, lambda: 0) is not None
    owned.release()
    assert not owned.still()
    later = second.own(ACCOUNT, lambda: 0)
    assert later is not None and later.writer.fence > owned.writer.fence


def test_a_fence_is_above_all_that_ever_wrote(owners: Callable[[], Owners]) -> None:
    owned = owners().own(ACCOUNT, lambda: 41)
    assert owned is not None and owned.writer.fence == 42
    owned.release()
    again = owners().own(ACCOUNT, lambda: 7)
    assert again is not None and again.writer.fence == 43


def test_an_owner_keeps_its_cluster_past_a_lease(owners: Callable[[], Owners]) -> None:
    first, second = owners(), owners()
    owned = first.own(ACCOUNT, lambda: 0)
    assert owned is not None
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        assert owned.still()
        assert second.own(ACCOUNT, lambda: 0) is None
        time.sleep(0.25)


PAUSED = """
import sys
from metroculus.metroculus_worker.etcd_owners import EtcdOwners
from optscale_client.config_client import EtcdConfig
owners = EtcdOwners(EtcdConfig(sys.argv[1]).client(), lease_seconds=2)
owned = owners.own(sys.argv[2], lambda: 0)
print(owned.writer.fence, flush=True)
sys.stdin.readline()
print(owned.still(), flush=True)
"""


def test_a_worker_that_was_stopped_past_its_lease_knows_it(etcd: object, tmp_path: Path) -> None:
    """SIGSTOP, a new owner, SIGCONT: the old one has a lower fence and sees at once that it owns nothing."""
    import signal

    url = str(getattr(etcd, "url"))  # noqa: B009
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED, url, ACCOUNT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    fence = int(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    later = EtcdOwners(EtcdConfig(url).client(), lease_seconds=2)
    owned = None
    until = time.monotonic() + 15
    while owned is None:
        assert time.monotonic() < until, "the lease of a stopped worker never ends"
        owned = later.own(ACCOUNT, lambda: fence)
        time.sleep(0.1)
    assert owned.writer.fence > fence
    process.send_signal(signal.SIGCONT)
    answer, _ = process.communicate("go on\n", timeout=20)
    assert answer.strip() == "False"
    later.close()


def test_etcd_that_is_away_is_an_oserror(etcd: object) -> None:
    made = EtcdOwners(EtcdConfig(str(getattr(etcd, "url"))).client())  # noqa: B009
    etcd.stop()  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="etcd"):
        made.own(ACCOUNT, lambda: 0)
    etcd.start()  # type: ignore[attr-defined]
