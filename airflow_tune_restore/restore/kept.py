"""The fate of each trial in a plan, and the option that would run those that it does not run."""

from collections import Counter
from collections.abc import Callable

from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.plan import RestorePlan, RunOption, TrialPlan

NameOption = Callable[[str], str]
"""Returns an option as it is written: `--resume-errored` in a shell, `resume_errored=True` in a DAG."""

STAYS = "that stay as they are"
FATES = ("to run", "in quarantine", "to become TERMINATED", STAYS)
"""The fates of trials, in words that count many of them; those to run first."""


def fate_of(trial: TrialPlan) -> str:
    """Return what becomes of a trial: one of `FATES`."""
    if trial.runs:
        return "to run"
    if trial.action is not TrialAction.KEEP:
        return "to become TERMINATED"
    return "in quarantine" if trial.quarantined else STAYS


def in_dag(option: str) -> str:
    """Return an option as an argument of an operator or of the task group."""
    return f"{option}=True"


def describe_kept(plan: RestorePlan, name_option: NameOption) -> list[str]:
    """Return one sentence for each option that would run trials which the plan does not run."""
    counts = Counter(trial.runs_with for trial in plan.trials if trial.runs_with is not None)
    return [
        _describe(option, counts[option], name_option) for option in RunOption if counts[option]
    ]


def _describe(option: RunOption, count: int, name_option: NameOption) -> str:
    stay, them = ("stays as it is", "it") if count == 1 else ("stay as they are", "them")
    would = f"{name_option(option)} would run {them}"
    match option:
        case RunOption.RESUME_ERRORED:
            either = f"{name_option(option)} or {name_option('restart_errored')} would run {them}"
            return f"{counted(count, 'ERROR trial')} {stay}: {either}"
        case RunOption.RESUME_UNFINISHED:
            become = "becomes" if count == 1 else "become"
            return f"{counted(count, 'unfinished trial')} {become} TERMINATED: {would}"
        case RunOption.RESUME_CUT_SHORT:
            return f"{counted(count, 'trial')} that fail_fast cut short {stay}: {would}"
        case RunOption.ALLOW_SCRATCH:
            over = f"{name_option(option)} would start {them} over"
            return f"{counted(count, 'trial')} whose checkpoints are gone {stay}: {over}"
        case RunOption.FINISHED:  # not a switch
            again = (
                f"--finished resume (resume_config={{'finished': 'resume'}}) would run {them} again"
            )
            return f"{counted(count, 'finished trial')} {stay}: {again}"
