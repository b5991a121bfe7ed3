"""Every choice can be made in a DAG and in the shell, is documented, and reaches the plan."""

import inspect
import json
import math
from dataclasses import fields, replace

import msgspec
import pytest
import typer

from airflow_tune_restore.cli.commands import app
from airflow_tune_restore.cli.options import PlanOptions
from airflow_tune_restore.exceptions import InvalidInputError, KeyNotFoundError
from airflow_tune_restore.operators.prepare_restores import PrepareRestoresOperator
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support import ROOT
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import plan_night, prepare_night

NAMES = {"max_memory_bytes": "max_memory"}
COMMANDS = typer.main.get_command(app).commands
CHOICES = [NAMES.get(f.name, f.name) for f in fields(PlanChoices) if f.name != "flags"]


@pytest.fixture
def store():
    made = MemoryStore()
    made.put(STATE_NAME, make_state([make_row("bad", status="ERROR")]))
    return made


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_an_argument_and_a_shell_option_and_documented(name):
    assert name in inspect.signature(PrepareRestoresOperator.__init__).parameters
    assert name in PrepareRestoresOperator.template_fields
    assert name in {field.name for field in fields(PlanOptions)}
    documented = (ROOT / "docs" / "choosing-flags.md").read_text()
    assert f"`{name}" in documented
    (option,) = [option for option in COMMANDS["plan"].params if option.name == name]
    assert f"`{option.opts[0]}" in documented


def test_the_plan_has_the_choices_and_so_has_its_json(store):
    made = {
        "flags": ResumeFlags.parse({"finished": "restart", "errored": "resume"}),
        "strategy": "per_trial",
        **{field.name: True for field in fields(PlanChoices) if field.type is bool},
        "trials": ("bad",),
        "max_attempts": 3,
        "max_memory_bytes": 1e9,
    }
    plan = plan_night(store, **made)
    assert plan.choices == PlanChoices(**made)
    assert RestorePlan.from_json(plan.to_json()).choices == plan.choices


@pytest.mark.parametrize("strategy", ["", "Auto", "one_run", "auto\n", None])
def test_an_unknown_strategy_is_refused_and_unreadable_in_a_plan(store, strategy):
    with pytest.raises(
        InvalidInputError, match="'auto', 'per_trial', 'shared_driver', 'whole_experiment'"
    ):
        PlanChoices(strategy=strategy)
    document = json.loads(plan_night(store).to_json())
    document["choices"]["strategy"] = strategy
    with pytest.raises(ValueError, match="strategy"):
        RestorePlan.from_json(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_attempts", value) for value in (0, -5, 2**70, 1.5)]
    + [("max_memory", value) for value in (math.inf, math.nan, -1.0, 10**400)],
)
def test_a_number_out_of_its_bounds_is_refused_with_its_option_and_value(name, value):
    field = "max_memory_bytes" if name == "max_memory" else name
    with pytest.raises(InvalidInputError) as refused:
        PlanChoices(**{field: value})
    assert f"{name}={value!r} (--{name.replace('_', '-')})" in str(refused.value)


def test_a_plan_that_could_not_be_read_again_is_not_started(store):
    prepared = prepare_night(store, "r1")
    (trial,) = prepared.plan.trials
    trials = (msgspec.structs.replace(trial, iteration=-1),)
    unreadable = replace(prepared, plan=replace(prepared.plan, trials=trials))
    with pytest.raises(InvalidInputError, match=r"is not valid.*iteration"):
        start_plan(unreadable, holder="test")
    assert lease.refuse_if_alive(store, "another") is None
    with pytest.raises(KeyNotFoundError):
        read_plan(store, "r1")
