"""The XCom of a commit: what it did to each experiment; where there are many, with fewer details."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.hooks.xcom_size import first_fitting
from airflow_tune_restore.protocol.printable import counted, printable, share
from airflow_tune_restore.restore.summary import CommitSummary

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

MAX_TRIALS = 1000
"""With more trials, the XCom leaves out those that did not change."""

MAX_IDS = 20
"""Ids of failed, of paused and of quarantined trials of each experiment that has no room for all."""


def describe_summaries(
    continued: Sequence[str], summaries: Sequence[CommitSummary], log: "Logger"
) -> list[Any]:
    """Return the XCom form: one item per experiment, first those for which nothing was to commit.

    If the details of all do not fit, the changes of trials are left out, then most of their ids. At last
    each has only what continues its search, and those without a search to continue may be missing.

    Args:
        continued: Addresses of the experiments of which only the search is left.
        summaries: The commits of the others; `experiment` is an address.
        log: Where one line names what is left out.
    """
    first = [{"experiment": each, "restore_id": None, "samples_left": True} for each in continued]
    for describe, left_out in (
        (_describe, ""),
        (_without_trials, "the changes of trials"),
        (_with_few_ids, f"the changes of trials, and all ids but {MAX_IDS}"),
    ):
        items = first_fitting(chain(first, map(describe, summaries)))
        if len(items) == len(first) + len(summaries):
            if left_out:
                log.info("The XCom of this task has no room for %s.", left_out)
            return items
    return _shortest([*first, *map(_what_is_left, summaries)], log)


def _describe(summary: CommitSummary) -> dict[str, Any]:
    return {**_without_trials(summary), "trials": summary.describe_changes(MAX_TRIALS)}


def _without_trials(summary: CommitSummary) -> dict[str, Any]:
    left = _what_is_left(summary)
    return {
        "experiment": left["experiment"],
        "restore_id": left["restore_id"],
        "state_file": summary.state_file,
        "samples_left": left["samples_left"],
        "trials_run": len(summary.ran),
        "failed": [change.trial_id for change in summary.failed],
        "paused": [change.trial_id for change in summary.paused],
        "quarantined": list(summary.quarantined),
        "headline": summary.headline(),
        "metric": summary.metric and printable(summary.metric),
    }


def _with_few_ids(summary: CommitSummary) -> dict[str, Any]:
    whole = _without_trials(summary)
    failed, paused, quarantined = whole["failed"], whole["paused"], whole["quarantined"]
    return {
        **whole,
        "failed": failed[:MAX_IDS],
        "failed_count": len(failed),
        "paused": paused[:MAX_IDS],
        "paused_count": len(paused),
        "quarantined": quarantined[:MAX_IDS],
        "quarantined_count": len(quarantined),
    }


def _what_is_left(summary: CommitSummary) -> dict[str, Any]:
    """Describe what the continued search needs to know.

    A whole-experiment run that leaves samples undrawn was asked to stop, or its task has failed. Samples
    whose searcher is lost are passed on: the continued search fails because of them. A restore of chosen
    trials leaves the search to a later one.
    """
    is_stopped_run = summary.is_whole_experiment and not summary.searcher_lost
    return {
        "experiment": summary.experiment,
        "restore_id": summary.restore_id,
        "samples_left": 0 if summary.chosen or is_stopped_run else summary.samples_left,
    }


def _shortest(items: Sequence[dict[str, Any]], log: "Logger") -> list[Any]:
    """Return those whose search is continued, by their addresses alone if need be; then the others."""
    ordered = sorted(items, key=lambda item: not item["samples_left"])
    addresses = [item["experiment"] for item in items if item["samples_left"]]
    taken: list[Any] = first_fitting(ordered)
    if len(taken) < len(addresses):
        taken = first_fitting(addresses)
    log.info(
        "The XCom of this task has no room for details. It names %s.",
        share(len(taken), len(items), "experiment"),
    )
    if len(taken) < len(addresses):
        others = counted(len(addresses) - len(taken), "experiment")
        log.warning("The search of %s is not continued now. Start another DAG run.", others)
    return taken
