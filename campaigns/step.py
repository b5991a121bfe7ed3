"""One task of the chain in a process of its own, as Airflow runs it: the operators' own `execute`.

The processes are forked from a server that has imported Airflow once, so that a step costs what it does.
"""

import os
import sys
from pathlib import Path
from typing import Any

from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.restore import follow, follow_shared
from airflow_tune_restore.version_compat import AirflowFailException, AirflowSkipException
from campaigns.chain import DONE, FAILED, RETRY, SKIPPED, Chain
from tests.support.airflow.context import make_context


def run_step(chain: Chain, step: str, run_id: str, argument: Any, answer: Any) -> None:
    """Execute one operator and send how it ended, and its result, through a pipe."""
    log = os.open(chain.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(chain.env)
    root = Path(__file__).parents[1].as_posix()
    if root not in sys.path:
        sys.path.insert(0, root)
    print(f"--- {step} of {run_id}, pid {os.getpid()}", flush=True)
    context = make_context(run_id=run_id)
    follow.QUIET_SECONDS = follow_shared.QUIET_SECONDS = chain.quiet_seconds
    try:
        result = _OPERATORS[step](chain, argument).execute(context)
        ended = (DONE, result, context["ti"].pushed)
    except AirflowSkipException as error:
        # the next night comes at once here, so it must wait for the lease of the one that died
        is_leased = "is restoring it" in str(error)
        ended = (RETRY if is_leased else SKIPPED, str(error), {})
    except AirflowFailException as error:
        ended = (FAILED, str(error), {})
    except Exception as error:  # noqa: BLE001  as Airflow does
        ended = (RETRY, f"{type(error).__name__}: {error}", {})
    print(f"--- {step} of {run_id}: {ended}", flush=True)
    answer.send(ended)


def _plan(chain: Chain, _argument: Any) -> BuildRestorePlanOperator:
    return BuildRestorePlanOperator(
        task_id="plan",
        experiments=chain.experiment,
        resume_errored=True,
        strategy=chain.strategy,
        stale_after=0,
        lease_ttl=chain.lease_ttl,
    )


def _trial(chain: Chain, item: Any) -> RestoreTrialOperator:
    return RestoreTrialOperator(
        task_id="trial",
        trial=item,
        trainable=chain.trainable,
        python=chain.python,
        env=chain.runner_env,
    )


def _commit(_chain: Chain, outcomes: Any) -> CommitRestoreOperator:
    return CommitRestoreOperator(task_id="commit", outcomes=outcomes)


_OPERATORS: dict[str, Any] = {"plan": _plan, "trial": _trial, "commit": _commit}
