"""The two doors: ``/storage/api/v2/write`` for metrics, ``/push/v2`` for hours."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, Literal
from weakref import WeakValueDictionary

from msgspec import Struct
from prometheus_client import Counter as Count

from diproxy.diproxy_server.calls import Calls
from diproxy.diproxy_server.errors import FOREIGN, INVALID, MEDIA_TYPE, OVERLOADED, TOO_LARGE, TOO_MANY, UNAUTHORIZED
from diproxy.diproxy_server.gate import TokenGate, token_of
from diproxy.diproxy_server.receiver import Forwarded, Receiver
from diproxy.diproxy_server.remote_write import Limits, Refused, check
from diproxy.diproxy_server.snappy import NotSnappy, unpack, unpacked_size
from optscale_client.metroculus_client import structs
from tools.tornado_service.application import ServiceHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import Operation, operation
from tools.tornado_service.params import Currency, Stamp
from tools.tornado_service.slowdown import Slowdown
from tools.tornado_service.uploads import FULL_SECONDS, UploadHandler

REQUESTS_OF_AN_ACCOUNT = 100
"""At once; the next is told to come again."""
LOOP_BYTES = 32 << 10
"""Up to this unpacked size a body is checked on the loop."""
_CONTENT_TYPE = re.compile(
    r"application/x-protobuf\s*(;\s*proto\s*=\s*\"?prometheus\.WriteRequest\"?\s*)?", re.IGNORECASE
)


class Needs(Enum):
    """What a caller must have."""

    PUSH_TOKEN = "push token"  # nosec B105  (the permission's name)


class GatewayHandler(ServiceHandler):
    """Knows whose token is shown before anything is read."""

    gate: TokenGate
    slowdown: Slowdown
    in_flight: Counter[str]
    """Requests of each account that are being answered."""
    account = ""

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        key = f"address {self.address}"
        slowed = ApiError(TOO_MANY, retry_after=self.slowdown.retry_after)
        try:
            token = token_of(self.request.headers)
            if self.slowdown.crowded(key) and not self.gate.knows(token):
                raise slowed
            account = await self.gate.account_of(token, self.request_id)
        except ApiError as refusal:
            if refusal.code is UNAUTHORIZED and (self.slowdown.crowded(key) or await self.slowdown.failed(key)):
                raise slowed from None
            raise
        named = [one.strip() for one in self.request.headers.get_list("Cloud-Account-Id")]
        if any(one and one.lower() != account for one in named):
            raise ApiError(FOREIGN, params=["Cloud-Account-Id"])
        if self.in_flight[account] >= REQUESTS_OF_AN_ACCOUNT:
            raise ApiError(OVERLOADED, "too many requests of this account at once", retry_after=FULL_SECONDS)
        self.account = account
        self.in_flight[account] += 1

    def _leave(self) -> None:
        super()._leave()
        if self.account:
            self.in_flight[self.account] -= 1
            if not self.in_flight[self.account]:
                del self.in_flight[self.account]
            self.account = ""

    @property
    def uploader(self) -> str:
        return self.account

    @property
    def actor(self) -> dict[str, str]:
        return {"kind": "push token", "cloud_account_id": self.account} if self.account else {"kind": "anonymous"}


class RemoteWrite(UploadHandler, GatewayHandler):
    """Metrics by Prometheus remote write 1.0, handed on to Thanos Receive under the account's tenant."""

    receiver: Receiver
    limits: Limits
    tenant_label: str
    most_unpacked: int
    samples: Count
    checkers: ThreadPoolExecutor
    checking: WeakValueDictionary[str, asyncio.Lock]
    """By account, held while a body of it is checked on a thread."""

    @operation(needs=Needs.PUSH_TOKEN, answer=str, content="text/plain", raw_body=True, also=(204,))
    async def post(self, query: Struct, body: bytes) -> Forwarded:
        self._check_headers()
        written = await self._checked(body)
        answer = await self.receiver.write(self.account, body, self.request_id)
        if answer.status // 100 == 2:
            self.samples.inc(written)
        return answer

    def _check_headers(self) -> None:
        """Raises: ApiError: 415, so that a sender of another version falls back."""
        headers = self.request.headers
        encoding = headers.get("Content-Encoding", "").strip().lower()
        if encoding != "snappy" or not _CONTENT_TYPE.fullmatch(headers.get("Content-Type", "").strip()):
            raise ApiError(MEDIA_TYPE, params=["Content-Type", "Content-Encoding"])

    async def _checked(self, body: bytes) -> int:
        """How many samples a body holds.

        Raises:
            ApiError
        """
        try:
            size = unpacked_size(body)
        except NotSnappy as problem:
            raise ApiError(INVALID, f"body: {problem}", ["body"]) from None
        if size > self.most_unpacked:
            raise ApiError(TOO_LARGE, f"body: unpacks to more than {self.most_unpacked >> 20} MiB", ["body"])
        if not self.budget.take(size, self.account):
            raise ApiError(OVERLOADED, "too much is being received; come again", retry_after=FULL_SECONDS)

        def counted() -> int:
            return check(unpack(body), self.limits, self.tenant_label).samples

        who = self.account
        try:
            if size <= LOOP_BYTES:
                return counted()
            async with self.checking.setdefault(who, asyncio.Lock()):  # one of each account: nobody has all threads
                return await asyncio.get_running_loop().run_in_executor(self.checkers, counted)
        except (Refused, NotSnappy) as problem:
            code = TOO_LARGE if isinstance(problem, Refused) and problem.too_large else INVALID
            raise ApiError(code, f"body: {problem}", ["body"]) from None
        finally:
            self.budget.give_back(size, who)

    async def send(self, value: Any) -> None:
        if not isinstance(value, Forwarded):
            await super().send(value)
            return
        self.set_status(value.status)
        for name, text in value.headers.items():
            self.set_header(name, text)
        if value.status == 204:
            self.clear_header("Content-Type")
            self.finish()
            return
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(value.text)


class AnswerQuery(Struct, frozen=True):
    kind: Literal["allocation", "assets"]
    start: Stamp
    end: Stamp
    step: Literal["hour", "day"]
    asked_at: Stamp | None = None
    currency: Currency | None = None


class Wanted(GatewayHandler):
    """What the cluster's agent is to ask its Kubecost or OpenCost for now, the newest first."""

    calls: Calls

    @operation(needs=Needs.PUSH_TOKEN, answer=tuple[structs.WantedAnswer, ...])
    async def get(self, query: Struct) -> tuple[structs.WantedAnswer, ...]:
        asked = (self.account, self.calls.client.get_push_wanted, self.account)
        return (await self.calls.call(*asked, request_id=self.request_id, shape=structs.Wanted)).wanted


class Answers(UploadHandler, GatewayHandler):
    """An answer of the cluster's own Kubecost or OpenCost, as it came; kept once this answers."""

    calls: Calls

    @operation(
        needs=Needs.PUSH_TOKEN, query=AnswerQuery, answer=structs.PushReceipt, status=202, also=(200,), raw_body=True
    )
    async def put(self, query: AnswerQuery, body: bytes) -> structs.PushReceipt:
        headers = self.request.headers
        receipt = await self.calls.call(
            self.account,
            self.calls.client.put_push_answer,
            self.account,
            query.kind,
            query.start,
            query.end,
            query.step,
            body,
            asked_at=query.asked_at,
            currency=query.currency,
            digest=headers.get("Digest"),
            encoding=headers.get("Content-Encoding", "identity").strip().lower(),
            request_id=self.request_id,
            shape=structs.PushReceipt,
        )
        self.set_status(202 if receipt.state == "kept" else 200)
        return receipt
