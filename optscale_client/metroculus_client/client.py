"""The SDK of Metroculus: one method an endpoint, ``(status_code, body)`` back. Needs ``requests`` and nothing else."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import quote
from uuid import uuid4

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from optscale_client.metroculus_client.errors import (
    DeadlineExceeded,
    MetroculusError,
    ServiceUnavailable,
    error_of,
)

Answer: TypeAlias = tuple[int, dict[str, Any]]
Values: TypeAlias = str | int | float | Iterable[str] | None

REPEATED = frozenset({"filter"})
"""Parameters that stand once for each value: a value may have a comma in it."""

DEFAULT_TIMEOUT_SECONDS = 35.0
CONNECT_SECONDS = 3.0
CHUNK_BYTES = 1 << 16
MAX_BODY_BYTES = 256 << 20
TOO_LARGE = f"the answer is larger than {MAX_BODY_BYTES >> 20} MiB"


def _below(collection: str, name: str) -> str:
    """The path of one thing; a name cannot lead to another path."""
    return f"{collection}/{quote(name, safe='')}"


class Validator:
    """Tells whether an answer is still what it was.

    Given to a call, it learns the answer's tag; given to the same call again, an answer that has not changed is
    ``(304, {})``.
    """

    def __init__(self, etag: str | None = None) -> None:
        self.etag = etag
        self.fresh_for = 0.0
        """Seconds for which the answer is as good as a new one."""
        self.age = 0.0
        """Seconds since the answer's sources answered."""

    def learn(self, headers: Mapping[str, str]) -> None:
        self.etag = headers.get("ETag", self.etag)
        fresh = re.search(r"\bmax-age=([0-9]{1,9})\b", headers.get("Cache-Control", ""))
        self.fresh_for = float(fresh[1]) if fresh else 0.0
        age = headers.get("Age", "")
        self.age = float(age) if re.fullmatch(r"[0-9]{1,9}", age) else 0.0


