"""Sends alerts on: to an Alertmanager, which is told again and again, and to a webhook, each transition in order."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec import Struct

from metroculus.config import AlertConfig
from metroculus.metroculus_worker.metrics import WorkerMetrics
from metroculus.storage.documents import Kind
from metroculus.storage.engine import StoreError
from metroculus.storage.store import Store
from metroculus.watch.alerts import SEVERITIES, Alert
from tools.http_client import CLIENT_FAILURES, HttpClient, TlsContext, post
from tools.window import DAY, iso

log = logging.getLogger("alerts")

Target = Literal["alertmanager", "webhook"]
ALERTMANAGER: Target = "alertmanager"
WEBHOOK: Target = "webhook"
REPEAT_SECONDS = 60
"""Between two times that an Alertmanager is told what fires."""
HELD_SECONDS = DAY
"""For so long an Alertmanager holds what it was told last, if nobody tells it any more: a worker that is away resolves
nothing."""
ALERTS_AT_ONCE = 200
SENT_AT_ONCE = 4
CALL_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 5.0, 300.0
SIGNATURE = "X-Metroculus-Signature"


class _Mark(Struct, frozen=True):
    """Up to which transition of an alert a target has been told."""

    transition: int


_ALERT = msgspec.json.Decoder(Alert)
_MARK = msgspec.json.Decoder(_Mark)


class _Answer(Struct, frozen=True):
    """What a target said to a post; ``refusal`` is why it was not taken, None where it was."""

    refusal: str | None
    target_failed: bool = False
    """Whether that is the target's fault, and another body would fare no better."""


class Owed(Struct, frozen=True):
    """One transition of an organization's alert that is still to be sent."""

    organization: str
    alert: Alert


