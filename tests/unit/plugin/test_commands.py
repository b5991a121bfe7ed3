"""`airflow tune-restore …`: Airflow's parser hands the shell's commands their arguments untouched."""

import subprocess

import pytest

from airflow_tune_restore.cli.commands import app
from airflow_tune_restore.plugin import commands
from airflow_tune_restore.plugin.commands import COMMANDS, get_commands
from airflow_tune_restore.provider_info import get_provider_info


@pytest.fixture(scope="module")
def parser():
    from airflow.cli import cli_parser
    from airflow.cli.cli_config import DefaultHelpParser

    made = DefaultHelpParser(prog="airflow")
    groups = made.add_subparsers(dest="subcommand")
    for command in get_commands():
        cli_parser._add_command(groups, command)
    return made


def test_it_has_all_commands_of_the_shell():
    of_shell = {command.name or command.callback.__name__ for command in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    assert set(COMMANDS) == of_shell | groups


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["--help"], ["-h"], ["s3://c@b/x", "--json"], ["--json", "s3://c@b/x", "--all"]),
        *(
            ["--", "-x"],
            ["--stale-after", "-1"],
            ["--version"],
            ["a", "", "b c"],
            ["@file", "--ver"],
        ),
    ],
)
def test_arguments_arrive_as_they_were_given(parser, monkeypatch, arguments):
    ran = []
    monkeypatch.setattr(
        commands.os, "execv", lambda _program, line: ran.append(line[-1 - len(arguments) :])
    )
    for name in COMMANDS:
        namespace = parser.parse_args(["tune-restore", name, *arguments])
        namespace.func(namespace)
    assert ran == [[name, *arguments] for name in COMMANDS]


def test_airflow_reads_the_commands_from_the_metadata():
    (path,) = get_provider_info()["cli"]
    assert path == f"{get_commands.__module__}.{get_commands.__name__}"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["scan", "--help"], 0, "Usage: airflow tune-restore scan"),
        (["plan", "/nowhere/at/all", "--json"], 2, "error: /nowhere/at/all does not exist."),
    ],
)
def test_exit_codes_and_messages_are_those_of_the_shell(parser, monkeypatch, arguments, code, told):
    lines = []
    monkeypatch.setattr(commands.os, "execv", lambda _program, line: lines.append(line))
    namespace = parser.parse_args(["tune-restore", *arguments])
    namespace.func(namespace)
    done = subprocess.run(lines[0], capture_output=True, text=True, check=False)
    assert (done.returncode, told in done.stdout + done.stderr) == (code, True)
