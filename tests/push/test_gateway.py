"""The gateway's doors: whose token is shown, what goes through, and what is never lost by a wrong word."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import cramjam
import pytest
import requests
from tornado.web import Application, RequestHandler

from diproxy.diproxy_server import gate as gates
from diproxy.diproxy_server import handlers
from optscale_client.metroculus_client import error_about
from simulator.remote_write import field, label, labels, packed, sample, varint
from tests.pushing import Door
from tests.support import DAY, END, HOUR, NOW, Stack, ask, exact_world, make_tenant, until
from tools.tornado_service.uploads import UploadBudget

pytestmark = pytest.mark.push

WRITE = "/storage/api/v2/write"
METRICS = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}
LIMITS = {"push_max_bytes": 1 << 20, "push_max_series": 1000, "push_max_samples": 5000}


def one_series(name: str = "up", value: float = 1.0, at: int = NOW, **more: str) -> bytes:
    return field(1, labels({"__name__": name, **more}) + sample(value, at * 1000))


class Receiver:
    """A receiver of the tests' own: keeps headers and bodies, and answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Callable[[], tuple[int, str, dict[str, str]]] = lambda: (200, "", {})
        outer = self

        class Receive(RequestHandler):
            def post(self) -> None:
                outer.requests.append((dict(self.request.headers.get_all()), self.request.body))
                status, text, headers = outer.answer()
                self.set_status(status)
                self.set_header("Content-Type", "text/plain; charset=utf-8")
                for name, value in headers.items():
                    self.set_header(name, value)
                self.finish(text)

        self.application = Application([(r"/api/v1/receive", Receive)])


@pytest.fixture
def receiver(stack: Stack) -> Receiver:
    made = Receiver()
    made.url = stack.serve(made.application)  # type: ignore[attr-defined]
    return made


@pytest.fixture
def door(stack: Stack, receiver: Any) -> Iterator[Door]:
    made = Door(stack, receive_url=f"{receiver.url}/api/v1/receive", limits=LIMITS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Door, Receiver]]:
    stack, receiver = Stack(tmp_path_factory.mktemp("gateway")), Receiver()
    receiver.url = stack.serve(receiver.application)  # type: ignore[attr-defined]
    made = Door(stack, receive_url=f"{receiver.url}/api/v1/receive", limits=LIMITS)  # type: ignore[attr-defined]
    yield made, receiver
    made.close()
    stack.close()


@pytest.fixture
def shared(gateway: tuple[Door, Receiver]) -> tuple[Door, Receiver]:
    """A gateway that many requests find as it is: each has an account of its own."""
    gateway[1].requests.clear()
    return gateway


def basic(token: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{token}".encode()).decode()}


def test_metrics_go_on_under_the_tokens_own_tenant(door: Door, receiver: Receiver) -> None:
    account, token = door.link()
    body = packed(one_series(cluster="prod") + one_series(name="down"))
    foreign = {"THANOS-TENANT": "somebody", "X-Scope-OrgID": "somebody", "Cookie": "a=b"}
    for headers in (METRICS, METRICS | {"Cloud-Account-Id": account}, METRICS | foreign,
                    METRICS | {"Content-Type": "application/x-protobuf;proto=prometheus.WriteRequest"},
                    METRICS | basic(token)):  # fmt: skip
        answer = door.push("POST", WRITE, token, data=body, headers=headers)
        assert answer.status_code == 200, answer.text
    for headers, came in receiver.requests:
        assert came == body
        assert headers["Thanos-Tenant"] == account and headers["Content-Encoding"] == "snappy"
        assert "X-Scope-Orgid" not in headers and "Authorization" not in headers and "Cookie" not in headers
        assert headers["Content-Type"] == "application/x-protobuf"
    assert len(receiver.requests) == 5


@pytest.mark.parametrize("status", [400, 409, 413, 429])
def test_what_the_receiver_says_of_samples_goes_through(door: Door, receiver: Receiver, status: int) -> None:
    _, token = door.link()
    assert door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS).status_code == 200
    receiver.answer = lambda: (status, "out of order sample", {"Retry-After": "7"})
    answer = door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS)
    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (status, "out of order sample", "7")


