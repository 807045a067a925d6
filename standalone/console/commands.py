"""``metroculus login|clusters|costs|savings``: what clusters cost, on a terminal."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import click
import msgspec
from click.core import ParameterSource
from rich.console import Console

from standalone.console import tables
from standalone.console.client import ApiFailure, Json, RestApi, one_of
from standalone.console.profiles import (
    DEFAULT_PROFILE,
    DEFAULT_URL,
    Profile,
    ProfileError,
    find,
    read_token,
    save,
    usable,
)
from tools.wording import COMPONENTS

NOT_COMPLETE = 3
"""Exit status of an answer that is not all that happened."""
PIPE_COLUMNS = 10_000
LAST_LINE = re.compile(rb"(^|\n)# rows,[0-9]+\r?\n$")
LAST_LINE_BYTES = 64
HEADER_ENDS = re.compile(rb"\n[^#]")
LISTED, MOST_ROWS = 25, 1000

F = TypeVar("F", bound=Callable[..., Any])


class Refused(click.ClickException):
    """One line, and exit status 1."""


def reading(command: F) -> F:
    """What answers with other JSON than the REST API's, or cannot be written to, is told in one line."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        if sys.stdout is None:
            raise Refused("there is no standard output to write to")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # what a terminal's encoding lacks is shown as a question mark
        try:
            result = command(*args, **kwargs)
            sys.stdout.flush()
            return result
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as problem:
            url = kwargs.get("url") or os.environ.get("METROCULUS_REST_URL") or "the service"
            raise Refused(f"{url} does not answer like a REST API of Metroculus ({type(problem).__name__})") from None
        except OSError as problem:
            if problem.errno == errno.EPIPE:
                raise
            raise Refused(f"the output cannot be written: {problem.strerror or problem}") from None

    return cast(F, run)


