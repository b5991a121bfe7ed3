"""The commands of `tune-restore`, those of groups such as `recipe`, too."""

import shlex
from typing import Any

import typer

from airflow_tune_restore.cli.commands import app


def all_commands() -> list[Any]:
    """Return each command that can be run."""
    commands = typer.main.get_command(app).commands.values()
    groups = (getattr(command, "commands", {"": command}) for command in commands)
    return [command for group in groups for command in group.values()]


def parse_command(line: str) -> tuple[Any, list[str]]:
    """Return the command of a line of a shell, and its arguments."""
    command = typer.main.get_command(app)
    _, *words = shlex.split(line, comments=True)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    return command, words
