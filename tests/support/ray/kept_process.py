"""A process that has Ray and does one thing after another: starting Ray anew for each costs 10 s.

    python -m tests.support.ray.kept_process

Of the two that `Hosts` has, one starts a Ray, and makes, restores and describes experiments; the other
runs the runner's own command line, again and again.
One JSON line on stdin is one call; output goes to stdout as it comes, then one line that begins with
`ENDED` and holds the answer. The runner connects to the first one's Ray by its address, and leaves it.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ENDED = "\x1eENDED "


class DiedError(Exception):
    """Raised where a driver would be killed: what lies in storage then was copied before."""


class HungError(Exception):
    """Raised where Ray would wait for ever for a sample."""


SEARCHER_REFUSED = "self._search_alg.on_trial_"
"""Of the traceback with which a run of Ray's breaks off that told its searcher of a trial."""


class LostError(BaseException):
    """Raised where Ray would go on after it could not take up the state; it catches every Exception."""


class Unforgetting(dict):
    """What Tune puts into a Ray once one is joined, and then forgets: it is put into the next, too."""

    def clear(self) -> None:
        """Forget nothing."""


def forget_nothing() -> None:
    """Let registered trainables and parameters be there in every Ray that this process joins."""
    from ray.tune import registry

    def remember(parameters: Any) -> None:
        parameters.to_flush, parameters.references = Unforgetting(), {}

    registry._ParameterRegistry.__init__ = remember
    registry._global_registry._to_flush = Unforgetting(registry._global_registry._to_flush)


@contextlib.contextmanager
def applied(env: dict[str, str]) -> Iterator[None]:
    """Let one call, and the trials that it starts, have these variables; no later call has them.

    Ray's workers have the environment of their node. What a driver's Tune is to hand on goes into the
    runtime_env of its trials, by name.
    """
    from ray.tune.execution import class_cache

    from airflow_tune_restore.runner.tune.private_api import replaced

    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    names = {*class_cache.ENV_VARS_TO_PROPAGATE, *env}
    try:
        with replaced(class_cache, "ENV_VARS_TO_PROPAGATE", names):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start_ray() -> dict[str, Any]:
    import ray

    from airflow_tune_restore.runner.ray_session import start

    start(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
        object_store_memory=100 * 1024**2,
    )  # fmt: skip
    return {"address": ray.get_runtime_context().gcs_address}


def join_ray(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False)


def make(recipe: dict[str, Any]) -> dict[str, Any]:
    """Run `Tuner(…).fit()` by a recipe: `module:function`, called with `arguments`, makes the Tuner.

    With `dies_after`, the storage is copied to `image` once that many results were taken in and the
    step of the controller is done; nothing that happens later is in the image.
    """
    from ray.tune import tune as tune_module
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.result import RESULT_DUPLICATE

    from airflow_tune_restore.runner.tune.private_api import replaced
    from tests.support.ray.tuner_restore import load

    class Dying(TuneController):
        results = 0

        def _process_trial_result(self, trial: Any, result: dict[str, Any]) -> Any:
            self.results += RESULT_DUPLICATE not in result
            return super()._process_trial_result(trial, result)

        def step(self) -> None:
            super().step()
            statuses = {trial.status for trial in self._trials}
            if self.results >= recipe["dies_after"] and statuses.issuperset(recipe["dies_with"]):
                if recipe["is_saved"]:
                    self.checkpoint(force=True, wait=True)
                self._upload_whole()
                shutil.copytree(self._storage.experiment_fs_path, recipe["image"])
                raise DiedError

        def _upload_whole(self) -> None:
            """Upload what was saved last once more, with nobody writing to it meanwhile.

            Ray writes a snapshot in place while the one before is uploaded: what lies in storage may be
            cut off, which has tests of its own.
            """
            storage = self._storage
            storage.syncer.wait()
            storage.syncer.sync_up(
                storage.experiment_driver_staging_path, storage.experiment_fs_path
            )
            storage.syncer.wait()

    tuner = load(recipe["tuner"])(**recipe["arguments"])
    if recipe.get("dies_after") is None:
        tuner.fit()
        return {"died": False}
    with replaced(tune_module, "TuneController", Dying):
        try:
            tuner.fit()
        except DiedError:
            return {"died": True}
    return {"died": False}


def restore(case: dict[str, Any]) -> dict[str, Any]:
    """Run `Tuner.restore(…).fit()` as a driver would that starts on a fresh machine.

    Within one Ray session a restored trial finds what its old driver had staged, and appends to it.
    """
    from ray.train._internal.storage import _get_ray_train_session_dir
    from ray.tune import tune as tune_module
    from ray.tune.error import TuneError
    from ray.tune.execution.tune_controller import TuneController

    from airflow_tune_restore.runner.tune.private_api import replaced
    from tests.support.ray.tuner_restore import restore_one

    for staged in Path(_get_ray_train_session_dir()).glob("*"):
        shutil.rmtree(staged)

    class Waiting(TuneController):
        def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
            # it blocks only when no trial lives: nobody is left who could change the searcher's mind,
            # however slow the machine
            drawn = super()._update_trial_queue(blocking, min(timeout, 2))
            if blocking and not drawn and not self.is_finished():
                raise HungError  # it would ask the searcher again for ten minutes, over and over
            return drawn

        def resume(self, resume_config: Any) -> None:
            try:
                super().resume(resume_config)
            except Exception as error:
                raise LostError(error) from error  # it would begin an empty experiment in its place

    with replaced(tune_module, "TuneController", Waiting):
        try:
            restore_one(case)
        except HungError:
            return {"hung": True, "lost": ""}
        except LostError as error:
            return {"hung": False, "lost": str(error)}
        except TuneError as error:
            if SEARCHER_REFUSED not in str(error):
                raise
            return {"hung": False, "lost": str(error)}
    return {"hung": False, "lost": ""}


def describe(uri: str) -> dict[str, Any]:
    from tests.support.ray.tuner_restore import describe as described

    return described(uri)


def prepare_runner() -> None:
    """Import what every run needs."""
    forget_nothing()
    import airflow_tune_restore.runner.attempt  # noqa: F401


def run(arguments: list[str]) -> dict[str, Any]:
    """Run the runner's command line."""
    from airflow_tune_restore.runner.__main__ import main

    return {"exit_code": main(arguments)}


def check(request: str) -> dict[str, Any]:
    """Run the runner's check of a trainable, with this request on its stdin."""
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(request.encode()))):
        return run(["check"])


def ask(question: dict[str, Any]) -> Any:
    """Call any function of the tests here, where Ray is."""
    from tests.support.ray.tuner_restore import load

    return load(question["function"])(**question["arguments"])


CALLS = {
    "start_ray": lambda _argument: start_ray(),
    "join_ray": join_ray,
    "make": make,
    "restore": restore,
    "describe": describe,
    "prepare_runner": lambda _argument: prepare_runner(),
    "run": run,
    "check": check,
    "ask": ask,
}


def serve() -> None:
    for line in sys.stdin:
        call = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            with applied(call["env"]) if call["env"] else contextlib.nullcontext():
                answer["value"] = CALLS[call["do"]](call["argument"])
        except Exception as error:  # noqa: BLE001  the caller decides what it means
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        sys.stderr.flush()
        print(f"\n{ENDED}{json.dumps(answer, default=str)}", flush=True)


if __name__ == "__main__":
    # Ray's own output stays on stdout and stderr; both are one stream for the caller
    sys.path.insert(0, Path(__file__).parents[3].as_posix())
    serve()
