"""Writes, shows and checks the recipe that a sweep brings with it: `tune-restore recipe`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from shlex import quote
from typing import Annotated, Any

import typer

from airflow_tune_restore.cli import output
from airflow_tune_restore.cli.launchers import LauncherOptions, parse_runtime_env
from airflow_tune_restore.cli.option_groups import with_options
from airflow_tune_restore.cli.options import (
    CheckTimeout,
    ExperimentUri,
    Imports,
    Json,
    ParamSpace,
    RecipePatterns,
    SearchAlg,
    option_of_plan,
    refuse_two_choices,
)
from airflow_tune_restore.cli.places import open_experiment, runner_credentials
from airflow_tune_restore.cli.signals import sigterm_as_ctrl_c
from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    TrainableMisfitError,
)
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.check import DEFAULT_CHECK_TIMEOUT, CheckAnswer, MatchedBy
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.flags import ResumeType
from airflow_tune_restore.restore.planner import build_plan
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.recipe import ALL_MODULES, Recipe
from airflow_tune_restore.restore.recipes import read_recipe, write_recipe
from airflow_tune_restore.storage.base import ObjectStore

_SAME = (
    "trainable param_space search_alg python image resume_unfinished resume_errored restart_errored "
    "resume_cut_short strategy fresh_budget trim_results remember_scheduler allow_scratch "
    "newest_checkpoint ignore_tuner trust_name"
).split()
"""The options that are fields of a recipe."""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Write, show and check the recipe of a sweep: .tune_restore/recipe.json in its directory.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """The fields of a recipe. What is not given is chosen by the restore."""

    trainable: Annotated[
        str,
        typer.Option(metavar="MODULE:ATTR", help="The trainable, or a name registered with Tune."),
    ]
    param_space: ParamSpace = None
    search_alg: SearchAlg = None
    imports: Imports = None
    python: Annotated[str | None, "Interpreter that has Ray and the trainable."] = None
    image: Annotated[str | None, "Image of the pods, where trials run in pods."] = None
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Environment variable of the runners. No secrets. Can be repeated.",
        ),
    ] = None
    runtime_env_json: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Ray runtime_env of jobs, as a JSON object. Its code is named by URLs.",
        ),
    ] = None
    resume_errored: Annotated[bool | None, option_of_plan("resume_errored")] = None
    restart_errored: Annotated[bool | None, option_of_plan("restart_errored")] = None
    resume_unfinished: Annotated[bool | None, option_of_plan("resume_unfinished")] = None
    resume_cut_short: Annotated[bool | None, option_of_plan("resume_cut_short")] = None
    finished: Annotated[ResumeType | None, option_of_plan("finished")] = None
    unfinished: Annotated[ResumeType | None, option_of_plan("unfinished")] = None
    errored: Annotated[ResumeType | None, option_of_plan("errored")] = None
    strategy: Annotated[str | None, option_of_plan("strategy")] = None
    fresh_budget: Annotated[bool | None, option_of_plan("fresh_budget")] = None
    trim_results: Annotated[bool | None, option_of_plan("trim_results")] = None
    newest_checkpoint: Annotated[bool | None, option_of_plan("newest_checkpoint")] = None
    allow_scratch: Annotated[bool | None, option_of_plan("allow_scratch")] = None
    remember_scheduler: Annotated[bool | None, option_of_plan("remember_scheduler")] = None
    ignore_tuner: Annotated[bool | None, option_of_plan("ignore_tuner")] = None
    trust_name: Annotated[bool | None, option_of_plan("trust_name")] = None

    def recipe(self) -> Recipe:
        """Return the recipe (InvalidInputError if an option is not valid)."""
        refuse_two_choices(self)
        by_status = {name: getattr(self, name) for name in ("finished", "unfinished", "errored")}
        runtime_env = self.runtime_env_json
        return Recipe.parse(
            {
                **{name: getattr(self, name) for name in _SAME},
                "imports": self.imports or None,
                "env": _parse_env(self.env or ()) or None,
                "runtime_env": None if runtime_env is None else parse_runtime_env(runtime_env),
                "resume_config": by_status if any(by_status.values()) else None,
            }
        )


@app.command(short_help="Write the recipe of an experiment.")
@with_options
def write(
    experiment: ExperimentUri,
    *,
    options: RecipeOptions,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the recipe that it has.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the recipe of EXPERIMENT: what restores it, where a DAG or --recipes allows that.

    Everyone who can write to the experiment can change its recipe. So it holds no secrets, and no file of
    the machine that reads it.
    """
    store = open_experiment(experiment)
    try:
        recipe = options.recipe()
        write_recipe(store, recipe, overwrite=force)
    except KeyExistsError:
        raise InvalidInputError(
            f"{store.uri} has a recipe already: {_describe_written(store)}. Nothing was written. Add "
            "--force to overwrite it."
        ) from None
    except InvalidInputError as error:
        reason = str(error).rstrip(".")
        raise InvalidInputError(f"Nothing was written to {store.uri}: {reason}.") from None
    sentence = f"Written to {layout.RECIPE} of {store.uri}."
    output.print_recipe(recipe, sentence, as_json=as_json, experiment=store.uri)