class Client:
    """A client of one Metroculus.

    Args:
        address, port: where it is; or ``url`` whole.
        http_provider: anything with the ``request`` of ``requests.Session``, in place of a session of our own.
        secret: the cluster secret; settable later.
        verify: as ``requests``' own, passed with every call so that no environment variable overrides it.
        timeout: seconds for a whole call, connecting and reading together.

    Raises:
        MetroculusError: from every method, a ``requests.HTTPError``; its subclasses say what kind.
    """

    def __init__(  # nosec B107  (empty is none)
        self,
        address: str | None = None,
        port: int | str | None = None,
        api_version: str = "v2",
        url: str | None = None,
        http_provider: Any = None,
        secret: str = "",
        verify: bool | str = True,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        if url is None:
            url = f"http://{address or '127.0.0.1'}:{port or 8969}"
        self._base = f"{url.rstrip('/')}/metroculus/{api_version}"
        self.secret = secret
        self.verify = verify
        self.timeout = timeout
        self._owns_session = http_provider is None
        self._http = http_provider if http_provider is not None else _session()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._owns_session:
            self._http.close()

    def get_kubecost_metrics(
        self,
        cloud_account_id: str,
        start_date: int | None = None,
        end_date: int | None = None,
        metrics: Iterable[str] | None = None,
        *,
        window: str | None = None,
        timezone: str | None = None,
        step: str | int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        validator: Validator | None = None,
    ) -> Answer:
        """The account's series of some cost metrics, all of them when none are named."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone) | {"metrics": metrics, "step": step}
        return self._call("GET", "kubecost_metrics", query, request_id=request_id, timeout=timeout, validator=validator)

    def get_k8s_costs(
        self,
        cloud_account_id: Iterable[str],
        start_date: int | None = None,
        end_date: int | None = None,
        *,
        k8s_namespace: Values = None,
        k8s_node: Values = None,
        k8s_service: Values = None,
        filter: Values = None,
        window: str | None = None,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """The statements of many clusters, each with why it failed where it did."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone) | {
            "k8s_namespace": k8s_namespace,
            "k8s_node": k8s_node,
            "k8s_service": k8s_service,
            "filter": filter,
        }
        return self._call("GET", "k8s_costs", query, request_id=request_id, timeout=timeout)

    def get_kubecost_cluster_costs(
        self,
        cloud_account_id: str,
        start_date: int | None = None,
        end_date: int | None = None,
        detail_level: str | None = None,
        aggregate: Values = None,
        namespace: str | None = None,
        idle: str | None = None,
        *,
        step: str | None = None,
        groups: int | None = None,
        k8s_namespace: Values = None,
        k8s_node: Values = None,
        k8s_service: Values = None,
        filter: Values = None,
        window: str | None = None,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        validator: Validator | None = None,
    ) -> Answer:
        """One statement of what a cluster cost."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone) | {
            "detail_level": detail_level,
            "aggregate": aggregate,
            "namespace": namespace,
            "idle": idle,
            "step": step,
            "groups": groups,
            "k8s_namespace": k8s_namespace,
            "k8s_node": k8s_node,
            "k8s_service": k8s_service,
            "filter": filter,
        }
        return self._call(
            "GET", "kubecost_cluster_costs", query, request_id=request_id, timeout=timeout, validator=validator
        )

    def get_kubecost_savings(
        self,
        cloud_account_id: str,
        start_date: int | None = None,
        end_date: int | None = None,
        target_utilization: float | None = None,
        *,
        window: str | None = None,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        validator: Validator | None = None,
    ) -> Answer:
        """What a cluster could save, USD a month."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone) | {
            "target_utilization": target_utilization
        }
        return self._call("GET", "kubecost_savings", query, request_id=request_id, timeout=timeout, validator=validator)

    def get_kubecost_assets(
        self,
        cloud_account_id: str,
        start_date: int | None = None,
        end_date: int | None = None,
        asset_type: str | None = None,
        *,
        window: str | None = None,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        validator: Validator | None = None,
    ) -> Answer:
        """Nodes, disks, load balancers, network and management, with what each cost."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone) | {"asset_type": asset_type}
        return self._call("GET", "kubecost_assets", query, request_id=request_id, timeout=timeout, validator=validator)

    def get_k8s_metadata(
        self,
        cloud_account_id: str,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        validator: Validator | None = None,
    ) -> Answer:
        """Quotas of namespaces, requests and limits of workloads, specifications of nodes."""
        query = {"cloud_account_id": cloud_account_id}
        return self._call("GET", "k8s_metadata", query, request_id=request_id, timeout=timeout, validator=validator)

    def get_k8s_expenses(
        self,
        cloud_account_id: Values,
        start_date: int | None = None,
        end_date: int | None = None,
        group_by: Values = None,
        k8s_namespace: Values = None,
        k8s_node: Values = None,
        k8s_service: Values = None,
        *,
        filter: Values = None,
        limit: int | None = None,
        offset: int | None = None,
        sort: str | None = None,
        order: str | None = None,
        window: str | None = None,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Stored hours of one cluster or several, summed by ``group_by``; with ``limit`` one page of them."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone) | {
            "group_by": group_by,
            "k8s_namespace": k8s_namespace,
            "k8s_node": k8s_node,
            "k8s_service": k8s_service,
            "filter": filter,
            "limit": limit,
            "offset": offset,
            "sort": sort,
            "order": order,
        }
        return self._call("GET", "k8s_expenses", query, request_id=request_id, timeout=timeout)

    def get_k8s_expense_rows(
        self,
        cloud_account_id: Values,
        start_date: int | None = None,
        end_date: int | None = None,
        group_by: Values = None,
        k8s_namespace: Values = None,
        k8s_node: Values = None,
        k8s_service: Values = None,
        *,
        filter: Values = None,
        limit: int | None = None,
        cursor: str | None = None,
        window: str | None = None,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """A page of stored hours, summed by ``group_by``, of what was committed when the first page was asked for."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone) | {
            "group_by": group_by,
            "k8s_namespace": k8s_namespace,
            "k8s_node": k8s_node,
            "k8s_service": k8s_service,
            "filter": filter,
            "limit": limit,
            "cursor": cursor,
        }
        return self._call("GET", "k8s_expense_rows", query, request_id=request_id, timeout=timeout)

    def expense_pages(
        self,
        cloud_account_id: Values,
        start_date: int | None = None,
        end_date: int | None = None,
        group_by: Values = None,
        *,
        window: str | None = None,
        **kwargs: Any,
    ) -> Iterator[dict[str, Any]]:
        """Every page of ``get_k8s_expense_rows``, which takes the same arguments, in order.

        They are pages of one list: an hour that is stored again meanwhile changes nothing of it. Where what the list
        began with is not stored any more, a ``MetroculusError`` with the code ``OM0042`` ends it.
        """
        cursor: str | None = None
        while True:
            asked = (cloud_account_id, start_date, end_date, group_by)
            _, page = self.get_k8s_expense_rows(*asked, window=window, cursor=cursor, **kwargs)
            yield page
            cursor = page["next_cursor"]
            if cursor is None:
                return
            if page["whole"] is not None:  # a window such as "today" moves on meanwhile; the list does not
                window, start_date, end_date = None, page["whole"]["start_date"], page["whole"]["end_date"]

    def get_k8s_monthly(
        self,
        cloud_account_id: str,
        months: int | None = None,
        *,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Stored months of one cluster, and where the running one is going."""
        query = {"cloud_account_id": cloud_account_id, "months": months, "timezone": timezone}
        return self._call("GET", "k8s_monthly", query, request_id=request_id, timeout=timeout)

    def get_k8s_months(
        self,
        cloud_account_id: Iterable[str],
        months: int | None = None,
        *,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """``get_k8s_monthly`` of many clusters at once: each with its own ``months``, or ``error``."""
        query = {"cloud_account_id": cloud_account_id, "months": months, "timezone": timezone}
        return self._call("GET", "k8s_months", query, request_id=request_id, timeout=timeout)

    def create_backfill(
        self,
        cloud_account_id: str,
        start_date: int | str,
        end_date: int | str,
        parallel: int | None = None,
        repair: str | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Ask for a back-fill; with ``repair``, the reason, closed hours are read again. Dates as Unix or RFC 3339."""
        body = {"cloud_account_id": cloud_account_id, "start_date": start_date, "end_date": end_date}
        more = {"parallel": parallel, "repair": repair}
        body |= {name: value for name, value in more.items() if value is not None}
        return self._call("POST", "backfills", {}, body, request_id=request_id, timeout=timeout)

    def get_backfill(self, backfill_id: str, *, request_id: str | None = None, timeout: float | None = None) -> Answer:
        """How far a back-fill is."""
        return self._call("GET", _below("backfills", backfill_id), {}, request_id=request_id, timeout=timeout)

    def get_backfills(
        self, cloud_account_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """An account's back-fills, the newest first."""
        query = {"cloud_account_id": cloud_account_id}
        return self._call("GET", "backfills", query, request_id=request_id, timeout=timeout)

    def delete_backfill(
        self, backfill_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """End a back-fill; what it has stored stays."""
        return self._call("DELETE", _below("backfills", backfill_id), {}, request_id=request_id, timeout=timeout)

    def put_kubecost_source(
        self,
        cloud_account_id: str,
        flavour: str,
        url: str | None = None,
        auth: Mapping[str, str] | None = None,
        ca: str | None = None,
        custom_prices: Mapping[str, float] | None = None,
        cluster: str | Sequence[str] | None = None,
        thanos: Mapping[str, str] | None = None,
        currency: str | None = None,
        *,
        managed_by: str | None = None,
        version: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Say which upstream an account has; credentials are never read back.

        Args:
            cluster: the name of the account's cluster there, or several where it was renamed; ``*`` is all of them.
            thanos: ``{value, label}`` of its series, where several clusters write under one tenant.
            currency: of its money (ISO 4217), where the upstream does not say.
            managed_by: who calls; with a ``version``, an entry is never replaced by an older one of theirs (409).
        """
        body: dict[str, Any] = {"flavour": flavour, "url": url, "ca": ca}
        body |= {"auth": dict(auth) if auth else None, "custom_prices": dict(custom_prices) if custom_prices else None}
        names = cluster if cluster is None or isinstance(cluster, str) else list(cluster)
        body |= {"cluster": names, "thanos": dict(thanos) if thanos else None, "currency": currency}
        body |= {"managed_by": managed_by, "version": version}
        given = {key: value for key, value in body.items() if value is not None}
        return self._call(
            "PUT", _below("kubecost_sources", cloud_account_id), {}, given, request_id=request_id, timeout=timeout
        )

    def get_kubecost_sources(
        self,
        managed_by: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """A page of the accounts' upstreams, without credentials; ``after`` of an answer asks for the next one."""
        query = {"managed_by": managed_by, "after": after, "limit": limit}
        return self._call("GET", "kubecost_sources", query, request_id=request_id, timeout=timeout)

    def get_kubecost_source(
        self, cloud_account_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """Which upstream an account has, without its credentials."""
        return self._call(
            "GET", _below("kubecost_sources", cloud_account_id), {}, request_id=request_id, timeout=timeout
        )

    def delete_kubecost_source(
        self, cloud_account_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """Forget an account's upstream."""
        return self._call(
            "DELETE", _below("kubecost_sources", cloud_account_id), {}, request_id=request_id, timeout=timeout
        )

    def get_changes(
        self,
        cloud_account_id: str,
        start_date: int | None = None,
        end_date: int | None = None,
        aggregate: str | Iterable[str] | None = None,
        *,
        window: str | None = None,
        against: str | None = None,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """What changed from ``against`` (as much time before, by default) to a window, as steps that add up."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone)
        query |= {"against": against, "aggregate": aggregate}
        return self._call("GET", "changes", query, request_id=request_id, timeout=timeout)

    def get_anomalies(
        self,
        cloud_account_id: str,
        start_date: int | None = None,
        end_date: int | None = None,
        *,
        window: str | None = None,
        timezone: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Hours of a window that cost far more than such hours do."""
        query = _window(cloud_account_id, start_date, end_date, window, timezone)
        return self._call("GET", "anomalies", query, request_id=request_id, timeout=timeout)

    def get_live(
        self,
        cloud_account_id: str,
        *,
        minutes: int | None = None,
        namespace: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """What a cluster costs an hour now, and did in the last ``minutes`` (60 by default)."""
        query = {"cloud_account_id": cloud_account_id, "minutes": minutes, "namespace": namespace}
        return self._call("GET", "live", query, request_id=request_id, timeout=timeout)

    def put_organization(
        self,
        organization_id: str,
        cloud_account_ids: Iterable[str],
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Say which accounts an organization has: its rules and chargebacks are over those."""
        body = {"cloud_account_ids": list(cloud_account_ids)}
        path = _below("organizations", organization_id)
        return self._call("PUT", path, {}, body, request_id=request_id, timeout=timeout)

    def get_rules(self, organization_id: str, *, request_id: str | None = None, timeout: float | None = None) -> Answer:
        """Every version of an organization's allocation rules."""
        return self._call("GET", _below("rules", organization_id), {}, request_id=request_id, timeout=timeout)

    def put_rules(
        self,
        organization_id: str,
        rules: Mapping[str, Any],
        version: str | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Set the rules that hold from their ``valid_from`` on; with ``version``, only while that is what there is."""
        path, query = _below("rules", organization_id), {"version": version}
        return self._call("PUT", path, query, rules, request_id=request_id, timeout=timeout)

    def preview_rules(
        self,
        organization_id: str,
        month: str,
        rules: Mapping[str, Any],
        by: str | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """A month under other rules, beside its own; nothing is kept."""
        path, query = f"{_below('rules', organization_id)}/preview", {"month": month, "by": by}
        return self._call("POST", path, query, rules, request_id=request_id, timeout=timeout)

    def get_chargeback(
        self,
        organization_id: str,
        month: str,
        by: str | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """A month shared out by ``cost_center`` (default), ``namespace``, ``cluster`` or ``label:x``."""
        path, query = _below("chargeback", organization_id), {"month": month, "by": by}
        return self._call("GET", path, query, request_id=request_id, timeout=timeout)

    def close_month(
        self,
        organization_id: str,
        month: str,
        accept_incomplete: str | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Freeze a month; with ``accept_incomplete``, the reason, though something is missing."""
        path = f"{_below('chargeback', organization_id)}/{_below('months', month)}/close"
        body = {} if accept_incomplete is None else {"accept_incomplete": accept_incomplete}
        return self._call("POST", path, {}, body, request_id=request_id, timeout=timeout)

    def get_budgets(
        self,
        organization_id: str,
        upstream: bool = True,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """An organization's budgets in their running periods; with ``upstream``, those of its Kubecost beside them."""
        path, query = _below("budgets", organization_id), {"upstream": "true" if upstream else "false"}
        return self._call("GET", path, query, request_id=request_id, timeout=timeout)

    def create_budget(
        self,
        organization_id: str,
        budget: Mapping[str, Any],
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """A new budget."""
        path = _below("budgets", organization_id)
        return self._call("POST", path, {}, budget, request_id=request_id, timeout=timeout)

    def get_budget(
        self, organization_id: str, budget_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """One budget in its running period."""
        path = _below(_below("budgets", organization_id), budget_id)
        return self._call("GET", path, {}, request_id=request_id, timeout=timeout)

    def change_budget(
        self,
        organization_id: str,
        budget_id: str,
        change: Mapping[str, Any],
        version: str | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Change some of a budget; with ``version``, only while that is what there is."""
        path, query = _below(_below("budgets", organization_id), budget_id), {"version": version}
        return self._call("PATCH", path, query, change, request_id=request_id, timeout=timeout)

    def delete_budget(
        self, organization_id: str, budget_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """Remove a budget; the answer is as it was last."""
        path = _below(_below("budgets", organization_id), budget_id)
        return self._call("DELETE", path, {}, request_id=request_id, timeout=timeout)

    def get_alerts(
        self,
        organization_id: str,
        state: str | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """An organization's alerts with their history; ``firing``, ``resolved``, or both."""
        path, query = _below("alerts", organization_id), {"state": state}
        return self._call("GET", path, query, request_id=request_id, timeout=timeout)

    def acknowledge_alert(
        self,
        organization_id: str,
        alert_id: str,
        acknowledged_by: str,
        note: str | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Say that somebody has seen an alert that fires."""
        path = f"{_below(_below('alerts', organization_id), alert_id)}/ack"
        body = {"acknowledged_by": acknowledged_by} | ({} if note is None else {"note": note})
        return self._call("POST", path, {}, body, request_id=request_id, timeout=timeout)

    def create_push_token(
        self, cloud_account_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """Make a push token of an account; the one before is good for a quarter of an hour more."""
        path = _below("push_tokens", cloud_account_id)
        return self._call("POST", path, {}, request_id=request_id, timeout=timeout)

    def check_push_token(
        self, push_token: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """Whose push token this is."""
        body = {"push_token": push_token}
        return self._call("POST", "push_tokens/check", {}, body, request_id=request_id, timeout=timeout)

    def get_push_wanted(
        self, cloud_account_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """What is wanted of an account's agent now."""
        path = f"{_below('push', cloud_account_id)}/wanted"
        return self._call("GET", path, {}, request_id=request_id, timeout=timeout)

    def put_push_answer(
        self,
        cloud_account_id: str,
        kind: str,
        start: int | str,
        end: int | str,
        step: str,
        body: bytes,
        *,
        asked_at: int | str | None = None,
        currency: str | None = None,
        digest: str | None = None,
        encoding: str = "gzip",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Push an answer of the account's own Kubecost or OpenCost, as it came.

        Args:
            kind: ``allocation`` or ``assets``.
            start, end: what it is about (Unix seconds), with its ``step``, ``hour`` or ``day``.
            asked_at: of the wanted answer that it is.
            currency: of its money (ISO 4217), where the upstream says it.
            digest: ``sha-256=`` and the base64 digest of the body.
            encoding: of the body, ``gzip`` or ``identity``.
        """
        path = f"{_below('push', cloud_account_id)}/answers"
        for part in (kind, str(start), str(end), step):
            path = _below(path, part)
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        headers |= {"Digest": digest} if digest is not None else {}
        query = {"asked_at": asked_at, "currency": currency}
        return self._call("PUT", path, query, body, headers=headers, request_id=request_id, timeout=timeout)

    def get_cache_stats(self, *, request_id: str | None = None, timeout: float | None = None) -> Answer:
        """What Metroculus' cache of answers holds, and how often it was asked."""
        return self._call("GET", "cache_stats", {}, request_id=request_id, timeout=timeout)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Mapping[str, Any] | bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        validator: Validator | None = None,
    ) -> Answer:
        """One call; a refused connection is tried once more, everything else is the service's to retry."""
        ends = time.monotonic() + (self.timeout if timeout is None else timeout)
        own = {"Secret": self.secret, "X-Request-ID": request_id or uuid4().hex, "Accept-Encoding": "gzip"}
        headers = {**(headers or {}), **own}
        headers["X-Request-Timeout"] = f"{max(0.0, ends - time.monotonic()):.3f}"
        if validator is not None and validator.etag is not None:
            headers["If-None-Match"] = validator.etag
        params: dict[str, str | list[str]] = {
            key: list(value) if key in REPEATED and not isinstance(value, str) else _text(value)
            for key, value in query.items()
            if value is not None
        }
        for attempt in (1, 2):
            try:
                return self._attempt(method, f"{self._base}/{path}", params, body, headers, ends, validator)
            except requests.ConnectionError as failure:
                refused = "Connection refused" in str(failure)
                if refused and attempt == 1:
                    continue
                raise ServiceUnavailable(
                    "Metroculus could not be reached", request_id=headers["X-Request-ID"]
                ) from failure
        raise AssertionError("unreachable")

    def _attempt(
        self,
        method: str,
        url: str,
        params: Mapping[str, str | list[str]],
        body: Mapping[str, Any] | bytes | None,
        headers: Mapping[str, str],
        ends: float,
        validator: Validator | None,
    ) -> Answer:
        left = ends - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before Metroculus was asked")
        content = body
        if body is not None and not isinstance(body, bytes):  # UTF-8: escaped, a text may be over the service's limit
            content = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
            headers = {**headers, "Content-Type": "application/json"}
        try:
            with _DeadlineGuard(ends):
                response = self._http.request(
                    method,
                    url,
                    params=params,
                    data=content,
                    headers=headers,
                    timeout=(min(CONNECT_SECONDS, left), left),
                    allow_redirects=False,
                    verify=self.verify,
                    stream=True,
                )
                with response:
                    content = _read(response, ends)
        except (requests.Timeout, _Late) as failure:
            raise DeadlineExceeded("Metroculus did not answer in time") from failure
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as failure:
            raise ServiceUnavailable("Metroculus broke off its answer", request_id=headers["X-Request-ID"]) from failure
        if response.status_code == 304 and "If-None-Match" in headers and validator is not None:
            validator.learn(response.headers)
            return 304, {}
        if response.status_code >= 300:
            raise error_of(response, content)
        answer = response.status_code, _object(response, content)
        if validator is not None:
            validator.learn(response.headers)
        return answer


class _Late(Exception):
    """The deadline passed while the body was read."""


_thread = threading.local()


class _DeadlineGuard:
    """Shuts a call's connection down when its deadline passes: a socket timeout begins anew with each byte that drips.

    Works while the answer's header is awaited as well as its body; connections of a session of our own report to it.
    """

    def __init__(self, ends: float) -> None:
        self.expired = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(max(0.0, ends - time.monotonic()), self._expire)
        self._timer.daemon = True

    def watch(self, connected: socket.socket) -> None:
        self._socket = connected
        if self.expired:
            self._expire()

    def _expire(self) -> None:
        self.expired = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> _DeadlineGuard:
        _thread.guard = self
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _thread.guard = None
        self._timer.cancel()
        if self.expired:
            raise _Late


class _Watched:
    """A connection that tells the call under way which socket it waits on."""

    sock: Any

    def getresponse(self) -> Any:
        guard: _DeadlineGuard | None = getattr(_thread, "guard", None)
        if guard is not None and self.sock is not None:
            guard.watch(self.sock)
        return super().getresponse()  # type: ignore[misc]


class _WatchedHttp(_Watched, HTTPConnection):
    pass


class _WatchedHttps(_Watched, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHttp


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHttps


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


def _read(response: requests.Response, ends: float) -> bytes:
    parts, size = [], 0
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > MAX_BODY_BYTES):
        raise MetroculusError(TOO_LARGE, status=response.status_code)
    for part in response.iter_content(CHUNK_BYTES):
        size += len(part)
        if time.monotonic() > ends:
            raise _Late
        if size > MAX_BODY_BYTES:
            raise MetroculusError(TOO_LARGE, status=response.status_code)
        parts.append(part)
    return b"".join(parts)


def _object(response: requests.Response, content: bytes) -> dict[str, Any]:
    """The answer's JSON object.

    Raises:
        ServiceUnavailable: a success that is none: cut short, HTML, no object.
    """
    try:
        value = json.loads(content, parse_constant=_not_a_number)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ServiceUnavailable(
            "Metroculus answered with something that is not its JSON",
            status=response.status_code,
            request_id=response.headers.get("X-Request-ID", ""),
            response=response,
        )
    return value


def _not_a_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    adapter = _Adapter(pool_connections=4, pool_maxsize=64, max_retries=0)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _window(
    account: Values, start: int | None, end: int | None, window: str | None, timezone: str | None
) -> dict[str, Any]:
    dates = {"start_date": start, "end_date": end, "window": window, "timezone": timezone}
    return {"cloud_account_id": account, **dates}


def _text(value: Any) -> str:
    return str(value) if isinstance(value, (str, int, float)) else ",".join(value)
