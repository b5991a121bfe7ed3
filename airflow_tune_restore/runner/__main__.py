"""`python -m airflow_tune_restore.runner`: runs one attempt of one trial, or checks that it could.

    run   --experiment URI --request KEY [--parent-pid PID]
    check --trainable NAME --trainable-name RECORDED [--import MODULE]… [--param-space NAME]
          --experiment URI

Credentials come from the environment. Nothing but ray, pyarrow and fsspec is needed.
"""

import argparse
import logging
import os
import sys

from airflow_tune_restore.exceptions import LeaseLostError, TuneRestoreError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.restore.request import EXIT_FENCED, EXIT_REFUSED, RunnerRequest
from airflow_tune_restore.runner.heartbeat import FencedError
from airflow_tune_restore.storage.fs import open_store


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code (see restore.request)."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables tell of one trial only
    try:
        return _check(options) if options.command == "check" else _run(options)
    except (FencedError, LeaseLostError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FENCED
    except TuneRestoreError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED


def _run(options: argparse.Namespace) -> int:
    from airflow_tune_restore.runner.attempt import EXIT_CODES, run_attempt

    store = open_store(options.experiment)
    request = RunnerRequest.from_json(store.get(options.request))
    return EXIT_CODES[run_attempt(store, request, options.parent_pid)]


def _check(options: argparse.Namespace) -> int:
    from airflow_tune_restore.runner.attempt import load

    request = RunnerRequest(
        experiment=options.experiment,
        restore_id="",
        trial_id="",
        attempt=0,
        trainable=options.trainable,
        trainable_name=options.trainable_name,
        action="resume",
        param_space=options.param_space,
        imports=options.imports,
    )
    _, param_space = load(request)
    if param_space is not None:
        _check_param_space(options.experiment, param_space)
    print(f"{options.trainable} is the trainable {options.trainable_name!r}.")  # noqa: T201
    return 0


def _check_param_space(experiment: str, param_space: dict[str, object]) -> None:
    """Compare the keys as Ray will (ray.tune.impl.tuner_internal, 2.60)."""
    from ray import cloudpickle
    from ray.tune.impl.tuner_internal import TunerInternal

    from airflow_tune_restore.exceptions import InvalidInputError, KeyNotFoundError

    try:
        state = cloudpickle.loads(open_store(experiment).get(layout.TUNER_FILE))
    except (KeyNotFoundError, EOFError):
        return  # the plan warns that tuner.pkl is lost; there is nothing to compare with
    try:
        TunerInternal._validate_param_space_on_restore(
            None, param_space, state.get("__flattened_param_space_keys")
        )
    except ValueError as error:
        raise InvalidInputError(" ".join(str(error).split())) from error


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_tune_restore.runner", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one attempt of one trial")
    run.add_argument("--experiment", required=True)
    run.add_argument("--request", required=True)
    run.add_argument("--parent-pid", type=int)
    check = commands.add_parser("check", help="say whether a trainable fits an experiment")
    check.add_argument("--experiment", required=True)
    check.add_argument("--trainable", required=True)
    check.add_argument("--trainable-name", required=True)
    check.add_argument("--param-space")
    check.add_argument("--import", dest="imports", action="append", default=[])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