def test_what_never_took_anything_says_nothing_of_samples(door: Door, receiver: Receiver) -> None:
    """A TLS port that is spoken to without TLS, and a proxy's page, answer 400 and 413 as well."""
    _, token = door.link()
    write = {"data": packed(one_series()), "headers": METRICS}
    receiver.answer = lambda: (400, "Client sent an HTTP request to an HTTPS server.", {})
    assert door.push("POST", WRITE, token, **write).status_code == 503  # type: ignore[arg-type]
    receiver.answer = lambda: (200, "", {})
    assert door.push("POST", WRITE, token, **write).status_code == 200  # type: ignore[arg-type]
    receiver.answer = lambda: (413, "<html>Request Entity Too Large</html>", {"Content-Type": "text/html"})
    assert door.push("POST", WRITE, token, **write).status_code == 503  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [409, 429])
def test_a_gateway_that_is_new_passes_on_what_only_a_receiver_says(door: Door, receiver: Receiver, status: int) -> None:
    """It was killed after the receiver had taken a batch: the sender comes again, and must be told."""
    _, token = door.link()
    receiver.answer = lambda: (status, "out of order", {})
    assert door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS).status_code == status


def test_a_gateway_that_is_new_finds_out_whether_a_refusal_is_the_receivers(door: Door, receiver: Receiver) -> None:
    _, token = door.link()
    receiver.answer = lambda: (400, "bad label", {}) if receiver.requests[-1][1] != b"\x00" else (200, "", {})
    answer = door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS)
    assert (answer.status_code, answer.text) == (400, "bad label")
    assert door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS).status_code == 400
    assert len(receiver.requests) == 3, "it is asked once"


def test_an_answer_without_end_is_not_held(door: Door, receiver: Receiver) -> None:
    _, token = door.link()
    receiver.answer = lambda: (200, "x" * (3 << 20), {})
    answer = door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS)
    assert answer.status_code == 503


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 415, 422, 500, 502, 503, 504])
def test_what_may_be_cured_is_not_dropped_by_the_sender(door: Door, receiver: Receiver, status: int) -> None:
    _, token = door.link()
    receiver.answer = lambda: (status, "no", {})
    answer = door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS)
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0


def test_a_receiver_that_is_away_or_none_is_a_503(stack: Stack) -> None:
    for url in ("http://127.0.0.1:9/api/v1/receive", None):
        door = Door(stack, receive_url=url, plan={"clickhouse_url": f"embedded:{stack.folder / uuid4().hex}"})
        _, token = door.link()
        answer = door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS)
        assert answer.status_code == 503 and answer.json()["error"]["error_code"] == "OD0016"
        door.close()