def asking(command: F) -> F:
    """Which REST API, and which of its organizations."""
    options = (
        click.option("--url", help=f"Where the REST API is. Default: {DEFAULT_URL}. [METROCULUS_REST_URL]"),
        click.option(
            "--token-file", type=click.Path(), help="A file with the token. [METROCULUS_TOKEN_FILE, METROCULUS_TOKEN]"
        ),
        click.option(
            "--ca", type=click.Path(), help="Authority (PEM file) of the REST API's certificate. [METROCULUS_REST_CA]"
        ),
        click.option("--profile", help=f"Profile stored by login. Default: {DEFAULT_PROFILE}. [METROCULUS_PROFILE]"),
        click.option("--organization", "--org", help="Name or id; needed where the token sees several."),
        click.option(
            "--output", "-o", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True,
            help="json is the API's answer, csv its export.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def windowed(command: F) -> F:
    """Of which time."""
    for option in (
        click.option("--timezone", help="Time zone of days, weeks and months, like Europe/Berlin. Default: UTC."),
        click.option("--window", "-w", default="7d", show_default=True, help="24h, 7d, month, lastweek, START,END …"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.option("--url", prompt="REST API", default=DEFAULT_URL, show_default=True, help="Where the REST API is.")
@click.option(
    "--token-file", type=click.Path(), help="A file with the token, or - for standard input; default: a prompt."
)
@click.option("--ca", type=click.Path(), help="Authority (PEM file) of the REST API's certificate.")
@click.option("--profile", default=DEFAULT_PROFILE, show_default=True, help="Name of the stored profile.")
@reading
def login(url: str, token_file: str | None, ca: str | None, profile: str) -> None:
    """Store a REST API's address and token for the other commands.

    The token is checked and stored in a file that only you can read. An operator creates tokens: rest-api token create.
    """
    try:
        if token_file == "-":  # nosec B105  (standard input)
            token = sys.stdin.readline().strip()
        else:
            token = read_token(Path(token_file)) if token_file else click.prompt("Token", hide_input=True).strip()
        found = Profile(url.rstrip("/"), usable(token, "the token"), str(Path(ca).resolve()) if ca else None)
        seen = RestApi(found).get("organizations")
        file = save(profile, found, os.environ)
    except (ApiFailure, ProfileError, UnicodeError) as problem:
        _refuse(str(problem))
    names = ", ".join(f"{one['name']} ({one['role']})" for one in seen["organizations"]) or "no organization yet"
    click.echo(tables.plain(f"{seen['user']} has access to {names}; stored in {file}").plain)


@click.command()
@asking
@windowed
@reading
def clusters(window: str, timezone: str | None, output: str, **asked: str | None) -> None:
    """List the organization's clusters with their cost, most expensive first."""
    api, organization = _opened(asked)
    path = f"organizations/{organization['id']}/kubecost/clusters"
    query = {"window": window, "timezone": timezone}
    if output == "csv":
        _download(api, path, query)
    body = _asked(api, path, limit=1000, **query)
    if output == "table":
        console = _console()
        console.print(tables.plain(f"{organization['name']}: {window}"), style="bold")
        console.print(tables.clusters_table(body))
        if body["total_count"] > len(body["clusters"]):
            console.print(f"{body['total_count'] - len(body['clusters'])} more: -o csv has them all")
    for one in body["clusters"]:
        for text in [one["error"]["reason"]] if one["error"] else tables.troubles_of(one):
            _tell(f"not complete: {one['name']}: {text}")
    _end(body, output, body["complete"])


@click.command()
@asking
@windowed
@click.option("--cluster", "-c", help="Name or id; without it, and with several, clusters are listed.")
@click.option(
    "--by",
    "-b",
    default="namespace",
    show_default=True,
    help="namespace, controller, pod, node, service, label:NAME …; several separated by commas.",
)
@click.option(
    "--filter",
    "-f",
    "filters",
    multiple=True,
    metavar="PROPERTY=VALUE",
    help="namespace=shop, controller=web, label:team=blue …; can be repeated.",
)
@click.option(
    "--idle",
    type=click.Choice(["separate", "share", "hide"]),
    default="separate",
    show_default=True,
    help="A row of its own, shared out to the others, or not shown.",
)
@click.option(
    "--sort",
    type=click.Choice(["total_cost", "name", *(name for name, _ in COMPONENTS[:6])]),
    default="total_cost",
    show_default=True,
)
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(1, 1000),
    default=LISTED,
    show_default=True,
    help="Rows of the table; the rest is one row.",
)
@click.pass_context
@reading
def costs(
    ctx: click.Context,
    /,
    window: str,
    timezone: str | None,
    cluster: str | None,
    by: str,
    filters: tuple[str, ...],
    idle: str,
    sort: str,
    limit: int,
    output: str,
    **asked: str | None,
) -> None:
    """Show the cost of a cluster, by namespace or another property.

    \b
      metroculus costs --cluster prod --window lastmonth --by label:team
      metroculus costs -c prod -f namespace=shop -f label:team=blue --by pod -o csv > blue.csv
    """
    narrowed = _filters(filters)
    api, organization = _opened(asked)
    known = _clusters(api, organization["id"])
    if cluster is None and len(known) != 1:
        of_one = ("by", "idle", "sort", "limit")
        if narrowed or any(ctx.get_parameter_source(name) != ParameterSource.DEFAULT for name in of_one):
            _refuse(f"which cluster? --cluster is one of: {', '.join(sorted(one['name'] for one in known)) or 'none'}")
        ctx.invoke(clusters, window=window, timezone=timezone, output=output, **asked)
        return
    path = f"kubecost/clusters/{_cluster(cluster, known)['cluster_id']}/costs"
    query = {"window": window, "timezone": timezone, "aggregate": by, "idle": idle, "sort": sort, **narrowed}
    if output == "csv":
        _download(api, path, query)
    body = _asked(api, path, limit=limit if output == "table" else MOST_ROWS, **query)
    if output == "table":
        console = _console()
        console.print(tables.costs_table(body, by.split(","), console.width))
    _tell_troubles(body)
    _end(body, output, body["complete"])


@click.command()
@asking
@windowed
@click.option("--cluster", "-c", help="Name or id; needed where the organization has several.")
@click.option(
    "--limit", "-n", type=click.IntRange(1, 10_000), default=LISTED, show_default=True, help="Rows of the table."
)
@reading
def savings(
    window: str, timezone: str | None, cluster: str | None, limit: int, output: str, **asked: str | None
) -> None:
    """List possible savings, largest first."""
    api, organization = _opened(asked)
    one = _cluster(cluster, _clusters(api, organization["id"]))
    path, query = f"kubecost/clusters/{one['cluster_id']}/optimization", {"window": window, "timezone": timezone}
    if output == "csv":
        _download(api, path, query)
    body = _asked(api, path, **query)
    if output == "table":
        kinds = ("right_sizing", "under_provisioned", "abandoned_workloads", "unclaimed_volumes", "idle_nodes")
        found = [one for kind in kinds for one in body[kind]]
        console = _console()
        console.print(tables.savings_table(body, found, limit))
        total = tables.money(body["potential_savings"]) + f" {body['currency']} a month together"
        console.print(total + (f"; {len(found) - limit} more with --limit" if len(found) > limit else ""), style="bold")
    _tell_troubles(body)
    _end(body, output, body["complete"])


def _opened(asked: dict[str, str | None]) -> tuple[RestApi, Json]:
    """The API, and the organization that is meant."""
    try:
        api = RestApi(find(asked, os.environ))
        seen = api.get("organizations")["organizations"]
        return api, one_of("organization", asked["organization"], seen, "id")
    except (ApiFailure, ProfileError) as problem:
        _refuse(str(problem))


def _clusters(api: RestApi, organization_id: str) -> list[Json]:
    """An organization's clusters, without their cost."""
    found: list[Json] = _asked(api, f"organizations/{organization_id}")["clusters"]
    return found


def _cluster(wanted: str | None, known: list[Json]) -> Json:
    """The cluster that is meant."""
    try:
        return one_of("cluster", wanted, known, "cluster_id")
    except ApiFailure as problem:
        _refuse(str(problem))


def _filters(texts: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        own = key in ("namespace", "node", "service") and "," not in value
        if not key or not sign or (own and not value):
            raise click.BadParameter(f"{text}: must be like namespace=shop, or label:team=blue", param_hint="--filter")
        found.setdefault(f"k8s_{key}" if own else "filter", []).append(value if own else text)
    return found


def _asked(api: RestApi, path: str, **query: Any) -> Json:
    try:
        return api.get(path, **query)
    except ApiFailure as problem:
        _refuse(str(problem))


def _download(api: RestApi, path: str, query: dict[str, Any]) -> NoReturn:
    """Write the API's file to standard output; its lines about completeness decide the exit status."""
    head, tail, terminal = b"", b"", sys.stdout.isatty()
    try:
        for chunk in api.download(path, **query, format="csv"):
            head = head if HEADER_ENDS.search(head) else head + chunk
            tail = (tail + chunk)[-LAST_LINE_BYTES:]
            shown = _harmless(chunk) if terminal else chunk
            sys.stdout.buffer.write(shown)
        sys.stdout.buffer.flush()
    except ApiFailure as problem:
        _refuse(str(problem))
    if not LAST_LINE.search(tail):
        _refuse("the file was cut before its end: its last line, which says how many rows there are, is missing")
    about = [line for line in head.split(b"\r\n") if line.startswith(b"# ")]
    if b"# complete,no" in about:
        _tell("not complete: the lines at the beginning of the file say what is missing")
        sys.exit(NOT_COMPLETE)
    sys.exit(0)


def _harmless(chunk: bytes) -> bytes:
    """What a terminal shows and does not run: control characters out, line ends kept."""
    return bytes(byte for byte in chunk if byte >= 32 or byte in b"\r\n\t")


def _tell_troubles(body: Json) -> None:
    for text in tables.troubles_of(body):
        _tell(f"not complete: {text}")
    if text := tables.not_covered(body):
        _tell(text)


def _tell(text: str) -> None:
    _console(stderr=True).print(tables.plain(text), style="yellow")


def _end(body: Json, output: str, complete: bool) -> None:
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(body)).decode())
        if body.get("next_cursor") is not None:
            _tell(f"not complete: the first {MOST_ROWS} of {body['total_count']} rows; --output csv has them all")
            complete = False
    if not complete:
        sys.exit(NOT_COMPLETE)


def _console(stderr: bool = False) -> Console:
    """A terminal as wide as it is; what goes into a pipe is not cut."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_COLUMNS, highlight=False, soft_wrap=stderr)


def _refuse(text: str) -> NoReturn:
    raise Refused(tables.plain(text).plain)
