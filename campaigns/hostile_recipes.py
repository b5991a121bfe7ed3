"""The recipe that a sweep wrote, hostile, and each way of reading it.

Nothing that it names may be imported, opened or executed: `guards.Tripwire` hears it. What gets through
is judged here once more, in other words than `restore/recipe.py` has.
"""

import contextlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

from airflow_tune_restore.exceptions import TuneRestoreError, UnknownTrainableError
from airflow_tune_restore.launch.ray import package
from airflow_tune_restore.operators import attempt_task, prepare_restores
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.prepare import plan_again, prepare_restore, preview_restore
from airflow_tune_restore.restore.recipe import RUN_FIELDS, Recipe
from airflow_tune_restore.restore.recipes import Recipes, parse_modules, read_recipe
from airflow_tune_restore.restore.start import start_restore
from campaigns import hostile_inputs as inputs
from campaigns.guards import GuardedStore
from campaigns.hostile_lab import (
    BAD,
    GOOD,
    LONG_AGO,
    RECIPES,
    RESTORE_ID,
    Lab,
    assert_shown,
    moved,
    night_options,
)
from campaigns.hostile_nights import Hook, executed
from campaigns.hostile_records import check_xcom
from tests.support.airflow.context import make_context

ALLOWED: tuple[Any, ...] = (True, ["team_a.*"], ["team_a.*", "x*"])
_PLACES = ("/etc", "~/x", "~root", "file:///etc", "FILE:///x", "x.zip", "./x", "s3://b/x", "x://y")
_NAMES = (
    *("os:system", "posix:system", "antigravity:x", "../x:y", ":", "registered", "team_a.:x"),
    *(
        "team_a.x:os.system",
        "team_a.x:__class__.__init__",
        "team_a.x:",
        "team_a.x:a b",
        "team_a.*:x",
    ),
)


def recipes(rng: random.Random, lab: Lab) -> None:
    """A hostile recipe in one of two experiments, and one way of reading it."""
    body = lab.keep("recipe.json", _hostile_recipe(rng))
    objects = dict(lab.golden) | moved(lab.golden, GOOD, BAD)
    objects[f"{BAD}/{layout.RECIPE}"] = (body, LONG_AGO)
    objects[f"{GOOD}/{layout.RECIPE}"] = (RECIPES[0], LONG_AGO)
    before = dict(objects)
    stores = {f"/{place}": GuardedStore(lab.store(objects).at(place)) for place in (GOOD, BAD)}
    read = rng.choice(READERS)
    lab.keep("reader", read.__name__.encode())
    read(rng, lab, stores)
    for key, value in before.items():
        assert objects[key] == value, f"{key} was changed"


def _hostile_recipe(rng: random.Random) -> bytes:
    body = rng.choice(RECIPES)
    roll = rng.random()
    if roll < 0.6:
        return inputs.hostile_json(rng, body)
    document = json.loads(body)
    for _ in range(rng.choice((1, 2, 4))):
        field = rng.choice((*RUN_FIELDS, "runtime_env", "imports"))
        match field:
            case "runtime_env":
                part = rng.choice(("working_dir", "py_modules", "excludes", "pip", "env_vars"))
                place: Any = rng.choice((*_PLACES, inputs.hostile_value(rng, "x")))
                place = [place] if rng.random() < 0.3 else place
                document[field] = {**(document.get(field) or {}), part: place}
            case "imports":
                document[field] = [rng.choice(_NAMES).partition(":")[0] or "os"]
            case "env":
                document[field] = {rng.choice(inputs.TEXTS): rng.choice(inputs.TEXTS)}
            case _:
                document[field] = rng.choice((*_NAMES, *inputs.TEXTS))
    return json.dumps(document).encode()


def _read(rng: random.Random, lab: Lab, stores: Mapping[str, GuardedStore]) -> None:
    """Read it, and write it again."""
    del lab
    allowed = rng.choice(ALLOWED)
    try:
        recipe = read_recipe(stores[f"/{BAD}"], parse_modules(allowed))
    except TuneRestoreError as error:
        assert_shown(str(error))
        return
    assert Recipe.from_json(recipe.to_json()) == recipe
    _check(recipe, allowed)


def _choose(rng: random.Random, lab: Lab, stores: Mapping[str, GuardedStore]) -> None:
    """Choose among it and what the DAG gives, which comes first."""
    del lab
    keyed = rng.choice(
        (None, {"*": "dag:all"}, {"train": "dag:named"}, {"bad": "x:y", "b*/x": "x:y"})
    )
    allowed = rng.choice((*ALLOWED, False))
    store = stores[f"/{BAD}"]
    chosen = _chosen(lambda: Recipes.parse(keyed, recipes=allowed).choose(store, "train"))
    if keyed and "train" in keyed:
        assert chosen == Recipe(trainable="dag:named")
    if not allowed or (keyed and "train" in keyed):
        assert not store.reads
    elif chosen is not None:
        _check(chosen, allowed)
        assert chosen.trainable != "dag:all"  # no way out for one that cannot be used


