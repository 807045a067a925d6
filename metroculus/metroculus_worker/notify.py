"""Sends alerts on: to an Alertmanager, which is told again and again, and to a webhook, each transition in order."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct
from tornado.httpclient import HTTPRequest

from metroculus.config import AlertConfig
from metroculus.metroculus_worker.metrics import WorkerMetrics
from metroculus.storage.engine import StoreError
from metroculus.storage.store import Store
from metroculus.watch.alerts import SEVERITIES, Alert
from tools.http_client import CLIENT_FAILURES, HttpClient, TlsContext
from tools.window import DAY, iso

log = logging.getLogger("alerts")

ALERTMANAGER, WEBHOOK = "alertmanager", "webhook"
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


class Sent(Struct, frozen=True, kw_only=True):
    """Up to which transition of an alert each target has been told."""

    webhook: int = 0
    alertmanager: int = 0


_ALERT = msgspec.json.Decoder(Alert)
_SENT = msgspec.json.Decoder(Sent)


class Owed(Struct, frozen=True):
    """One transition of an organization's alert that is still to be sent."""

    organization: str
    alert: Alert


class Notifier:
    """Delivers at least once: what was sent is noted afterwards. A kill between the two sends it again, with its key.

    Args:
        owned: whether this worker evaluates an organization's alerts, and so sends them.
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
        self._running = asyncio.Lock()
        self._repeated_at = 0.0
        self._tries: dict[str, int] = {}
        """Times in a row that an alert, or the Alertmanager, was told in vain."""
        self._again_at: dict[str, float] = {}

    async def deliver(self) -> None:
        """Send all that is owed; what cannot be sent is owed on."""
        if self._running.locked():
            return
        async with self._running:
            try:
                newest = await self._store.run(self._store.documents.of_all, ("alert", "alert_sent"))
                sent = {one.name: _SENT.decode(one.body) for one in newest if one.kind == "alert_sent"}
                alerts = [
                    Owed(one.organization, _ALERT.decode(one.body))
                    for one in newest
                    if one.kind == "alert" and self._owned(one.organization)
                ]
                await self._to_webhook(alerts, sent)
                await self._to_alertmanager(alerts, sent)
            except StoreError as failure:
                log.info("alerts cannot be read: %s", failure)

    def close(self) -> None:
        self._client.close()

    async def _to_webhook(self, newest: Sequence[Owed], sent: dict[str, Sent]) -> None:
        """Each alert's transitions one after the other; those of others go on where one is refused."""
        if self._config.webhook_url is None:
            return
        behind: dict[str, set[str]] = {}
        for one in newest:
            if WEBHOOK in one.alert.owed and one.alert.transition > sent.get(one.alert.id, Sent()).webhook:
                behind.setdefault(one.organization, set()).add(one.alert.id)
        by_alert: dict[str, dict[int, Owed]] = {}
        for organization, names in behind.items():
            versions = await self._store.run(self._store.documents.versions, organization, "alert", names)
            for alert in (_ALERT.decode(one.body) for one in versions):
                if WEBHOOK in alert.owed and alert.transition > sent.get(alert.id, Sent()).webhook:
                    by_alert.setdefault(alert.id, {}).setdefault(alert.transition, Owed(organization, alert))
        self._metrics.owes(WEBHOOK, sum(map(len, by_alert.values())))
        places = asyncio.Semaphore(SENT_AT_ONCE)

        async def send(transitions: Iterable[Owed]) -> None:
            async with places:
                for one in transitions:
                    if not await self._post_transition(one):
                        return
                    await self._note(one, sent, WEBHOOK)

        await asyncio.gather(*(send(by_number[n] for n in sorted(by_number)) for by_number in by_alert.values()))

    async def _post_transition(self, one: Owed) -> bool:
        alert, url = one.alert, self._config.webhook_url
        assert url is not None
        body = json.dumps(self._told(one)).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": alert.key}
        if self._config.webhook_secret is not None:
            headers[SIGNATURE] = signature(self._config.webhook_secret, int(self._clock()), body)
        return await self._post(alert.id, url, body, headers)

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

    async def _to_alertmanager(self, newest: Sequence[Owed], sent: dict[str, Sent]) -> None:
        """All that fires, again before it ends by itself; what is over, until it was taken once."""
        over = [
            one
            for one in newest
            if one.alert.state == "resolved" and one.alert.transition > sent.get(one.alert.id, Sent()).alertmanager
            and ALERTMANAGER in one.alert.owed
        ]  # fmt: skip
        base, now = self._config.alertmanager_url, self._clock()
        if base is None:
            return
        self._metrics.owes(ALERTMANAGER, len(over))
        firing = [one for one in newest if one.alert.state == "firing"]
        fresh = [one for one in firing if one.alert.transition > sent.get(one.alert.id, Sent()).alertmanager]
        if not (over or fresh) and self._repeated_at <= now < self._repeated_at + REPEAT_SECONDS:
            return
        told = [*firing, *over]
        for part in (told[first : first + ALERTS_AT_ONCE] for first in range(0, len(told), ALERTS_AT_ONCE)):
            body = json.dumps([self._as_alertmanager_has_it(one, int(now)) for one in part]).encode()
            headers = {"Content-Type": "application/json"}
            if not await self._post(ALERTMANAGER, f"{base}/api/v2/alerts", body, headers):
                return
            for one in part:
                if one.alert.transition > sent.get(one.alert.id, Sent()).alertmanager:
                    await self._note(one, sent, ALERTMANAGER)
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
            name: json.dumps(value) if isinstance(value, str) else f"{value:g}"
            for name, value in alert.figures.items()
            if value is not None
        }
        if alert.causes:
            annotations["causes"] = json.dumps([[cause.namespace, round(cause.share, 4)] for cause in alert.causes])
        return {
            "labels": labels,
            "annotations": annotations,
            "startsAt": iso(alert.fired_at),
            "endsAt": iso(alert.changed_at if alert.state == "resolved" else now + HELD_SECONDS),
            **({"generatorURL": found} if (found := link(self._config.public_url, one)) else {}),
        }

    async def _post(self, name: str, url: str, body: bytes, headers: dict[str, str]) -> bool:
        """Whether it was taken; after a failure it is not tried again for a while."""
        if self._clock() < self._again_at.get(name, 0.0) <= self._clock() + LAST_PAUSE_SECONDS:
            return False
        why = await self._refused(url, body, headers)
        if why is None:
            self._tries.pop(name, None)
            self._again_at.pop(name, None)
            return True
        tries = self._tries[name] = self._tries.get(name, 0) + 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(tries - 1, 16), LAST_PAUSE_SECONDS)
        self._again_at[name] = self._clock() + pause * random.uniform(0.5, 1.0)
        log.warning("an alert could not be sent (%s), try %d: %s", name, tries, why)
        return False

    async def _refused(self, url: str, body: bytes, headers: dict[str, str]) -> str | None:
        """Why a post was not taken; None where it was. What failures say may hold the URL, which may be a secret."""
        try:
            request = HTTPRequest(
                url, method="POST", body=body, headers=headers, follow_redirects=False,
                connect_timeout=CALL_SECONDS, request_timeout=CALL_SECONDS,
                ssl_options=self._tls.context() if url.startswith("https:") else None,
            )  # fmt: skip
            async with asyncio.timeout(CALL_SECONDS):
                answer = await self._client.fetch(request, raise_error=False)
        except CLIENT_FAILURES as failure:
            return type(failure).__name__
        return None if 200 <= answer.code < 300 else f"status {answer.code}"

    async def _note(self, one: Owed, sent: dict[str, Sent], target: str) -> None:
        before = sent.get(one.alert.id, Sent())
        after = msgspec.structs.replace(before, **{target: one.alert.transition})
        sent[one.alert.id] = after
        body = msgspec.json.encode(after).decode()
        await self._store.run(self._store.documents.put, one.organization, "alert_sent", one.alert.id, body)


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
