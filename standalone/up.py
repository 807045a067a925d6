"""``metroculus up``: one machine, one cluster, both services in one process."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import requests

from metroculus.metroculus_worker.backfill import Progress
from metroculus.metroculus_worker.task_runner import FAILURES, NotOurs
from metroculus.storage.jobs import DEFAULT_PARALLEL
from rest_api.rest_api_server.directory.model import AlreadyExists, Directory, Role
from standalone.history import Bar, tell_owner
from standalone.running import Plan, Running, start
from tools.tornado_service.listening import stop_signal
from tools.window import DAY
from tools.wording import not_covered_text, source_trouble, why_incomplete

ORGANIZATION, USER, CLUSTER = "home", "me", "my-cluster"
TOKEN_DAYS = 30
CODE_SECONDS = 600


@dataclass(frozen=True)
class Home:
    """The one organization of a single machine, its user's fresh token and its cluster."""

    organization_id: str
    cluster_id: str
    token: str
    token_id: str


def account_id(data_dir: Path) -> str:
    """This machine's account, made once."""
    file = data_dir / "account"
    if not file.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(str(uuid4()))
    return file.read_text().strip()


def make_home(directory: Directory, cluster_id: str, flavour: str, url: str) -> Home:
    """The organization, user and cluster, found or made, and a token."""
    found = [one for one in directory.organizations() if one.name == ORGANIZATION]
    organization = found[0] if found else directory.create_organization(ORGANIZATION)
    with suppress(AlreadyExists):
        directory.create_user(USER)
    directory.set_role(USER, organization.id, Role.ADMIN)
    kind: Any = flavour
    if directory.cluster(cluster_id) is None:
        directory.create_cluster(organization.id, CLUSTER, kind, url, cluster_id)
    directory.update_cluster(cluster_id, name=CLUSTER, flavour=kind, url=url, state="linked")
    token_id, token = directory.create_token(USER, int(time.time()) + TOKEN_DAYS * DAY)
    return Home(organization.id, cluster_id, token, token_id)


def money(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.2f}"


def cost_table(body: dict[str, Any]) -> str:
    """A week's cost by namespace, idle and all, as a person reads it."""
    lines = [f"{'namespace':<28}{'USD':>14}{'efficiency':>13}"]
    for row in body["costs"][:20]:
        ratio = "not known" if row["total_efficiency"] is None else f"{row['total_efficiency']:.0%}"
        lines.append(f"{row['name'][:27]:<28}{row['total_cost']:>14,.2f}{ratio:>12}")
    for name, value in (
        ("(idle)", body["idle_cost"]),
        ("(no owner)", body["unallocated_cost"]),
        ("(cluster management)", body["summary"]["management_cost"]),
    ):
        lines.append(f"{name:<28}{money(value):>14}")
    lines.append(f"{'total':<28}{money(body['total_cost']):>14}")
    if not body["complete"]:
        about = ("name", "status", "coverage", "error", "warnings")
        troubles = [source_trouble(*(source[key] for key in about)) for source in body["sources"]]
        lines.append(f"not complete: {'; '.join(why_incomplete(troubles, body['summary'], body['not_covered']))}")
    if body["not_covered"]:
        lines.append(not_covered_text(body["not_covered"]))
    return "\n".join(lines)


def page_link(running: Running, token_id: str) -> str:
    """The page's address with a code that signs in, once and within ten minutes."""
    code = running.rest_api.directory.create_sign_in(token_id, "code", int(time.time()) + CODE_SECONDS)
    url = running.rest_api_listener.url
    return f"The page: {url}/sign-in?code={code}\n(works once, within ten minutes; then {url} asks for the token)\n"


TOKEN_FILE = "token"  # nosec B105  (the name of a file)


def leave_token(folder: Path, token: str) -> Path:
    """A file with a token, for the command line; only its owner can read it."""
    file = folder / TOKEN_FILE
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(f"{token}\n")
    return file


