"""The page that a person reads before a yes: what will run, for how long, and what will not. Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airflow_tune_restore.operators.totals import WORDS
from airflow_tune_restore.operators.xcom import OutcomeXCom
from airflow_tune_restore.protocol.printable import counted, share
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.protocol.resources import describe
from airflow_tune_restore.restore.estimate import Effort, Estimate, Hours, estimate, total
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.restore.markdown import NOTHING, code, table
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.restore.prepared import PreparedRestore

MAX_PAGE_BYTES = 48_000
"""Of UTF-8: some of Airflow's databases store 65,535 bytes, and a browser must show it at once."""

_MAX_ROWS, _MAX_TRIALS = 100, 50
"""Experiments in the first table, and trials of one experiment."""

_REASON, _ADDRESS, _PARAMETERS, _ID = 300, 300, 120, 80
"""Characters of texts from storage."""

_MORE_BYTES = 200
"""Kept for the line that counts what has no room."""

_LOG = "The log of the preview task has all of them."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    address: str
    restore: PreparedRestore
    estimate: Estimate

    @property
    def plan(self) -> RestorePlan:
        return self.restore.plan


@dataclass(frozen=True, slots=True)
class ApprovalPage:
    """The page that a person approves: subject and body, both Markdown of bounded size.

    The subject has the sums. The body has the experiments, then what is not restored, then the trials of
    each experiment, as far as there is room. Airflow shows the subject above the body.
    """

    subject: str
    body: str

    @classmethod
    def build(
        cls, drafts: Mapping[str, PreparedRestore], others: Sequence[OutcomeXCom]
    ) -> "ApprovalPage":
        """Build the page of restores that are prepared, by address; `others` are not restored."""
        estimated = [
            _Draft(
                address=address,
                restore=restore,
                estimate=estimate(restore.plan, restore.course, samples=restore.samples_to_draw),
            )
            for address, restore in drafts.items()
        ]
        # the most expensive first: that is what a person decides about
        estimated.sort(key=lambda d: (-d.estimate.hours.gpu, -d.estimate.hours.cpu, d.address))
        hours = total(draft.estimate.hours for draft in estimated)
        headline = f"{_count(estimated)}: {describe_hours(hours)}"
        sections = [
            _about(hours),
            *([_experiments(estimated)] if len(estimated) > 1 else []),
            *([_left(others)] if others else []),
            *map(_trials, estimated),
        ]
        return cls(f"Restore {headline}", _joined(sections))


def describe_hours(hours: Hours) -> str:
    """Return GPU- and CPU-hours in words: `at least 12.5 GPU-hours and 3 CPU-hours`."""
    if hours.unknown and not (hours.gpu or hours.cpu):
        return "an unknown number of GPU- and CPU-hours"
    least = "at least " if hours.unknown else ""
    return f"{least}{_number(hours.gpu)} GPU-hours and {_number(hours.cpu)} CPU-hours"


def _count(drafts: Sequence[_Draft]) -> str:
    trials = sum(len(draft.plan.to_run) for draft in drafts)
    words = [counted(trials, "trial")] if trials else []
    with_samples = [draft.estimate for draft in drafts if draft.estimate.samples]
    if with_samples:
        known = sum(each.sample_count or 0 for each in with_samples)
        has_unknown = any(each.sample_count is None for each in with_samples)
        words.append(f"{counted(known, 'new sample')}{' or more' if has_unknown else ''}")
    return f"{' and '.join(words) or '0 trials'} of {counted(len(drafts), 'experiment')}"


def _about(hours: Hours) -> list[str]:
    lines = [
        "The hours are an estimate: the iterations that are left, times the recorded time per "
        "iteration, times the GPUs and CPUs that a trial requests."
    ]
    if hours.unknown:
        lines.append(
            f"They lack {counted(hours.unknown, 'trial')} of which too little is recorded."
        )
    return [
        *lines,
        "Nothing runs before a yes, and no lease is held. A yes counts for this page alone.",
    ]


def _experiments(drafts: Sequence[_Draft]) -> list[str]:
    rows = [
        (
            code(draft.address, _ADDRESS),
            str(len(draft.plan.to_run)),
            _samples(draft.estimate),
            *_cells(draft.estimate.hours),
        )
        for draft in drafts[:_MAX_ROWS]
    ]
    headings = ("experiment", "trials to run", "samples", "GPU-hours", "CPU-hours")
    return [*table(headings, rows), *_more(len(drafts) - len(rows), "experiment")]


def _left(others: Sequence[OutcomeXCom]) -> list[str]:
    """List what is not restored; those that need a person come first."""
    order = list(WORDS)
    ordered = sorted(others, key=lambda item: order.index(item.outcome))
    lines = [
        f"* {code(item.experiment, _ADDRESS)} — {WORDS[item.outcome]}: {code(item.reason, _REASON)}"
        for item in ordered[:_MAX_ROWS]
    ]
    heading = f"### Not restored: {counted(len(others), 'experiment')}"
    return [heading, "", *lines, *_more(len(others) - len(lines), "experiment")]


