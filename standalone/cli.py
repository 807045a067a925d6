"""``metroculus COMMAND``: a command's parts are loaded once it is asked for.

An agent holds neither a store nor a service in memory, and its image needs none of their libraries.
"""

from __future__ import annotations

from importlib import import_module

import click

_OWN = ("serve", "worker", "backfill", "repair", "rekey", "import-sources", "up", "demo")
_ASKING = ("login", "clusters", "costs", "savings")
COMMANDS = {
    **dict.fromkeys(_OWN, "standalone.commands"),
    **dict.fromkeys(_ASKING, "standalone.console.commands"),
    "agent": "metroculus.metroculus_agent.cli",
}
"""Where each command is."""


class LoadedCommands(click.Group):
    """A group whose commands are imported when they are run, or listed with their help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        return command


@click.group(cls=LoadedCommands)
@click.version_option(package_name="metroculus")
def main() -> None:
    """What every Kubernetes cluster, namespace and workload costs, to the cent."""


if __name__ == "__main__":
    main()
