"""Every choice can be made in a DAG and in the shell, is documented, and reaches the plan."""

import inspect
import json
from dataclasses import fields

import pytest

from airflow_tune_restore.cli.options import PlanOptions
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support import ROOT
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import plan_night

NAMES = {"max_memory_bytes": "max_memory"}
CHOICES = [NAMES.get(f.name, f.name) for f in fields(PlanChoices) if f.name != "flags"]


@pytest.fixture
def store():
    made = MemoryStore()
    made.put(STATE_NAME, make_state([make_row("bad", status="ERROR")]))
    return made


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_an_argument_and_a_shell_option_and_documented(name):
    assert name in inspect.signature(BuildRestorePlanOperator.__init__).parameters
    assert name in BuildRestorePlanOperator.template_fields
    assert name in {field.name for field in fields(PlanOptions)}
    documented = (ROOT / "docs" / "choosing-flags.md").read_text()
    assert f"`{name}" in documented
    assert f"`--{name.replace('_', '-')}" in documented


def test_the_plan_has_the_choices_and_so_has_its_json(store):
    made = {
        "flags": ResumeFlags.parse({"finished": "restart", "errored": "resume"}),
        "strategy": "whole_experiment",
        **{field.name: True for field in fields(PlanChoices) if field.type is bool},
        "max_attempts": 3,
        "max_memory_bytes": 1e9,
    }
    plan = plan_night(store, **made)
    assert plan.choices == PlanChoices(**made)
    assert RestorePlan.from_json(plan.to_json()).choices == plan.choices


@pytest.mark.parametrize("strategy", ["", "Auto", "one_run", "auto\n", None])
def test_an_unknown_strategy_is_refused_and_unreadable_in_a_plan(store, strategy):
    with pytest.raises(InvalidInputError, match="'auto', 'per_trial', 'whole_experiment'"):
        PlanChoices(strategy=strategy)
    document = json.loads(plan_night(store).to_json())
    document["choices"]["strategy"] = strategy
    with pytest.raises(ValueError, match="strategy"):
        RestorePlan.from_json(json.dumps(document).encode())
