"""A restore that is prepared and not yet started, and the options that it was prepared with."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from airflow_tune_restore.experiments.evidence import DriverStatus
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.protocol.lease_watch import Watch
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.estimate import Course, read_course
from airflow_tune_restore.restore.kept import NameOption, in_dag
from airflow_tune_restore.restore.only import Only
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.recipe import Recipe
from airflow_tune_restore.restore.recipes import Recipes
from airflow_tune_restore.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """The options of one restore before it starts.

    Args:
        only: Which of the trials are taken that the flags would run.
        prefix: The prefix that was searched, to which globs of `only` are relative; None if unknown.
        stale_after: Silence after which the experiment counts as dead.
        can_start: Whether a param_space is given: an experiment that never started can be started.
        can_search: Whether a search_alg is given, for samples whose own searcher is lost.
        ask_driver: Returns whether a driver runs for an experiment (URI) that looks dead.
        name_option: Returns an option as its user writes it.
        ask_holder: Returns whether another restore that holds the lease is known to have ended.
        recipes: The recipes of all experiments; None if all are restored in the same way.
        recipe: The one of this experiment, once it is known (`for_trainable`).
        most_tasks: How many tasks the trials may have (`restore.part`); None for any number.
        reads_course: Whether it is read how far and how fast the trials run, for an estimate.
        in_pods: Whether each trial runs in a pod of its own: then none shares a driver.
        pause_at: When its window ends: then nothing is started any more, and what runs is paused. None
            without one.
    """

    choices: PlanChoices = field(default_factory=PlanChoices)
    only: Only = field(default_factory=Only)
    prefix: str | None = None
    stale_after: timedelta = DEFAULT_STALE_AFTER
    can_start: bool = False
    can_search: bool = False
    ask_driver: Callable[[str], DriverStatus] | None = None
    name_option: NameOption = in_dag
    ask_holder: AskHolder | None = None
    recipes: Recipes | None = None
    recipe: Recipe | None = None
    most_tasks: int | None = None
    reads_course: bool = False
    in_pods: bool = False
    pause_at: datetime | None = None

    @property
    def window_end(self) -> str:
        """The end of the window as the plan records it; "" without one."""
        return self.pause_at.isoformat() if self.pause_at is not None else ""

    @property
    def go_by_name(self) -> bool:
        """Whether the trainable was chosen by its name alone."""
        if self.recipes is None or self.recipe is None:
            return True
        return self.recipes.goes_by_name(self.recipe)

    def for_trainable(self, store: ObjectStore, name: str) -> "PrepareOptions":
        """Return the options for the experiment at the store's root, made with this trainable.

        Raises:
            UnknownTrainableError: If none of the recipes restores it.
        """
        if self.recipes is None:
            return self
        recipe = self.recipes.choose(store, name)
        return replace(
            self,
            recipe=recipe,
            choices=recipe.apply_to(self.choices),
            can_start=self.can_start or recipe.param_space is not None,
            can_search=self.can_search or recipe.search_alg is not None,
        )

    @property
    def takes_some(self) -> bool:
        """Whether only some trials are restored. Then the search is not continued."""
        return bool(self.choices.trials) or self.only.narrows


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRestore:
    """A restore that can be started. It is small: its state is read again when it starts.

    Args:
        options: The options that it was prepared with.
        samples_left: Samples that were never drawn; None if unknown.
        searcher_lost: Why their own searcher is lost; "" if it is not.
        is_started: Whether an earlier try of the caller started this restore.
        is_search: Whether it continues the search and nothing else, whatever its trials are.
        health_reason: Why the experiment counts as dead.
        nothing_to_do: Why nothing else is to do, if it only settles what a dead restore left.
        last_write: The newest write to the experiment by the store's clock (UTC); None if unknown.
        watch: The watch of another restore that holds the lease and looks dead, if there is one.
        course: How far and how fast the trials run, if the options ask for it.
    """

    store: ObjectStore
    plan: RestorePlan
    options: PrepareOptions = field(default_factory=PrepareOptions)
    samples_left: int | None = None
    searcher_lost: str = ""
    is_started: bool = False
    is_search: bool = False
    health_reason: str = ""
    nothing_to_do: str = ""
    last_write: datetime | None = None
    watch: Watch | None = None
    course: Course = field(default_factory=Course)

    @property
    def samples_to_draw(self) -> int | None:
        """Samples that are drawn in this restore, or behind it; None if their number is unknown."""
        if self.plan.continues_search:
            return self.samples_left
        is_part = self.options.takes_some or bool(self.plan.choices.trials)
        return 0 if is_part or self.plan.searcher_lost else self.samples_left or 0

    @classmethod
    def of(
        cls,
        store: ObjectStore,
        experiment: Experiment,
        plan: RestorePlan,
        options: PrepareOptions,
        **more: Any,
    ) -> "PreparedRestore":
        """Return the prepared restore of an experiment."""
        return cls(
            store=store,
            plan=plan,
            options=options,
            samples_left=experiment.samples_left,
            searcher_lost=experiment.searcher_lost,
            course=read_course(experiment, plan) if options.reads_course else Course(),
            **more,
        )