class Notifier:
    """Delivers at least once: what was sent is noted afterwards. A kill between the two sends it again, with its key.

    Args:
        owned: whether this worker evaluates an organization's alerts, and so sends them; asked before each is sent.
    """

    def __init__(
        self,
        store: Store,
        config: AlertConfig,
        metrics: WorkerMetrics,
        owned: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._config = config
        self._metrics = metrics
        self._owned = owned
        self._clock = clock
        self._client = HttpClient(force_instance=True, max_clients=SENT_AT_ONCE + 1)
        self._tls = TlsContext(config.ca)
        self._posting, self._telling = asyncio.Lock(), asyncio.Lock()
        self._repeated_at = 0.0
        self._tries: dict[str, int] = {}
        """Times in a row that a target, or one alert, was told in vain."""
        self._again_at: dict[str, float] = {}

    async def deliver(self) -> None:
        """Send all that is owed; what cannot be sent is owed on. Neither target waits for the other."""
        await asyncio.gather(
            self._unless_running(self._posting, self._to_webhook),
            self._unless_running(self._telling, self._to_alertmanager),
        )

    async def _unless_running(self, lock: asyncio.Lock, send: Callable[[], Awaitable[None]]) -> None:
        if lock.locked():
            return
        async with lock:
            try:
                await send()
            except StoreError as failure:
                log.info("alerts cannot be read: %s", failure)

    async def _newest(self, target: Target) -> tuple[list[Owed], dict[str, int]]:
        """The newest version of each alert that is this worker's to send, and up to which a target was told each."""
        marks: Kind = "webhook_sent" if target == WEBHOOK else "alertmanager_sent"
        newest = await self._store.run(self._store.documents.of_all, ("alert", marks))
        sent = {one.name: _MARK.decode(one.body).transition for one in newest if one.kind == marks}
        alerts = [
            Owed(one.organization, _ALERT.decode(one.body))
            for one in newest
            if one.kind == "alert" and self._owned(one.organization)
        ]
        return alerts, sent

    def close(self) -> None:
        self._client.close()

    async def _to_webhook(self) -> None:
        """Each alert's transitions one after the other; those of others go on where one is refused."""
        if self._config.webhook_url is None:
            return
        newest, sent = await self._newest(WEBHOOK)
        behind: dict[str, set[str]] = {}
        for one in newest:
            if WEBHOOK in one.alert.owed and one.alert.transition > sent.get(one.alert.id, 0):
                behind.setdefault(one.organization, set()).add(one.alert.id)
        by_alert: dict[str, dict[int, Owed]] = {}
        for organization, names in behind.items():
            versions = await self._store.run(self._store.documents.versions, organization, "alert", names)
            for alert in (_ALERT.decode(one.body) for one in versions):
                if WEBHOOK in alert.owed and alert.transition > sent.get(alert.id, 0):
                    by_alert.setdefault(alert.id, {}).setdefault(alert.transition, Owed(organization, alert))
        self._metrics.owes(WEBHOOK, sum(map(len, by_alert.values())))
        places = asyncio.Semaphore(SENT_AT_ONCE)

        async def send(transitions: Sequence[Owed]) -> None:
            async with places:
                for one in transitions:
                    if not await self._post_transition(one):
                        return
                    await self._note([one], WEBHOOK)

        in_order = [[by_number[number] for number in sorted(by_number)] for by_number in by_alert.values()]
        answers = await asyncio.gather(*map(send, in_order), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def _post_transition(self, one: Owed) -> bool:
        alert, url = one.alert, self._config.webhook_url
        assert url is not None
        if not self._owned(one.organization) or self._in_backoff(WEBHOOK) or self._in_backoff(alert.id):
            return False
        body = json.dumps(self._told(one)).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": alert.key}
        if self._config.webhook_secret is not None:
            headers[SIGNATURE] = signature(self._config.webhook_secret, int(self._clock()), body)
        answer = await self._send(url, body, headers)
        self._record(WEBHOOK, answer.refusal if answer.target_failed else None)
        self._record(alert.id, None if answer.target_failed else answer.refusal)
        return answer.refusal is None

    def _told(self, one: Owed) -> dict[str, Any]:
        alert = one.alert
        return {
            "event": "fired" if alert.state == "firing" else "resolved",
            "idempotency_key": alert.key,
            "organization_id": one.organization,
            "alert_id": alert.id,
            "transition": alert.transition,
            "kind": alert.kind,
            "severity": SEVERITIES[alert.kind],
            "cloud_account_id": alert.cloud_account_id,
            "budget_id": alert.budget_id,
            "at": iso(alert.changed_at),
            "fired_at": iso(alert.fired_at),
            "summary": alert.summary,
            "resolved_because": alert.resolved_because if alert.state == "resolved" else None,
            "figures": alert.figures,
            "causes": msgspec.to_builtins(alert.causes),
            "link": link(self._config.public_url, one),
        }

    async def _to_alertmanager(self) -> None:
        """All that fires, again before it ends by itself; what is over, until it was taken once."""
        base, now = self._config.alertmanager_url, self._clock()
        if base is None:
            return
        newest, sent = await self._newest(ALERTMANAGER)
        firing = [one for one in newest if one.alert.state == "firing"]
        over = [one for one in newest if one.alert.state == "resolved" and ALERTMANAGER in one.alert.owed]

        def is_news(one: Owed) -> bool:
            return one.alert.transition > sent.get(one.alert.id, 0)

        over = [one for one in over if is_news(one)]
        owed = len(over) + sum(map(is_news, firing))
        self._metrics.owes(ALERTMANAGER, owed)
        if self._in_backoff(ALERTMANAGER) or (
            not owed and self._repeated_at <= now < self._repeated_at + REPEAT_SECONDS
        ):
            return
        told = [*over, *firing]
        parts = [told[first : first + ALERTS_AT_ONCE] for first in range(0, len(told), ALERTS_AT_ONCE)]
        while parts:
            part = [one for one in parts.pop(0) if self._owned(one.organization) and not self._in_backoff(one.alert.id)]
            if not part:
                continue
            body = json.dumps([self._as_alertmanager_has_it(one, int(now)) for one in part]).encode()
            headers = {"Content-Type": "application/json"}
            answer = await self._send(f"{base}/api/v2/alerts", body, headers)
            if answer.refusal is None:
                news = [one for one in part if is_news(one)]
                if news:
                    await self._note(news, ALERTMANAGER)
                self._metrics.owes(ALERTMANAGER, owed := owed - len(news))
            elif answer.target_failed:
                self._record(ALERTMANAGER, answer.refusal)
                return
            elif len(part) == 1:
                self._record(part[0].alert.id, answer.refusal)
            else:  # one of them is refused: the others are told without it
                parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        self._record(ALERTMANAGER, None)
        self._repeated_at = now

    def _as_alertmanager_has_it(self, one: Owed, now: int) -> dict[str, Any]:
        """Labels are ids and words of ours alone: they are what makes an alert the same, and what routes match."""
        alert = one.alert
        labels = {
            "alertname": "Kubecost" + alert.kind.title().replace("_", ""),
            "alert_id": alert.id,
            "kind": alert.kind,
            "severity": SEVERITIES[alert.kind],
            "organization_id": one.organization,
        }
        if alert.cloud_account_id is not None:
            labels["cloud_account_id"] = alert.cloud_account_id
        if alert.budget_id is not None:
            labels["budget_id"] = alert.budget_id
        annotations = {"summary": alert.summary} | {
            name: json.dumps(value) for name, value in alert.figures.items() if value is not None
        }
        if alert.causes:
            annotations["causes"] = json.dumps([[cause.namespace, round(cause.share, 4)] for cause in alert.causes])
        return {
            "labels": labels,
            "annotations": annotations,
            "startsAt": iso(min(alert.fired_at, alert.changed_at, now)),  # an end before it is refused
            "endsAt": iso(min(alert.changed_at, now) if alert.state == "resolved" else now + HELD_SECONDS),
            **({"generatorURL": found} if (found := link(self._config.public_url, one)) else {}),
        }

    async def _send(self, url: str, body: bytes, headers: dict[str, str]) -> _Answer:
        """Post once. Of a failure its kind is all that is told: the text may hold the URL, which may be a secret."""
        try:
            status, _ = await post(self._client, url, body, headers, CALL_SECONDS, self._tls)
        except CLIENT_FAILURES as failure:
            return _Answer(type(failure).__name__, target_failed=True)
        if 200 <= status < 300:
            return _Answer(None)
        return _Answer(f"status {status}", target_failed=not 400 <= status < 500 or status == 429)

    def _in_backoff(self, name: str) -> bool:
        """Whether a target or an alert failed a moment ago; a later moment comes from a clock that was set back."""
        return self._clock() < self._again_at.get(name, 0.0) <= self._clock() + LAST_PAUSE_SECONDS

    def _record(self, name: str, refusal: str | None) -> None:
        """Leave a target or an alert alone for a while after a failure, longer each time."""
        if refusal is None:
            self._tries.pop(name, None)
            self._again_at.pop(name, None)
            return
        tries = self._tries[name] = self._tries.get(name, 0) + 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(tries - 1, 16), LAST_PAUSE_SECONDS)
        self._again_at[name] = self._clock() + pause * random.uniform(0.5, 1.0)
        log.warning("an alert could not be sent (%s), try %d: %s", name, tries, refusal)

    async def _note(self, several: Sequence[Owed], target: Target) -> None:
        marks: Kind = "webhook_sent" if target == WEBHOOK else "alertmanager_sent"
        bodies: dict[str, dict[str, str]] = {}
        for one in several:
            mark = msgspec.json.encode(_Mark(one.alert.transition)).decode()
            bodies.setdefault(one.organization, {})[one.alert.id] = mark
        for organization, by_name in bodies.items():
            await self._store.run(self._store.documents.put_all, organization, marks, by_name)


def signature(secret: str, at: int, body: bytes) -> str:
    """``t=…,v1=…``: HMAC-SHA256 of the time, a dot and the body, so that an old call is known as one."""
    signed = hmac.new(secret.encode(), f"{at}.".encode() + body, sha256).hexdigest()
    return f"t={at},v1={signed}"


def link(public_url: str | None, one: Owed) -> str | None:
    """Where the figures of an alert can be read again; None where nobody said where users reach the REST API."""
    alert = one.alert
    if public_url is None or (alert.cloud_account_id is None and alert.budget_id is None):
        return None
    if alert.kind == "budget":
        return f"{public_url}/restapi/v2/organizations/{one.organization}/kubecost/budgets/{alert.budget_id}"
    view = "anomalies?window=7d" if alert.kind == "cost_spike" else "costs?window=7d"
    return f"{public_url}/restapi/v2/kubecost/clusters/{alert.cloud_account_id}/{view}"
