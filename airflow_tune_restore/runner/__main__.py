"""`python -m airflow_tune_restore.runner`: runs one attempt of a trial or a sweep, or checks a trainable.

    run   --experiment URI --request KEY [--parent-pid PID | --home DIRECTORY]
    check [--trainable NAME [--import MODULE]… [--param-space NAME]] [--then-run FD FD]

`check` without a trainable reads a `protocol.check.CheckRequest` from stdin and checks its experiments.
With `--then-run` it writes a line to the second descriptor when it has, and waits at the first one for
the arguments of `run`, a JSON list in one line. Without one, at the end of file, it exits.
Credentials come from the environment. It needs only ray, pyarrow and fsspec.
"""

import argparse
import atexit
import contextlib
import json
import logging
import os
import shutil
import sys
from dataclasses import replace

from airflow_tune_restore.exceptions import LeaseLostError, TuneRestoreError
from airflow_tune_restore.protocol.check import STAGE_PREFIX, CheckRequest
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import (
    EXIT_FENCED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    RunnerRequest,
    TrialAction,
)
from airflow_tune_restore.runner import unbroken_stdout
from airflow_tune_restore.runner.heartbeat import FencedError
from airflow_tune_restore.runner.signals import StopRequestedError, StopSignals
from airflow_tune_restore.storage.fs import open_store

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables show one trial only
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this interpreter, even if uv started it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # SIGINT is handled like SIGTERM, see signals
}
"""Environment variables for Ray, unless the user sets them."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code (see protocol.request)."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        if options.command == "run":
            return _run(options)
        return _check_and_run(options, *options.then_run) if options.then_run else _check(options)
    except (FencedError, LeaseLostError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FENCED
    except TuneRestoreError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED
    except StopRequestedError:
        return EXIT_INTERRUPTED  # before the first heartbeat
    finally:
        if home := getattr(options, "home", None):
            shutil.rmtree(home, ignore_errors=True)


def _run(options: argparse.Namespace) -> int:
    stop = StopSignals()  # first, so that every later signal leads to an outcome
    from airflow_tune_restore.runner.outcome import EXIT_CODES

    store = open_store(options.experiment)
    written = read_record(store, options.request, RunnerRequest.from_json)
    request = replace(written, experiment=options.experiment)  # do not trust the URI in it
    if request.action is TrialAction.SWEEP:
        from airflow_tune_restore.runner.sweep import Sweep

        return EXIT_CODES[Sweep(store, request, stop, options.parent_pid).run()]
    from airflow_tune_restore.runner.attempt import Attempt

    return EXIT_CODES[Attempt(store, request, stop, options.parent_pid).run()]


def _check_and_run(options: argparse.Namespace, arguments: int, output: int) -> int:
    """Check, then wait for an attempt, and run it with what is imported."""
    try:
        for descriptor in (arguments, output):  # the user's code may start processes
            os.set_inheritable(descriptor, False)  # noqa: FBT003  positional only
    except OSError:  # the interpreter is a program that closed them
        return _check(options)
    if (code := _check(options)) != 0:
        return code
    with contextlib.suppress(BrokenPipeError):
        os.write(output, b"\n")
    from airflow_tune_restore.runner import attempt  # noqa: F401  while nothing else is to be done

    with open(arguments, encoding="utf-8") as lines:  # noqa: PTH123  a descriptor
        given = lines.readline()
    if not given:
        return 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    return _run(_parse(json.loads(given)))


def _check(options: argparse.Namespace) -> int:
    """Check a trainable with the experiments in stdin, or alone."""
    if options.trainable is None:
        request = CheckRequest.from_json(sys.stdin.buffer.read())
    else:
        request = CheckRequest(
            trainable=options.trainable, imports=options.imports, param_space=options.param_space
        )
    _show_stage("importing Ray")
    from airflow_tune_restore.runner.check import answers
    from airflow_tune_restore.runner.given import load_given

    given = load_given(
        request.trainable,
        param_space=request.param_space,
        imports=request.imports,
        searchers=[experiment.search_alg for experiment in request.experiments],
        show_stage=_show_stage,
    )
    if options.trainable is not None:
        print(f"{given.text} is the trainable {given.name!r}.")  # noqa: T201
    for answer in answers(given, request.experiments, _show_stage):
        print(f"\n{answer.to_line()}", flush=True)  # noqa: T201  the user's code may leave a line open
    return 0


def _show_stage(stage: str) -> None:
    print(f"\n{STAGE_PREFIX}{printable(stage)}", flush=True)  # noqa: T201


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_tune_restore.runner", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one attempt of one trial")
    run.add_argument("--experiment", required=True)
    run.add_argument("--request", required=True)
    run.add_argument("--parent-pid", type=int, help="end when this process ends")
    run.add_argument("--home", help="directory of a detached runner, removed at the end")
    check = commands.add_parser("check", help="check a trainable, with the experiments in stdin")
    check.add_argument("--trainable", help="check it alone")
    check.add_argument("--param-space")
    check.add_argument("--import", dest="imports", action="append", default=[])
    check.add_argument("--then-run", nargs=2, type=int, help="stay, and run what is asked for then")
    return parser.parse_args(arguments)


def _exit_at_once(codes: list[int]) -> None:
    """Exit with the code, if there is one, and leave the memory to the system.

    To undo the imports of Ray and the user's code would take half a second.
    """
    if codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(codes[0])


if __name__ == "__main__":
    unbroken_stdout.keep_open()
    exit_codes: list[int] = []
    # the first to be registered is the last to be called: other threads and handlers have ended
    atexit.register(_exit_at_once, exit_codes)
    exit_codes.append(main())
    sys.exit(exit_codes[0])