def _chosen(choose: Callable[[], Recipe]) -> Recipe | None:
    try:
        return choose()
    except UnknownTrainableError as error:
        assert_shown(str(error))
        return None


def _restore(rng: random.Random, lab: Lab, stores: Mapping[str, GuardedStore]) -> None:
    """Plan, start and claim by it."""
    del lab
    store, allowed = stores[f"/{BAD}"], rng.choice(ALLOWED)
    options = replace(night_options(), recipes=Recipes.parse(None, recipes=allowed))
    try:
        preview_restore(store, options)
        prepared = prepare_restore(store, RESTORE_ID, options)
    except TuneRestoreError as error:
        assert_shown(str(error))
        return
    if isinstance(prepared, str):
        return
    recipe = prepared.options.recipe
    assert recipe is not None
    _check(recipe, allowed)
    assert plan_again(prepared).plan == prepared.plan
    plan, _ = start_restore(prepared, holder="test", ttl_seconds=60)
    assert plan is not None
    given = recipe.over(dict.fromkeys(("trainable", "param_space", "search_alg", "imports")))
    unit = layout.WHOLE_EXPERIMENT if plan.is_whole_experiment else plan.to_run[0].trial_id
    claim_attempt(store, plan, unit, RunnerSettings(**{**given, "imports": given["imports"] or ()}))


def _night(rng: random.Random, lab: Lab, stores: Mapping[str, GuardedStore]) -> None:
    """Plan both experiments with the real operator, and open the trials of the bad one."""
    allowed = rng.choice(ALLOWED)
    hook = Hook(stores)
    context = make_context()
    with (
        mock.patch.object(prepare_restores, "ExperimentStorageHook", hook),
        mock.patch.object(attempt_task, "ExperimentStorageHook", hook),
    ):
        planned = BuildRestorePlanOperator(
            task_id="plan", experiments=list(stores), recipes=allowed, resume_errored=True, stale_after=0,
            launcher="ray", on_unknown=rng.choice(("skip", "fail")),
        )  # fmt: skip
        items = executed(lab, planned, context)
        check_xcom(items, len(items))
        outcomes = context["ti"].pushed["outcomes"]
        check_xcom(outcomes, len(outcomes))
        by_place = {each["experiment"]: each["outcome"] for each in outcomes}
        assert by_place[f"/{GOOD}"] == "restored"
        for item in [item for item in items if item["experiment"] == f"/{BAD}"][:1]:
            trial = RestoreTrialOperator(
                task_id="trial", trial=item, recipes=allowed, launcher="ray", env={"DAG": "1"},
                runtime_env={"working_dir": "s3://dag/code.zip"},
            )  # fmt: skip
            trial._cached_logger = lab.logger
            trial.open_task(item["restore_id"])
            assert trial.env["DAG"] is not None
            _deliver(trial.runtime_env)


class _Jobs:
    """A Ray cluster that has every package."""

    def has_package(self, name: str) -> bool:
        return bool(name)


def _deliver(runtime_env: Any) -> None:
    """Send the runtime_env to a cluster: no file of this machine goes with it."""
    with (
        mock.patch.object(package, "runner_package", return_value=package.Package(b"", "r.whl")),
        contextlib.suppress(TuneRestoreError),
    ):
        sent = package.deliver(_Jobs(), runtime_env)  # type: ignore[arg-type]
        json.dumps(sent)
        assert sent["working_dir"] == runtime_env["working_dir"]


def _check(recipe: Recipe, allowed: Any) -> None:
    """Judge what got through."""
    for text in (
        recipe.trainable,
        *(recipe.imports or ()),
        *(recipe.env or {}),
        recipe.python or "x",
    ):
        assert text.strip()
        assert "\0" not in text
        text.encode()
    places = recipe.runtime_env or {}
    assert not places.get("excludes")
    modules = places.get("py_modules") or []
    for place in [
        places.get("working_dir"),
        *(modules if isinstance(modules, list) else [modules]),
    ]:
        assert place is None or "://" in place
        assert place is None or not place.lower().startswith(("file:", "local:", "/", "~", "."))
    if allowed is True:
        return
    assert recipe.python is recipe.image is recipe.env is recipe.runtime_env is None
    starts = tuple(pattern.rstrip("*") for pattern in allowed)
    for module in recipe.imports or ():
        assert module.startswith(starts)
    for name in (recipe.trainable, recipe.param_space, recipe.search_alg):
        if name is not None and ":" in name:
            assert name.startswith(starts)
            assert "." not in name.partition(":")[2]


READERS: tuple[Callable[[random.Random, Lab, Mapping[str, Any]], None], ...] = (
    _read, _read, _read, _choose, _choose, _restore, _night,
)  # fmt: skip
