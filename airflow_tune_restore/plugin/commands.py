"""`airflow tune-restore …`: the shell's commands in Airflow's own CLI, since Airflow 3.2.

Each `airflow` command calls `get_commands`, so nothing heavy is imported before one of ours runs. Typer
reads all arguments of ours: Airflow's parser passes them on as they are.
"""

import argparse
import functools
import os
import sys
from typing import Any, NoReturn

from airflow.cli.cli_config import ActionCommand, Arg, CLICommand, GroupCommand

PROGRAM = "airflow tune-restore"
_RUN = f"""
import sys
from airflow_tune_restore.cli.app import main
main(sys.argv[1:], program={PROGRAM!r})
"""

COMMANDS = {
    "plan": "Show what a restore would do. Writes nothing.",
    "recipe": "Write recipe.json, which names the trainable of an experiment.",
    "release": "Let a quarantined trial run again.",
    "report": "Write an experiment to one HTML file.",
    "restore": "Plan, run and commit a restore.",
    "scan": "List the experiments below a prefix, and their health.",
    "undo": "Undo the last commit.",
}
"""The commands of `airflow_tune_restore.cli`, with what `airflow tune-restore --help` says of each."""


class _AllArguments(Arg):
    """All arguments of a command, options among them, as they were given."""

    def __init__(self) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            flags=("arguments",), nargs=argparse.REMAINDER
        )

    def add_to_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add this to the parser of a command, which then reads no option by itself, not even --help."""
        parser.prefix_chars = "\0"  # no argument can hold it
        super().add_to_parser(parser)


def get_commands() -> list[CLICommand]:
    """Return the group of commands for Airflow's CLI."""
    return [
        GroupCommand(
            name="tune-restore",
            help="Restore failed Ray Tune experiments",
            subcommands=[
                ActionCommand(
                    name=name,
                    help=text,
                    func=functools.partial(run_command, name),
                    args=(_AllArguments(),),
                )
                for name, text in COMMANDS.items()
            ],
        )
    ]


def run_command(name: str, namespace: Any) -> NoReturn:
    """Become the process of a command of `tune-restore`: with its messages, signals and exit codes.

    In this process, Airflow's CLI has set up a log on stdout, among tables and JSON, and loggers keep it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    line = [sys.executable, "-P", "-c", _RUN, name, *namespace.arguments]
    os.execv(sys.executable, line)  # noqa: S606  no shell is needed