def how_to_ask(running: Running, organization_id: str, cluster: tuple[str, str], token: str, folder: Path) -> str:
    """Commands that can be pasted.

    Args:
        cluster: its id and its name.
        folder: where the command line finds the token.
    """
    cluster_id, name = cluster
    base = f"{running.rest_api_listener.url}/restapi/v2"
    ask = f"curl -s -H 'Authorization: Bearer {token}'"
    watched = f"Worker {running.worker_listener.url}/metrics\n" if running.worker_listener else ""
    return (
        f"\nOn the command line:\n"
        f"  export METROCULUS_REST_URL={running.rest_api_listener.url}"
        f" METROCULUS_TOKEN_FILE={shlex.quote(str(leave_token(folder, token).resolve()))}\n"
        f"  metroculus clusters\n"
        f"  metroculus costs --cluster {name} --by namespace,controller --window 2d\n"
        f"  metroculus savings --cluster {name}\n"
        f"\nEvery cluster of the organization, with its cost:\n"
        f"  {ask} '{base}/organizations/{organization_id}/kubecost/clusters?window=7d'\n"
        f"One cluster by namespace:\n"
        f"  {ask} '{base}/kubecost/clusters/{cluster_id}/costs?window=7d'\n"
        f"Stored cost by month, with a projection of the current month:\n"
        f"  {ask} '{base}/organizations/{organization_id}/kubecost/monthly?months=2'\n"
        f"\nREST API {running.rest_api_listener.url}   Metroculus {running.metroculus_listener.url}"
        f"   (/openapi.json on both)\n{watched}Ctrl-C stops."
    )


def show_costs(running: Running, home: Home) -> str:
    """The last seven days, or why they are not to be had."""
    url = f"{running.rest_api_listener.url}/restapi/v2/kubecost/clusters/{home.cluster_id}/costs"
    answer = requests.get(url, headers={"Authorization": f"Bearer {home.token}"}, timeout=40)
    body = answer.json()
    if answer.status_code != 200:
        return f"no costs yet: {body['error']['reason']} ({body['error']['error_code']})"
    window = body["window"]
    return f"Cost from {window['start']} to {window['end']}, {body['currency']}\n\n{cost_table(body)}"


async def fill_history(running: Running, account: str, days: int, what: str) -> Progress:
    """Store the last days of a cluster, with a bar; what could not be had is said and asked for again later."""
    assert running.worker is not None
    now = int(time.time())
    bar = Bar(what)
    try:
        return await running.worker.worker.fill(account, (now - now % DAY - days * DAY, now), DEFAULT_PARALLEL, bar)
    finally:
        bar.close()


async def fill_shown(running: Running, account: str, days: int) -> None:
    """Fill history, and say in one line what of it could not be had."""
    try:
        progress = await fill_history(running, account, days, f"storing the last {days} days")
    except (*FAILURES, NotOurs) as failure:
        click.echo(f"history could not be stored yet: {failure}; it will be tried again")
        return
    if not progress.complete:
        why = f": {progress.last_reason}" if progress.last_reason else ""
        click.echo(f"{progress.missing} of {progress.total} hours could not be read{why}")


async def unless(stopped: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Work until it is done or the user wants to stop."""
    task, waiting = asyncio.create_task(work), asyncio.create_task(stopped.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    for one in (task, waiting):
        one.cancel()
    for outcome in await asyncio.gather(task, waiting, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


async def run(plan: Plan, url: str, history_days: int) -> None:
    """Serve until stopped; history is filled and costs go to the screen first."""
    stopped = stop_signal()
    running = start(replace(plan, rounds=False))
    directory = running.rest_api.directory
    config = plan.metroculus
    assert config.kubecost_account_id is not None and config.cluster_secret is not None
    home = make_home(directory, config.kubecost_account_id, config.kubecost_flavour or "push", url)
    tell_owner(config.clickhouse_url, running.metroculus_listener.url, config.cluster_secret)
    click.echo(f"asking {url or config.thanos_query_url} …")
    if history_days:
        await unless(stopped, fill_shown(running, home.cluster_id, history_days))
    running.begin()
    click.echo(page_link(running, home.token_id))
    click.echo(await asyncio.to_thread(show_costs, running, home))
    click.echo(how_to_ask(running, home.organization_id, (home.cluster_id, CLUSTER), home.token, Path(config.data_dir)))
    await stopped.wait()
    click.echo("stopping …")
    await running.stop()


def new_secret() -> str:
    return secrets.token_urlsafe(32)
