"""The command line as a person at a terminal, and as a script: what it prints is what the API says."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console
from tornado.web import Application, RequestHandler

from simulator.server import Habits
from standalone.cli import main
from standalone.console import tables
from standalone.console.profiles import Profile, save
from tests.exported import read_csv
from tests.integration.test_services import link
from tests.support import BIN, END, Stack, ask, exact_world, make_tenant

WORLD = exact_world(7, days=3)
WINDOW = f"{WORLD.start},{END}"


class Terminal:
    """Runs commands with an environment of its own."""

    def __init__(self, home: Any, url: str, token: str | None) -> None:
        self.url = url
        self.environment: dict[str, str | None] = {
            "HOME": str(home), "XDG_CONFIG_HOME": None, "METROCULUS_PROFILE": None, "METROCULUS_REST_CA": None,
            "METROCULUS_TOKEN_FILE": None, "METROCULUS_REST_URL": url, "METROCULUS_TOKEN": token, "COLUMNS": "160",
        }  # fmt: skip

    def run(self, *args: str, status: int = 0, **more: Any) -> Result:
        result = CliRunner(env=self.environment).invoke(main, args, **more)
        assert result.exit_code == status, f"{args}: {result.exit_code}\n{result.output}"
        return result


class Two:
    """An organization of a Kubecost and an OpenCost; the terminal of one who sees it."""

    def __init__(self, folder: Any) -> None:
        self.stack = Stack(folder)
        self.worlds = [exact_world(7, days=3), exact_world(13, days=3)]
        habits = (Habits(), Habits(serves=frozenset({"opencost"})))
        served = [self.stack.simulate(world, own) for world, own in zip(self.worlds, habits, strict=True)]
        self.running = self.stack.start()
        self.tenant = make_tenant(self.running, "acme")
        flavours = zip(("prod", "lab"), ("kubecost", "opencost"), served, strict=True)
        self.ids = [link(self.running, self.tenant, name, flavour, url) for name, flavour, (_, url) in flavours]
        self.terminal = Terminal(folder, self.running.rest_api_listener.url, self.tenant.tokens["viewer"])

    def body(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.running, self.tenant.tokens["viewer"], f"/restapi/v2/{path}").json()
        return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    made = Two(tmp_path_factory.mktemp("console"))
    yield made
    made.stack.close()


def figures(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell.strip()]


def test_costs_are_the_statement(two):
    body = two.body(f"kubecost/clusters/{two.ids[0]}/costs?window={WINDOW}&limit=1000")
    result = two.terminal.run("costs", "-c", "prod", "-w", WINDOW)
    lines = {figures(line)[0].strip(): figures(line) for line in result.stdout.splitlines() if figures(line)}
    for row in body["costs"]:
        assert lines[row["name"]][-2].strip() == f"{row['total_cost']:,.2f}"
        assert lines[row["name"]][-1].strip() == f"{row['total_efficiency']:.0%}"
    assert lines["(idle)"][-1].strip() == f"{body['idle_cost']:,.2f}"
    assert lines["total"][-2].strip() == f"{body['total_cost']:,.2f}"
    assert f"{body['window']['start']} to {body['window']['end']}, USD" in result.stdout


def test_rows_beyond_the_limit_are_one_row(two):
    result = two.terminal.run("costs", "-c", "prod", "-w", WINDOW, "--by", "pod", "--limit", "3")
    total = two.body(f"kubecost/clusters/{two.ids[0]}/costs?window={WINDOW}&aggregate=pod&limit=1")
    assert f"({total['total_count'] - 3} more)" in result.stdout
    assert f"{total['total_cost']:,.2f}" in result.stdout


def test_what_is_not_complete_says_so_and_ends_with_3(two):
    """A window that begins before the cluster did: a script sees it by the status, a person reads why."""
    asked = ("-w", f"{WORLD.start - 86400},{END}")
    result = two.terminal.run("costs", "-c", "prod", *asked, status=3)
    assert "not complete: allocation API: has data for" in result.stderr
    assert not json.loads(two.terminal.run("costs", "-c", "prod", *asked, "-o", "json", status=3).stdout)["complete"]
    assert two.terminal.run("costs", "-c", "prod", *asked, "-o", "csv", status=3).stdout.startswith("# lines above")
    two.terminal.run("clusters", *asked, status=3)
    assert "window must be one of" in two.terminal.run("costs", "-c", "prod", "-w", "9d,1d", status=1).stderr


def test_what_no_source_tells_is_named(two):
    """OpenCost tells no management cost; what it does tell is complete."""
    result = two.terminal.run("costs", "-c", "lab", "-w", WINDOW)
    assert "(cluster management)" in result.stdout and "not known" in result.stdout
    assert "no configured source provides cluster management" in result.stderr and "not complete" not in result.stderr


def test_json_is_the_answer_and_csv_is_the_file(two):
    path = f"kubecost/clusters/{two.ids[0]}/costs?window={WINDOW}&aggregate=controller&idle=share&sort=total_cost&limit=1000"
    asked = ("costs", "-c", two.ids[0], "-w", WINDOW, "--by", "controller", "--idle", "share")
    assert json.loads(two.terminal.run(*asked, "-o", "json").stdout) == two.body(path)
    found = read_csv(two.terminal.run(*asked, "-o", "csv").stdout_bytes)
    assert found.sum("total_cost (USD)") == pytest.approx(two.body(path)["total_cost"], rel=1e-12)


def test_filters_narrow_every_output(two):
    one = WORLD.nodes[0].name
    asked = ("costs", "-c", "prod", "-w", WINDOW, "-f", "namespace=shop", "-f", f"node={one}", "--by", "pod")
    body = two.body(
        f"kubecost/clusters/{two.ids[0]}/costs?window={WINDOW}&aggregate=pod&k8s_namespace=shop&k8s_node={one}&limit=1000"
    )
    result = two.terminal.run(*asked)
    assert body["total_cost"] > 0 and f"{body['total_cost']:,.2f}" in result.stdout
    found = read_csv(two.terminal.run(*asked, "-o", "csv").stdout_bytes)
    assert found.sum("total_cost (USD)") == pytest.approx(body["total_cost"], rel=1e-12)
    assert found.about["filters"] == f"aggregate = pod; k8s_namespace = shop; k8s_node = {one}; idle = separate"
    team = two.body(f"kubecost/clusters/{two.ids[0]}/costs?window={WINDOW}&filter=label:team=alpha&limit=1")[
        "total_cost"
    ]
    asked = ("costs", "-c", "prod", "-w", WINDOW, "-f", "label:team=alpha", "-o", "json")
    assert json.loads(two.terminal.run(*asked).stdout)["total_cost"] == team > 0
    two.terminal.run("costs", "-c", "prod", "-f", "nonsense=x", status=1)
    for wrong in ("shop", "namespace=", "=x"):
        assert "--filter" in two.terminal.run("costs", "-f", wrong, status=2).stderr


def test_clusters_are_listed_where_none_is_named(two):
    overview = two.body(f"organizations/{two.tenant.organization_id}/kubecost/clusters?window={WINDOW}")
    for asked in (("clusters",), ("costs",)):
        result = two.terminal.run(*asked, "-w", WINDOW)
        for one in overview["clusters"]:
            line = next(line for line in result.stdout.splitlines() if line.strip().startswith(one["name"]))
            assert f"{one['total_cost']:,.2f}" in line and f"{one['idle_cost']:,.2f}" in line
        assert f"{overview['total_cost']:,.2f}" in result.stdout
    found = read_csv(two.terminal.run("clusters", "-w", WINDOW, "-o", "csv").stdout_bytes)
    assert found.sum("total_cost (USD)") == pytest.approx(overview["total_cost"], rel=1e-12)
    refused = two.terminal.run("costs", "--by", "pod", status=1)
    assert "--cluster is one of: lab, prod" in refused.stderr
    assert "there are: lab, prod" in two.terminal.run("costs", "-c", "nope", status=1).stderr


def test_savings_are_ranked_and_add_up(two):
    body = two.body(f"kubecost/clusters/{two.ids[0]}/optimization?window={WINDOW}")
    result = two.terminal.run("savings", "-c", "prod", "-w", WINDOW)
    assert f"{body['potential_savings']:,.2f} USD a month together" in result.stdout
    assert "--cluster is one of" in two.terminal.run("savings", status=1).stderr
    assert read_csv(two.terminal.run("savings", "-c", "prod", "-w", WINDOW, "-o", "csv").stdout_bytes).rows


def test_login_checks_and_keeps_a_token_for_its_owner_alone(two, tmp_path):
    token, url = two.tenant.tokens["viewer"], two.terminal.url
    terminal = Terminal(tmp_path, url, None)
    terminal.environment["METROCULUS_REST_URL"] = None
    assert f"metroculus login --url {url}" in terminal.run("costs", "--url", url, status=1).stderr
    refused = terminal.run("login", "--url", url, "--token-file", "-", input="wrong\n", status=1)
    assert "does not take the token" in refused.stderr and not list(tmp_path.rglob("profiles.yaml"))
    result = terminal.run("login", input=f"{url}\n{token}\n")
    assert "acme viewer has access to acme (viewer)" in result.output and token not in result.output
    file = tmp_path / ".config" / "metroculus" / "profiles.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and yaml.safe_load(file.read_text())["default"]["token"] == token
    assert "prod" in terminal.run("clusters", "-w", WINDOW).stdout
    terminal.run("login", "--url", url, "--token-file", "-", "--profile", "second", input=f"{token}\n")
    assert set(yaml.safe_load(file.read_text())) == {"default", "second"}
    assert "prod" in terminal.run("clusters", "-w", WINDOW, "--profile", "second").stdout
    assert "there is no profile third" in terminal.run("clusters", "--profile", "third", status=1).stderr


def test_a_kept_token_is_told_to_nobody_else(two, tmp_path):
    token = two.tenant.tokens["viewer"]
    terminal = Terminal(tmp_path, two.terminal.url, None)
    terminal.run("login", "--url", two.terminal.url, "--token-file", "-", input=f"{token}\n")
    assert "no token for http://127.0.0.1:9" in terminal.run("clusters", "--url", "http://127.0.0.1:9", status=1).stderr
    terminal.environment["METROCULUS_REST_URL"] = "http://127.0.0.1:9"
    assert "no token for" in terminal.run("clusters", status=1).stderr


@pytest.mark.parametrize(
    ("served", "told"),
    [
        (None, "cannot be reached"),
        ("<html>", "is it the REST API?"),
        ("[]", "is it the REST API?"),
    ],
)
def test_what_is_no_rest_api_is_said_in_one_line(tmp_path, served, told, stack):
    class Page(RequestHandler):
        def get(self) -> None:
            self.write(served)

    url = "http://127.0.0.1:9" if served is None else stack.serve(Application([(r"/.*", Page)]))
    result = Terminal(tmp_path, url, "token").run("clusters", status=1)
    assert told in result.stderr and url in result.stderr and len(result.stderr.splitlines()) <= 2


def figures_of(text: str) -> list[str]:
    return re.findall(r"[0-9][0-9,]*\.[0-9]{2}\b", text)


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_narrow_terminal_shows_names_and_whole_figures(two, columns):
    """Fewer components where there is no room; never half a name or figure."""
    body = two.body(f"kubecost/clusters/{two.ids[0]}/costs?window={WINDOW}&limit=1000")
    shown = []
    for width in (columns, 10_000):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(tables.costs_table(body, ["namespace"], width))
        shown.append(console.export_text())
    text, whole = shown
    assert "…" not in text and all(row["name"] in text for row in body["costs"]) and "(idle)" in text
    assert set(figures_of(text)) <= set(figures_of(whole)) and f"{body['total_cost']:,.2f}" in text
    assert all(f"{row['total_cost']:,.2f}" in text for row in body["costs"])


CUT = {
    "no last line": b"name,total_cost (USD)\r\nshop,1.\r\n",
    "a page": b"<html>sign in</html>",
    "a name that looks like the last line": b"name,total_cost (USD)\r\n'# rows,2\r\n",
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_was_cut_is_told_so(stack, tmp_path, kind):
    """Also where whoever is between makes a regular end of it."""

    class Organizations(RequestHandler):
        def get(self) -> None:
            self.write({"organizations": [{"id": "o", "name": "acme", "role": "viewer"}]})

    class File(RequestHandler):
        def get(self) -> None:
            self.set_header("Content-Type", "text/html" if kind == "a page" else "text/csv")
            self.write(CUT[kind])

    url = stack.serve(Application([(r"/restapi/v2/organizations", Organizations), (r"/.*", File)]))
    result = Terminal(tmp_path, url, "token").run("clusters", "-o", "csv", status=1)
    assert "cut before its end" in result.stderr or "is it the REST API?" in result.stderr


@pytest.mark.parametrize(
    "body", ["{}", '{"organizations": null}', '{"organizations": [{}]}', "[" * 100_000, "1", '{"organizations": "x"}']
)
def test_other_json_is_no_traceback(stack, tmp_path, body):
    class Other(RequestHandler):
        def get(self) -> None:
            self.write(body)

    url = stack.serve(Application([(r"/.*", Other)]))
    for asked in (("clusters",), ("costs", "-c", "x"), ("login", "--url", url, "--token-file", "-")):
        result = Terminal(tmp_path, url, "token").run(*asked, status=1, input="token\n")
        assert "Traceback" not in result.output and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "kept",
    [
        "default: {token: SEKRET, url: http://x",
        "- a",
        "default: 5",
        "default: {url: 5, token: SEKRET}",
        "\x00",
        "[" * 5000,
    ],
)
def test_profiles_that_cannot_be_read_are_told_and_show_nothing(two, tmp_path, kept):
    file = tmp_path / ".config" / "metroculus" / "profiles.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(kept)
    result = Terminal(tmp_path, two.terminal.url, None).run("clusters", status=1)
    assert "SEKRET" not in result.output and "log in again" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_token_goes_to_no_address_that_it_was_not_given_for(two, tmp_path):
    file = tmp_path / ".config" / "metroculus" / "profiles.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("default: {token: SEKRET}")
    assert "no token for" in Terminal(tmp_path, two.terminal.url, None).run("clusters", status=1).stderr
    terminal = Terminal(tmp_path, two.terminal.url, None)
    terminal.environment["METROCULUS_PROFILE"] = "typo"
    assert "there is no profile typo" in terminal.run("clusters", status=1).stderr
    terminal.environment |= {"METROCULUS_PROFILE": None, "METROCULUS_TOKEN": "tök€n"}
    assert "is no token" in terminal.run("clusters", status=1).stderr
    terminal.run(
        "login", "--url", f"{two.terminal.url}/", "--token-file", "-", input=f"{two.tenant.tokens['viewer']}\n"
    )
    terminal.environment["METROCULUS_TOKEN"] = None
    assert "prod" in terminal.run("clusters", "-w", WINDOW, "--url", f"{two.terminal.url}/").stdout


def test_many_who_log_in_at_once_keep_all(tmp_path):
    environment = {"HOME": str(tmp_path)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: save(f"p{n}", Profile("http://x", f"t{n}"), environment), range(40)))
    kept = yaml.safe_load((tmp_path / ".config" / "metroculus" / "profiles.yaml").read_text())
    assert {name: one["token"] for name, one in kept.items()} == {f"p{n}": f"t{n}" for n in range(40)}


def test_what_is_said_of_hostile_names_is_no_command_of_the_terminal(two, stack, tmp_path):
    running = stack.start()
    tenant = make_tenant(running, "acme\x1b[2J")
    for name in ("\x1b]0;pwn\x07x", "arn:aws:eks:us:id:top"):
        running.rest_api.directory.create_cluster(tenant.organization_id, name, "opencost", "http://127.0.0.1:9")
    terminal = Terminal(tmp_path, running.rest_api_listener.url, tenant.tokens["viewer"])
    for asked, status in ((("clusters",), 3), (("costs", "-c", "nope"), 1), (("costs", "--by", "pod"), 1)):
        result = terminal.run(*asked, status=status)
        assert "\x1b" not in result.output and "\x07" not in result.output and "arn:aws:eks:us:id:top" in result.output


def test_json_of_more_rows_than_are_listed_says_so(two, monkeypatch):
    monkeypatch.setattr("standalone.console.commands.MOST_ROWS", 3)
    result = two.terminal.run("costs", "-c", "prod", "-w", WINDOW, "--by", "pod", "-o", "json", status=3)
    assert "the first 3 of" in result.stderr and len(json.loads(result.stdout)["costs"]) == 3


def test_hostile_names_are_shown_and_do_nothing(stack, tmp_path):
    """A name is no markup of ours, and no command of the terminal."""
    running = stack.start()
    tenant = make_tenant(running, "acme [red]")
    for name in ("[bold red]x[/]", "\x1b[2Jgone", "a\u202eb", "=1+1"):
        running.rest_api.directory.create_cluster(tenant.organization_id, name, "opencost", "http://127.0.0.1:9")
    result = Terminal(tmp_path, running.rest_api_listener.url, tenant.tokens["viewer"]).run("clusters", status=3)
    assert "[bold red]x[/]" in result.stdout and "\x1b" not in result.stdout and "\u202e" not in result.stdout
    assert "not known" in result.stdout


def test_help_says_what_to_type():
    runner = CliRunner()
    listed = runner.invoke(main, ["--help"]).output
    for name in ("costs", "savings", "clusters", "login"):
        assert f"  {name} " in listed
        told = runner.invoke(main, [name, "--help"]).output
        assert "--url" in told and "--help" in told and len(told.splitlines()[2].strip()) > 20


def test_a_real_process_also_as_a_plugin_of_kubectl(two, tmp_path):
    own = {
        "HOME": str(tmp_path),
        "METROCULUS_REST_URL": two.terminal.url,
        "METROCULUS_TOKEN": two.tenant.tokens["viewer"],
    }
    environment = os.environ | own
    for script in ("metroculus", "kubectl-metroculus"):
        done = subprocess.run(
            [BIN / script, "costs", "-c", "prod", "-w", WINDOW],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and "(idle)" in done.stdout and "\x1b" not in done.stdout