def _trials(draft: _Draft) -> list[str]:
    plan = draft.plan
    shown = plan.to_run[:_MAX_TRIALS]
    failures = plan.failures or {}
    rows = [
        _row(trial, draft.estimate.trials[trial.trial_id], failures.get(trial.trial_id))
        for trial in shown
    ]
    samples = draft.estimate.samples
    if samples is not None:
        resources = describe(draft.restore.course.sample_resources)
        rows.append(
            (
                _samples(draft.estimate),
                *(NOTHING, "not drawn yet", _iterations(samples), code(resources)),
                *_cells(samples.hours),
            )
        )
    headings = (
        *("trial", "parameters", "status", "iterations", "resources"),
        *("GPU-hours", "CPU-hours"),
    )
    return [
        f"### {code(draft.address, _ADDRESS)}",
        "",
        _how(draft),
        "",
        *(table(headings, rows) if rows else []),
        *_more(len(plan.to_run) - len(shown), "trial"),
    ]


def _how(draft: _Draft) -> str:
    """Return how one experiment is restored, in sentences of this package."""
    plan, restore = draft.plan, draft.restore
    to_run = share(len(plan.to_run), len(plan.trials), "trial")
    way = "each in a run of its own" if len(plan.to_run) > 1 else "in a run of its own"
    if plan.is_whole_experiment:
        way = "in one run of the whole experiment"
    elif sharing := sum(trial.shares_driver for trial in plan.to_run):
        whose = "all" if sharing == len(plan.to_run) else f"{sharing} of them"
        way = f"{whose} in a driver that they share"
    sentences = [f"{to_run} to run, {way}" if plan.to_run else "No recorded trial runs"]
    if plan.waiting:
        sentences.append(f"{plan.waiting} more wait for the next DAG run")
    ended = sum(trial.action is TrialAction.TERMINATE for trial in plan.trials)
    if ended:
        sentences.append(f"{ended} become TERMINATED without a run")
    if plan.quarantined:
        sentences.append(f"{len(plan.quarantined)} in quarantine stay as they are")
    if restore.watch is not None or restore.nothing_to_do:
        sentences.append(
            "A restore that died may have left results. They are committed first, so less may be left "
            "to run"
        )
    state = plan.base.name
    sentences.append(f"Drafted from {code(state)}" if state else "It was never started")
    return ". ".join(text[0].upper() + text[1:] for text in sentences) + "."


def _row(trial: TrialPlan, effort: Effort, history: History | None) -> tuple[str, ...]:
    values = ", ".join(f"{name}={text}" for name, text in trial.parameters.items())
    return (
        code(trial.trial_id, _ID),
        code(values, _PARAMETERS),
        _status(trial, history),
        _iterations(effort),
        code(describe(trial.resources) if trial.resources else "unknown"),
        *_cells(effort.hours),
    )


def _status(trial: TrialPlan, history: History | None) -> str:
    """Return its status, and why it failed in earlier restores: it may fail again."""
    status = str(trial.status) + (" (starts over)" if trial.new_trial_id else "")
    if history is None or not history.failures:
        return status
    last = history.failures[-1]
    why = f"{last.type or last.cause}: {last.message}, at {last.place}".removesuffix(", at ")
    number = counted(len(history.failures), "failed restore attempt")
    return f"{status}; {number}, the last by {code(why, _REASON)}"


def _iterations(effort: Effort) -> str:
    return f"{effort.start} → {'unknown' if effort.end is None else max(effort.end, effort.start)}"


def _samples(estimate: Estimate) -> str:
    if estimate.samples is None:
        return NOTHING
    count = estimate.sample_count
    return "new samples, number unknown" if count is None else counted(count, "new sample")


def _cells(hours: Hours) -> tuple[str, str]:
    if hours.unknown and not (hours.gpu or hours.cpu):
        return "unknown", "unknown"
    least = "≥ " if hours.unknown else ""
    return f"{least}{_number(hours.gpu)}", f"{least}{_number(hours.cpu)}"


def _number(hours: float) -> str:
    if 0 < hours < 0.01:  # noqa: PLR2004  two digits behind the point
        return "less than 0.01"
    if hours < 1:
        return f"{hours:.2f}".rstrip("0").rstrip(".")
    return f"{hours:,.1f}".removesuffix(".0")


def _more(count: int, noun: str) -> list[str]:
    return (
        ["", f"… and {count} more {noun if count == 1 else noun + 's'}. {_LOG}"]
        if count > 0
        else []
    )


def _joined(sections: Sequence[Sequence[str]]) -> str:
    """Join sections, with an empty line between two of them, as far as there is room."""
    lines: list[str] = []
    room = MAX_PAGE_BYTES - _MORE_BYTES
    for line in (line for section in sections for line in (*section, "")):
        room -= len(line.encode()) + 1
        if room < 0:
            lines += ["", f"… and more, for which this page has no room. {_LOG}"]
            break
        lines.append(line)
    return "\n".join(lines).rstrip()
