"""Checks on a worker, before anything is leased, whether the trainable fits the experiments."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.launch.local import build_launcher
from airflow_tune_restore.operators.recipe_operator import settings_of
from airflow_tune_restore.protocol.check import CheckAnswer, MatchedBy
from airflow_tune_restore.restore.check_request import build_check_request
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.restore.recipe import Recipe

CHECK_FIELDS = ("trainable", "param_space", "search_alg", "imports", "python", "env")
"""The arguments of a plan task that a check needs."""


@dataclass(frozen=True, slots=True)
class CheckedExperiments:
    """The result of a check, by experiment.

    Args:
        errors: Why the trainable does not fit, or why that could not be checked. A
            `TrainableMisfitError` if the experiment was made with another trainable.
        by_module: The experiments of which a pickle names the module of the trainable. For the others
            that were checked, only the name of the trainable is evidence.
        warnings: Evidence against the trainable that the user chose to ignore (`trust_name`), or that is
            too weak for a refusal.
    """

    errors: dict[str, TuneRestoreError] = field(default_factory=dict)
    by_module: set[str] = field(default_factory=set)
    warnings: dict[str, str] = field(default_factory=dict)

    def add(self, text: str, answer: CheckAnswer) -> None:
        """Add the answer for one experiment."""
        if (error := answer.error()) is not None:
            self.errors[text] = error
            return
        if answer.matched_by is MatchedBy.MODULE:
            self.by_module.add(text)
        if answer.message:
            self.warnings[text] = answer.message


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableCheck:
    """The check of one plan task.

    Args:
        hook, launcher, runner_user, timeout: As in `BuildRestorePlanOperator`.
        own: Its arguments `CHECK_FIELDS`, over which each recipe is laid.
        is_for_all: Whether one recipe restores all experiments.
    """

    hook: ExperimentStorageHook
    launcher: str
    runner_user: str | None
    own: Mapping[str, Any]
    is_for_all: bool
    timeout: timedelta

    def run(
        self, places: Mapping[str, Address], prepared: Mapping[str, PreparedRestore]
    ) -> CheckedExperiments:
        """Check each code once for all experiments that are reached with the same credentials.

        Restores that an earlier try has started, and those that run no trial, are not checked.

        Raises:
            InvalidInputError: If the trainable or the param_space for all experiments cannot be used.
        """
        groups: dict[tuple[str | None, str], list[str]] = {}
        for text, restore in prepared.items():
            runs_later = restore.plan.has_work or restore.nothing_to_do  # it is planned again
            if runs_later and not restore.is_started:
                # recipes that differ in their flags alone are checked together
                key = places[text].conn_id, repr(_recipe_of(restore).over(self.own))
                groups.setdefault(key, []).append(text)
        checked = CheckedExperiments()
        for texts in groups.values():
            try:
                self._check({text: places[text] for text in texts}, prepared, checked)
            except TuneRestoreError as error:
                if isinstance(error, InvalidInputError) and self.is_for_all:
                    raise
                checked.errors.update(dict.fromkeys(texts, error))
            except Exception as error:  # noqa: BLE001  reported, and it must not stop the others
                unexpected = {text: report_unexpected(text, error) for text in texts}
                checked.errors.update(unexpected)
        return checked

    def _check(
        self,
        places: Mapping[str, Address],
        prepared: Mapping[str, PreparedRestore],
        checked: CheckedExperiments,
    ) -> None:
        """Check experiments of one recipe that are reached with the same credentials."""
        given = _recipe_of(prepared[next(iter(places))]).over(self.own)
        with ExitStack() as stack:
            try:
                credentials = stack.enter_context(self.hook.runner_env(next(iter(places.values()))))
            except (
                InvalidInputError
            ) as error:  # the connection cannot be used; the trainable may fit
                checked.errors.update(dict.fromkeys(places, error))
                return
            launcher = build_launcher(
                self.launcher,
                python=parse_text(given["python"]),
                env={**credentials, **(given["env"] or {})},
                runner_user=self.runner_user,
            )
            request = build_check_request(settings_of(given), [prepared[text] for text in places])
            answers = launcher.check(request, self.timeout)
        for text, answer in zip(places, answers, strict=True):
            checked.add(text, answer)


def _recipe_of(restore: PreparedRestore) -> Recipe:
    recipe = restore.options.recipe
    assert recipe is not None  # noqa: S101  the plan task has given recipes
    return recipe