TENANT = field(1, b"tenant_id") + field(2, b"victim")
HOSTILE: dict[str, tuple[bytes, dict[str, str], int]] = {
    "gzip": (gzip.compress(one_series()), METRICS | {"Content-Encoding": "gzip"}, 415),
    "zstd": (b"\x28\xb5\x2f\xfd", METRICS | {"Content-Encoding": "zstd"}, 415),
    "no encoding": (one_series(), {"Content-Type": "application/x-protobuf"}, 415),
    "two encodings": (packed(one_series()), METRICS | {"Content-Encoding": "snappy, snappy"}, 415),
    "json": (packed(b"{}"), METRICS | {"Content-Type": "application/json"}, 415),
    "2.0": (
        packed(field(4, b"") + field(5, b"")),
        METRICS | {"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"},
        415,
    ),
    "2.0 in disguise": (packed(field(4, b"tenant") + field(5, b"")), METRICS, 400),
    "empty": (b"", METRICS, 400),
    "framed snappy": (bytes(cramjam.snappy.compress(one_series())), METRICS, 400),
    "not snappy": (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", METRICS, 400),
    "preamble of four gigabytes": (b"\xff\xff\xff\xff\x0f" + packed(one_series())[1:], METRICS, 413),
    "preamble that lies low": (b"\x01" + packed(one_series())[1:], METRICS, 400),
    "preamble that lies high": (varint(9000) + packed(one_series())[1:], METRICS, 400),
    "a bomb": (packed(bytes(200 << 20)), METRICS, 413),
    "cut short": (packed(one_series())[:-3], METRICS, 400),
    "protobuf cut short": (packed(one_series()[:-3]), METRICS, 400),
    "length beyond the end": (packed(b"\x0a\xff\x7fabc"), METRICS, 400),
    "length of nine bytes": (packed(b"\x0a" + b"\xff" * 9 + b"\x01"), METRICS, 400),
    "a varint without end": (packed(b"\x0a" + b"\x80" * 40), METRICS, 400),
    "a group": (packed(b"\x0b\x0c"), METRICS, 400),
    "series as a number": (packed(b"\x08\x01"), METRICS, 400),
    "text": (packed(b"hello, this is text"), METRICS, 400),
    "tenant_id": (packed(one_series(tenant_id="other")), METRICS, 400),
    "tenant_id, name last": (
        packed(field(1, field(1, field(2, b"other") + field(1, b"tenant_id")) + sample(1, NOW))), METRICS, 400,
    ),
    "tenant_id, length in two bytes": (
        packed(field(1, field(1, b"\x0a\x89\x00tenant_id" + field(2, b"other")) + sample(1, NOW))), METRICS, 400,
    ),
    "tenant_id, key in two bytes": (
        packed(field(1, field(1, b"\x8a\x00\x09tenant_id" + field(2, b"other")) + sample(1, NOW))), METRICS, 400,
    ),
    "tenant_id, named twice": (
        packed(field(1, field(1, field(1, b"a") + field(1, b"tenant_id") + field(2, b"x")) + sample(1, NOW))), METRICS, 400,
    ),
    "tenant_id in the last of many": (
        packed(one_series() * 500 + one_series(tenant_id="other")), METRICS, 400,
    ),
    "tenant_id, field number beyond 32 bits": (
        packed(field(1, varint((1 << 35) | 10) + varint(len(TENANT)) + TENANT + sample(1, NOW))), METRICS, 400,
    ),
    "tenant_id, name's number beyond 32 bits": (
        packed(field(1, field(1, varint((1 << 35) | 10) + b"\x09tenant_id" + field(2, b"v")) + sample(1, NOW))), METRICS, 400,
    ),
    "tenant_id, key of more than 64 bits": (
        packed(field(1, b"\x8a" + b"\x80" * 8 + b"\x02" + varint(len(TENANT)) + TENANT)), METRICS, 400,
    ),
    "empty metadata without end": (packed(b"\x1a\x00" * 1_000_001), METRICS, 413),
    "a million fields": (packed(field(1, b"\x7a\x00" * 1_000_001)), METRICS, 413),
    "a huge label": (packed(one_series(big="x" * 70_000)), METRICS, 400),
    "too many labels": (packed(one_series(**{f"l{n}": "v" for n in range(300)})), METRICS, 400),
    "too many series": (packed(one_series() * 1001), METRICS, 413),
    "too many samples": (packed(field(1, label("__name__", "up") + sample(1.0, NOW) * 5001)), METRICS, 413),
}  # fmt: skip
FINE: dict[str, bytes] = {
    "a value that spells the label": one_series(note="tenant_id"),
    "a name that contains it": one_series(not_tenant_id="x"),
    "a stale marker": one_series(value=struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]),
    "NaN and infinities": one_series(value=float("nan")) + one_series(value=float("-inf")),
    "duplicate series": one_series() * 2,
    "metadata": field(3, b"\x08\x01" + field(2, b"up")) + one_series(),
    "a histogram": field(1, label("__name__", "h") + field(4, b"\x08\x01")),
    "an exemplar": field(1, label("__name__", "h") + sample(1.0, NOW) + field(3, field(1, field(1, b"trace")))),
    "unknown field of a series": field(1, label("__name__", "h") + sample(1.0, NOW) + field(15, b"later")),
    "a label of another script": one_series(name="up", ort="Zürich 京都"),
    "nothing at all": b"",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metrics(shared: tuple[Door, Receiver], case: str) -> None:
    door, receiver = shared
    _, token = door.link()
    body, headers, status = HOSTILE[case]
    answer = door.push("POST", WRITE, token, data=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert not receiver.requests and answer.json()["error"]["reason"]


@pytest.mark.parametrize("case", FINE)
def test_metrics_that_only_look_hostile(shared: tuple[Door, Receiver], case: str) -> None:
    door, receiver = shared
    _, token = door.link()
    answer = door.push("POST", WRITE, token, data=packed(FINE[case]), headers=METRICS)
    assert answer.status_code == 200 and receiver.requests[-1][1] == packed(FINE[case])


def test_tokens(door: Door) -> None:
    account, token = door.link()
    other, foreign = door.link()
    path = "/push/v2/wanted"
    assert door.push("GET", path, token).status_code == 200
    for bad in ("", "x", token[:-1], token[:-1] + "AB"[token[-1] == "A"], token.replace(account.replace("-", ""), other.replace("-", "")),
                "mpt_" + "0" * 32 + "_" + "A" * 43, "ü", "a b", token + "\n", "m" * 2000):  # fmt: skip
        headers = {"Authorization": f"Bearer {bad}".encode("utf-8", "replace").replace(b"\n", b"")}
        if bad.endswith("\n"):
            continue
        answer = requests.get(door.url + path, headers=headers, timeout=20)  # type: ignore[arg-type]
        assert answer.status_code == 401, bad
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for scheme in ("Digest " + token, "Basic %%%", "Basic " + base64.b64encode(token.encode()).decode(), token):
        assert requests.get(door.url + path, headers={"Authorization": scheme}, timeout=20).status_code == 401
    assert requests.get(door.url + path, timeout=20).status_code == 401
    assert door.push("GET", path, token, headers={"Cloud-Account-Id": other}).status_code == 403
    for same in (account, account.upper(), ""):
        assert door.push("GET", path, token, headers={"Cloud-Account-Id": same}).status_code == 200
    assert door.push("GET", path, foreign).status_code == 200


def test_a_renewed_token_leaves_time_for_the_old_one(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "GOOD_SECONDS", 0.0)
    monkeypatch.setattr(gates, "ASK_AGAIN_SECONDS", 0.0)
    account, old = door.link()
    new = door.renewed(account)
    assert [door.push("GET", "/push/v2/wanted", one).status_code for one in (old, new)] == [200, 200]
    door.clock.now += 15 * 60 + 1
    assert [door.push("GET", "/push/v2/wanted", one).status_code for one in (old, new)] == [401, 200]
    made = [new, *(door.renewed(account) for _ in range(7))]
    refused = door.metroculus("POST", f"push_tokens/{account}")
    assert refused.status_code == 429 and refused.json()["error"]["error_code"] == "OM0034"
    assert {door.push("GET", "/push/v2/wanted", one).status_code for one in made} == {200}, "none ends before its time"
    door.clock.now += 15 * 60 + 1
    assert door.renewed(account)


def test_a_change_of_the_source_leaves_the_token(door: Door) -> None:
    account, token = door.link()
    again = {"flavour": "push", "currency": "EUR"}
    assert door.metroculus("PUT", f"kubecost_sources/{account}", json=again).status_code == 200
    assert door.metroculus("POST", "push_tokens/check", json={"push_token": token}).json() == {
        "cloud_account_id": account
    }
    assert door.metroculus("PUT", f"kubecost_sources/{account}", json={"flavour": "kubecost", "url": "http://127.0.0.1:1"}
                           ).status_code == 200  # fmt: skip
    assert door.metroculus("POST", "push_tokens/check", json={"push_token": token}).json()["cloud_account_id"] is None
    assert door.metroculus("POST", f"push_tokens/{account}").status_code == 409


def test_while_metroculus_is_away(door: Door, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was good is taken for a quarter of an hour; an unknown one is neither good nor bad."""
    _, token = door.link()
    gateway, listener, url = door.open_gateway()
    write = {"data": packed(one_series()), "timeout": 40}
    headers = METRICS | {"Authorization": f"Bearer {token}"}
    assert requests.post(url + WRITE, headers=headers, **write).status_code == 200  # type: ignore[arg-type]
    seconds = [0.0]
    known: Any = gateway.application.wildcard_router.rules[0].target_kwargs["gate"]
    clock = known._clock
    known._clock = lambda: clock() + seconds[0]
    gateway.calls.client._base = "http://127.0.0.1:9/metroculus/v2"
    monkeypatch.setattr(gates, "ASK_AGAIN_SECONDS", 0.0)
    for past, status in ((10.0, 200), (14 * 60.0, 200), (16 * 60.0, 503)):
        seconds[0] = past
        answer = requests.post(url + WRITE, headers=headers, **write)  # type: ignore[arg-type]
        assert answer.status_code == status, past
    stranger = METRICS | {"Authorization": f"Bearer {token[:-2]}xx"}
    answer = requests.post(url + WRITE, headers=stranger, **write)  # type: ignore[arg-type]
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    door.stack.thread.run(listener.stop())
    door.stack.thread.call(gateway.close)


def test_a_metroculus_that_hangs_keeps_nobody_waiting_who_is_known(
    door: Door, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = door.link()
    headers = METRICS | {"Authorization": f"Bearer {token}"}
    gateway, listener, url = door.open_gateway()
    write = {"data": packed(one_series()), "timeout": 40, "headers": headers}
    assert requests.post(url + WRITE, **write).status_code == 200  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        gateway.calls.client._base = f"http://127.0.0.1:{silent.getsockname()[1]}/metroculus/v2"
        monkeypatch.setattr(gates, "GOOD_SECONDS", 0.0)
        for _ in range(3):
            began = time.monotonic()
            assert requests.post(url + WRITE, **write).status_code == 200  # type: ignore[arg-type]
            assert time.monotonic() - began < 4
    door.stack.thread.run(listener.stop())
    door.stack.thread.call(gateway.close)


def test_a_flood_of_bad_tokens_forgets_no_good_one(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "MOST_TOKENS", 3)
    _, token = door.link()
    assert door.push("GET", "/push/v2/wanted", token).status_code == 200
    for number in range(8):
        assert door.push("GET", "/push/v2/wanted", f"{token[:-4]}{number:04d}").status_code == 401
    known = door.part("gate")
    assert len(known._good) == 1 and len(known._bad) == 3


PACKED = {"Content-Encoding": "gzip"}
HOUR_PATH = f"/push/v2/answers/allocation/{END - HOUR}/{END}/hour"
ANSWERS: dict[str, tuple[str, bytes, dict[str, str], int]] = {
    "not gzip": (HOUR_PATH, b"{}", PACKED, 400),
    "gzip cut short": (HOUR_PATH, gzip.compress(b'{"code":200,"data":[]}')[:-4], PACKED, 400),
    "br": (HOUR_PATH, b"{}", {"Content-Encoding": "br"}, 400),
    "html": (HOUR_PATH, gzip.compress(b"<html></html>"), PACKED, 400),
    "empty": (HOUR_PATH, b"", PACKED, 400),
    "a failure inside": (HOUR_PATH, gzip.compress(b'{"code":500,"message":"no"}'), PACKED, 400),
    "nothing known": (HOUR_PATH, gzip.compress(b'{"code":200,"data":[]}'), PACKED, 202),
    "plain JSON": (HOUR_PATH, b'{"code":200,"data":[{}]}', {}, 202),
    "a wrong digest": (HOUR_PATH, gzip.compress(b'{"code":200,"data":[]}'), PACKED | {"Digest": "sha-256=AAAA"}, 400),
    "an unknown kind": (HOUR_PATH.replace("allocation", "savings"), b"{}", {}, 400),
    "an unknown step": (HOUR_PATH.replace("/hour", "/minute"), b"{}", {}, 400),
    "half an hour": (f"/push/v2/answers/allocation/{END - 1800}/{END}/hour", b"{}", {}, 400),
    "end before start": (f"/push/v2/answers/allocation/{END}/{END - HOUR}/hour", b"{}", {}, 400),
    "two days": (f"/push/v2/answers/allocation/{END - 2 * DAY}/{END}/hour", b"{}", {}, 400),
    "over midnight": (f"/push/v2/answers/allocation/{END - 30 * HOUR}/{END - 20 * HOUR}/hour", b"{}", {}, 400),
    "a day of six hours": (f"/push/v2/answers/allocation/{END - 6 * HOUR}/{END}/day", b"{}", {}, 400),
    "the future": (f"/push/v2/answers/allocation/{END + DAY}/{END + DAY + HOUR}/hour", b"{}", {}, 400),
    "too long ago": (f"/push/v2/answers/allocation/{END - 500 * DAY}/{END - 500 * DAY + HOUR}/hour", b"{}", {}, 400),
    "numbers that are none": ("/push/v2/answers/allocation/a/b/hour", b"{}", {}, 400),
    "more than is taken": (HOUR_PATH, bytes(2 << 20), PACKED, 413),
    "another time": (
        HOUR_PATH,
        json.dumps({"code": 200, "data": [{"a": {"name": "a", "window": {"start": "2026-01-01T00:00:00Z",
                   "end": "2026-01-01T01:00:00Z"}, "start": "2026-01-01T00:00:00Z", "end": "2026-01-01T01:00:00Z",
                   "cpuCost": 1, "totalCost": 1}}]}).encode(),
        {}, 400,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_hostile_answers(shared: tuple[Door, Receiver], case: str) -> None:
    door, _ = shared
    _, token = door.link()
    path, body, headers, status = ANSWERS[case]
    answer = door.push("PUT", path, token, data=body, headers=headers)
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert answer.json()["error"]["reason"]


def test_a_bomb_of_gzip_is_refused_without_being_held(door: Door) -> None:
    _, token = door.link()
    bomb = gzip.compress(bytes(300 << 20), 9)
    answer = door.push("PUT", HOUR_PATH, token, data=bomb, headers=PACKED)
    assert answer.status_code == 413 and "unpacks to more" in answer.json()["error"]["reason"]


def test_a_stranger_sends_no_body(door: Door) -> None:
    """Who shows no token is refused by the header; the connection goes on."""
    with requests.Session() as session:
        for _ in range(3):
            answer = session.post(door.url + WRITE, data=bytes(900_000), headers=METRICS, timeout=20)
            assert answer.status_code == 401
        assert session.get(f"{door.url}/healthz", timeout=20).status_code == 200


def test_a_promise_takes_no_room(door: Door, receiver: Receiver) -> None:
    """Connections that declare much and send nothing, and bodies to a method that takes none, are in nobody's way."""
    _, token = door.link()
    _, other = door.link()
    host, port = door.listener.address, door.listener.port
    idle = []
    for method, headers in (("POST", f"Authorization: Bearer {token}\r\n"), ("OPTIONS", ""), ("GET", "")):
        for _ in range(20):
            one = socket.create_connection((host, port), 5)
            one.sendall(
                f"{method} {WRITE} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 1048576\r\n\r\n".encode()
                + (b"" if method == "POST" else bytes(1_000_000))
            )
            idle.append(one)
    answer = door.push("POST", WRITE, other, data=packed(one_series()), headers=METRICS)
    assert answer.status_code == 200, answer.text
    for one in idle:
        one.close()
    assert until(lambda: not door.part("budget").taken.total())
    assert until(lambda: not door.part("in_flight"))


def test_strangers_take_no_places(door: Door, receiver: Receiver) -> None:
    """Whoever is refused is read to the end of what it announced, and counts for nothing meanwhile."""
    _, token = door.link()
    service = door.gateway.service
    service.max_in_flight = 20
    strangers = []
    for _ in range(60):
        one = socket.create_connection((door.listener.address, door.listener.port), 5)
        one.sendall(f"POST {WRITE} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
        strangers.append(one)
    assert until(lambda: service.in_flight == 0)
    answer = door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS)
    assert answer.status_code == 200, answer.text
    for one in strangers:
        one.close()
    assert until(lambda: service.in_flight == 0)


def test_connections_of_strangers_make_room(door: Door, receiver: Receiver) -> None:
    _, token = door.link()
    server = door.listener.server
    server.max_connections = 30
    strangers = [socket.create_connection((door.listener.address, door.listener.port), 5) for _ in range(30)]
    for one in strangers:
        one.sendall(f"POST {WRITE} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
    assert until(lambda: len(server._idle) == 30)
    assert door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS).status_code == 200
    for one in strangers:
        one.close()


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_metroculus_that_refuses_us_is_failing(
    stack: Stack, receiver: Any, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret was rotated on one side, or its store is full: /readyz says where to look."""
    door = Door(stack, receive_url=f"{receiver.url}/api/v1/receive", limits=LIMITS)
    _, token = door.link()
    calls = door.gateway.calls

    def refused(*_: Any, **__: Any) -> Any:
        raise error_about(status, "OM0005", "no")

    monkeypatch.setattr(calls.client, "check_push_token", refused)
    assert door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS).status_code == 503
    ready = requests.get(f"{door.url}/readyz", timeout=10).json()
    assert ready["dependencies"]["metroculus"] == "failing"
    door.close()


def test_half_of_the_room_is_left_to_others() -> None:
    budget = UploadBudget(80, 10)
    assert all(budget.take(10, "one") for _ in range(4)) and not budget.take(1, "one")
    assert budget.take(40, "two") and not budget.take(1, "three")
    budget.give_back(40, "two")
    assert budget.take(1, "three")


def test_no_account_takes_all_places(door: Door, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests that one account may have are behind a receiver that hangs: the next is told to come again."""
    monkeypatch.setattr(handlers, "REQUESTS_OF_AN_ACCOUNT", 16)
    hanging = door.stack.thread.call(asyncio.Event)
    _, token = door.link()
    _, other = door.link()

    class Hang(RequestHandler):
        async def post(self) -> None:
            await hanging.wait()
            self.finish("")

    url = door.stack.serve(Application([(r"/api/v1/receive", Hang)]))
    door.gateway.receiver._url = f"{url}/api/v1/receive"
    statuses: list[int] = []

    def send() -> None:
        statuses.append(door.push("POST", WRITE, token, data=packed(one_series()), headers=METRICS).status_code)

    threads = [threading.Thread(target=send) for _ in range(24)]
    for one in threads:
        one.start()
    assert until(lambda: len(statuses) == 8) and set(statuses) == {503}
    assert door.push("GET", "/push/v2/wanted", other).status_code == 200
    door.stack.thread.call(hanging.set)
    for one in threads:
        one.join()
    assert statuses.count(200) == 16
    assert until(lambda: not door.part("in_flight")), "a place is given back once its answer was taken"


def test_organizations_make_tokens(door: Door) -> None:
    """The REST API: linking answers the token, admins renew it, others may not, other flavours have none."""
    tenant = make_tenant(door.running, "one")
    path = f"/restapi/v2/organizations/{tenant.organization_id}/kubecost/clusters"
    linked = ask(door.running, tenant.tokens["admin"], path, "POST", json={"name": "far", "flavour": "push"})
    assert linked.status_code == 201, linked.text
    cluster, token = linked.json()["cluster_id"], linked.json()["push_token"]
    assert door.push("GET", "/push/v2/wanted", token).status_code == 200
    read = ask(door.running, tenant.tokens["admin"], f"{path}/{cluster}").json()
    assert "push_token" not in read and token not in json.dumps(read)
    for role, status in (("admin", 201), ("manager", 403), ("viewer", 403)):
        made = ask(door.running, tenant.tokens[role], f"{path}/{cluster}/push_token", "POST")
        assert made.status_code == status
        if status == 201:
            assert door.push("GET", "/push/v2/wanted", made.json()["push_token"]).status_code == 200
    stranger = make_tenant(door.running, "two")
    assert ask(door.running, stranger.tokens["admin"], f"{path}/{cluster}/push_token", "POST").status_code in (403, 404)
    _, url = door.stack.simulate(exact_world())
    other = ask(
        door.running, tenant.tokens["admin"], path, "POST", json={"name": "near", "flavour": "kubecost", "url": url}
    )
    assert "push_token" not in other.json()
    refused = ask(door.running, tenant.tokens["admin"], f"{path}/{other.json()['cluster_id']}/push_token", "POST")
    assert refused.status_code == 409 and refused.json()["error"]["error_code"] == "OE0917"
    changed = ask(door.running, tenant.tokens["admin"], f"{path}/{other.json()['cluster_id']}", "PATCH",
                  json={"flavour": "push"})  # fmt: skip
    assert changed.json()["push_token"]