@app.command(short_help="Print the recipe of an experiment.")
def show(experiment: ExperimentUri, *, as_json: Json = False) -> None:
    """Print the recipe of EXPERIMENT as JSON, and the recorded name of its trainable.

    Exit code 2: it has none, or none that can be used.
    """
    store = open_experiment(experiment)
    names = _recorded_names(read_base(store))
    recipe = _read(store)
    output.print_recipe(
        recipe,
        _describe_names(names),
        as_json=as_json,
        experiment=store.uri,
        trainable_names=names,
    )


@app.command(short_help="Check the recipe of an experiment.")
def check(
    experiment: ExperimentUri,
    *,
    recipes: RecipePatterns = None,
    check_timeout: CheckTimeout = DEFAULT_CHECK_TIMEOUT,
    as_json: Json = False,
) -> None:
    """Check whether the recipe of EXPERIMENT is valid, and fits the recorded name of its trainable.

    Without --recipes nothing that it names is imported. With --recipes its modules must match, and then
    the trainable is loaded on this machine in a process of its own, as `restore` does before it starts.

    Exit code 2: there is none, it is not valid, or it does not fit.
    """
    from airflow_tune_restore.cli.trainables import parse_patterns

    modules = parse_patterns(recipes or ())
    store = open_experiment(experiment)
    names = _recorded_names(base := read_base(store))
    recipe = _read(store, modules or (ALL_MODULES,))
    if recipe.ignore_tuner:
        base = read_base(store, ignore_tuner=True)
    if not modules:
        _refuse_other_name(store, recipe, names)
        sentence = (
            f"The recipe is valid. {_describe_names(names)} {recipe.trainable} was not loaded: --recipes "
            "does that, for modules that you trust."
        )
        answer = None
    else:
        with sigterm_as_ctrl_c(), runner_credentials(experiment):
            answer = _load(store, recipe, base, check_timeout)
        sentence = f"The recipe is valid, and its trainable fits: {_describe_match(answer)}"
    output.print_recipe(
        recipe,
        sentence,
        as_json=as_json,
        experiment=store.uri,
        trainable_names=names,
        matched_by=answer and answer.matched_by,
        note=answer.message if answer else "",
    )


def _read(store: ObjectStore, modules: Sequence[str] = (ALL_MODULES,)) -> Recipe:
    try:
        return read_recipe(store, modules)
    except KeyNotFoundError:
        command = (
            f"tune-restore recipe write {quote(store.uri)} --trainable package.module:attribute"
        )
        raise InvalidInputError(
            f"{store.uri} has no recipe ({layout.RECIPE}). `{command}` writes one."
        ) from None
    except InvalidInputError as error:
        raise InvalidInputError(f"{store.uri}: {error}.") from None


def _describe_written(store: ObjectStore) -> str:
    """Return the recipe that an experiment has, in one line."""
    try:
        return printable(" ".join(read_recipe(store).to_json().decode().split()), 1000)
    except InvalidInputError as error:
        return str(error)


def _recorded_names(experiment: Experiment) -> list[str]:
    """Return the names of trainables that an experiment recorded, that of `tuner.pkl` first."""
    tuner = experiment.tuner
    first = [tuner.trainable_name] if tuner is not None and tuner.trainable_name else []
    return list(dict.fromkeys([*first, *experiment.trainables]))


def _describe_names(names: Sequence[str]) -> str:
    if not names:
        return "The experiment has recorded no name of a trainable."
    return f"The experiment has recorded the trainable {' and '.join(names)}."


def _refuse_other_name(store: ObjectStore, recipe: Recipe, names: Sequence[str]) -> None:
    """Refuse a name registered with Tune that is not recorded; that of an attribute is not known yet."""
    name = recipe.trainable
    if ":" not in name and names and name not in names:
        raise TrainableMisfitError(
            f"{store.uri}: its recipe names the trainable {printable(name)}. {_describe_names(names)} "
            "Give the name that was recorded, or package.module:attribute."
        )


def _load(
    store: ObjectStore, recipe: Recipe, experiment: Experiment, timeout: timedelta
) -> CheckAnswer:
    """Load the trainable in a child process, and compare it with the experiment."""
    from airflow_tune_restore.cli.restore import check_trainable

    plan = build_plan(
        experiment, recipe.apply_to(PlanChoices()), restore_id="check", checkpoints={},
        can_search=recipe.search_alg is not None,
    )  # fmt: skip
    settings = RunnerSettings(
        trainable=recipe.trainable,
        param_space=recipe.param_space,
        search_alg=recipe.search_alg,
        imports=recipe.imports or (),
    )
    launcher = LauncherOptions().build(recipe=recipe)
    prepared = PreparedRestore.of(store, experiment, plan, PrepareOptions())
    answer = check_trainable(prepared, launcher, settings, timeout)
    assert answer is not None  # noqa: S101  the local launcher checks
    return answer


def _describe_match(answer: CheckAnswer) -> str:
    by_module = answer.matched_by is MatchedBy.MODULE
    evidence = "a pickle of it names this module" if by_module else "its name is the recorded one"
    return f"{evidence}. {answer.message}".rstrip()


def _parse_env(given: Sequence[str]) -> Mapping[str, Any]:
    env = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not (name.strip() and separator):
            raise InvalidInputError(f"--env {text} is not NAME=VALUE")
        env[name] = value
    return env
