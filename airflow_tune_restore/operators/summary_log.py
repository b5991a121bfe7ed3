"""The log of a commit: a sentence for each experiment, and the tables of trials while there is room."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_tune_restore.protocol.printable import share
from airflow_tune_restore.restore.shown_rows import MAX_ROWS
from airflow_tune_restore.restore.summary import CommitSummary

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

MAX_TABLE_LINES = 1000
"""Lines that all tables of trials in the log of one task have together."""


def log_summaries(summaries: Sequence[CommitSummary], log: "Logger") -> None:
    """Log each result in one sentence, then the table of its trials; those with failed trials first.

    After `MAX_TABLE_LINES` lines of tables, only the sentences follow.
    """
    room, shown = MAX_TABLE_LINES, 0
    for summary in sorted(summaries, key=lambda summary: not summary.failed):
        log.info("%s", summary.headline())
        if room <= 0:
            continue
        lines = summary.table(most=MAX_ROWS).splitlines()
        for line in lines[:room]:
            log.info("%s", line)
        if len(lines) > room:
            log.info("…")
        room, shown = room - len(lines), shown + 1
    if shown < len(summaries):
        tables = share(shown, len(summaries), "table")
        log.info("This log shows %s of trials, and a sentence for each experiment.", tables)
