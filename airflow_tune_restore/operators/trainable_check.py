"""Checks on a worker, before anything is leased, whether the trainable fits the experiments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.launch.local import build_launcher
from airflow_tune_restore.restore.prepare import PreparedRestore


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableCheck:
    """The check of one plan task. The arguments are those of `BuildRestorePlanOperator`."""

    hook: ExperimentStorageHook
    launcher: str
    python: str | None
    runner_user: str | None
    env: Mapping[str, str]
    trainable: str
    param_space: str | None
    search_alg: str | None
    imports: Sequence[str]

    def errors(
        self, places: Mapping[str, Address], prepared: Mapping[str, PreparedRestore]
    ) -> dict[str, TuneRestoreError]:
        """Return why the trainable does not fit, or cannot be checked, by experiment."""
        answers: dict[tuple[str, str], InvalidInputError | None] = {}
        errors: dict[str, TuneRestoreError] = {}
        for text, restore in prepared.items():
            plan, search_alg = restore.plan, self._search_alg(restore)
            # the answer is the same for all experiments with one recorded name, unless it depends on a
            # param_space, a searcher, a tuner.pkl that is ignored, or a user who may not write everywhere
            is_its_own = self.param_space or search_alg or plan.ignore_tuner or self.runner_user
            question = (plan.trainable_name, plan.experiment if is_its_own else "")
            error: TuneRestoreError | None = answers.get(question)
            if plan.has_work and not restore.is_started and question not in answers:
                error = self._check(places[text], restore)
                # other errors may not happen with the next experiment
                if error is None or isinstance(error, InvalidInputError):
                    answers[question] = error
            if error is not None:
                errors[text] = error
        return errors

    def _check(self, address: Address, restore: PreparedRestore) -> TuneRestoreError | None:
        try:
            with self.hook.runner_env(address) as credentials:
                launcher = build_launcher(
                    self.launcher,
                    python=self.python,
                    env={**credentials, **self.env},
                    runner_user=self.runner_user,
                )
                launcher.check(
                    experiment=restore.plan.experiment,
                    trainable=self.trainable,
                    trainable_name=restore.plan.trainable_name,
                    param_space=self.param_space,
                    search_alg=self._search_alg(restore),
                    imports=self.imports,
                    ignore_tuner=restore.plan.ignore_tuner,
                )
        except TuneRestoreError as error:
            return error
        except Exception as error:  # noqa: BLE001  reported, and it must not stop the others
            return report_unexpected(str(address), error)
        return None

    def _search_alg(self, restore: PreparedRestore) -> str | None:
        """Return the searcher that the user named, if the experiment needs it."""
        return self.search_alg if restore.experiment.searcher_lost else None
