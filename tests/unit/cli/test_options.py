"""Options in groups: Typer sees each one, and every choice of the operator is in the shell."""

from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from airflow_tune_restore.cli.commands import app
from airflow_tune_restore.cli.option_groups import with_options
from airflow_tune_restore.cli.options import PlanOptions
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeType
from airflow_tune_restore.restore.only import Only, Threshold

COMMANDS = typer.main.get_command(app).commands
RESTORE_ONLY = {"param_space", "search_alg", "imports", "check_timeout", "parallel"}
LEASE = {"break_lease", "yes"}
WINDOW = {"until", "max_duration"}
WHERE = {"on", "address", "runtime_env_json", "working_dir", "image", "namespace", "pod_template"}


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option(help="Width.")]
    height: Annotated[int, typer.Option(help="Height.")] = 2


def test_a_command_gets_its_options_in_groups_and_typer_sees_each_one():
    got = []
    small = typer.Typer()

    @small.command()
    @with_options
    def draw(name: str, *, size: Size) -> None:
        """Draw."""
        got.append((name, size))

    result = CliRunner().invoke(small, ["box", "--width", "3"])
    assert result.exit_code == 0, result.output
    assert got == [("box", Size(width=3, height=2))]
    result = CliRunner().invoke(small, ["box"])
    assert result.exit_code == 2
    assert "--width" in result.output


def test_every_choice_of_a_plan_can_be_made_in_the_shell():
    """Each one is changed by an option: a new choice without an option fails here."""
    changed = PlanOptions(
        resume_errored=True, strategy="per_trial", fresh_budget=True, trim_results=True,
        remember_scheduler=True, allow_scratch=True, newest_checkpoint=True, ignore_tuner=True,
        trust_name=True, trials=["a"], max_attempts=3, max_memory=1.0,
    ).choices()  # fmt: skip
    default = PlanChoices()
    names = [field.name for field in fields(PlanChoices)]
    assert [name for name in names if getattr(changed, name) == getattr(default, name)] == []
    assert PlanOptions().choices() == default


def test_only_is_one_selection_of_all_its_texts():
    options = PlanOptions(only=["cause=out_of_memory", "metric=loss<0.5", "cause=node_lost"])
    assert options.narrowing() == Only(
        cause=(Cause.OUT_OF_MEMORY, Cause.NODE_LOST), metric=(Threshold("loss", "<", 0.5),)
    )
    assert PlanOptions().narrowing() == Only()
    with pytest.raises(InvalidInputError, match="Did you mean node_lost"):
        PlanOptions(only=["cause=lost_node"]).narrowing()


def test_plan_and_restore_have_the_same_choices():
    plan, restore = (
        {option.name for option in COMMANDS[name].params} for name in ("plan", "restore")
    )
    assert plan >= {field.name for field in fields(PlanOptions)}
    assert restore - plan == RESTORE_ONLY | LEASE | WINDOW | WHERE | {"python"}
    assert plan <= restore


def test_resume_wins_over_restart_as_in_ray():
    both = PlanOptions(resume_errored=True, restart_errored=True).choices()
    assert both.flags.errored is ResumeType.RESUME


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"errored": ResumeType.SKIP, "resume_errored": True}, "--errored and --resume-errored"),
        ({"errored": ResumeType.SKIP, "restart_errored": True}, "--errored and --restart-errored"),
        (
            {"unfinished": ResumeType.SKIP, "resume_unfinished": False},
            "--unfinished and --no-resume-unfinished",
        ),
    ],
)
def test_both_forms_for_the_same_trials_are_refused(given, words):
    with pytest.raises(InvalidInputError, match=words):
        PlanOptions(**given).choices()
