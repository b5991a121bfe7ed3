"""The output of the process that checks a trainable: answers, the stage it was in, and errors."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import IO

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.protocol.check import STAGE_PREFIX, CheckAnswer, CheckRequest, Problem
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.request import EXIT_REFUSED

_ERROR = "error: "
_MOST_OTHERS = 1000


@dataclass(slots=True)
class CheckOutput:
    """The output of one check. Ray and the user's code may have printed other lines around it.

    Args:
        answers: By experiment.
        stage: What the process did last; "" if it printed none.
        refusal: Its last error, in one sentence; "" if it printed none.
        last_line: The last line on its stderr.
        others: What else it printed, last on stderr: what the user's code says at its import.
    """

    answers: dict[str, CheckAnswer] = field(default_factory=dict)
    stage: str = ""
    refusal: str = ""
    last_line: str = ""
    others: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_OTHERS))

    @classmethod
    def read(cls, stdout: IO[bytes], stderr: IO[bytes]) -> "CheckOutput":
        """Read both files from their beginning."""
        output = cls()
        for line in _lines(stdout):
            _, found, stage = line.partition(STAGE_PREFIX)
            if found:
                output.stage = printable(stage)
            elif (answer := CheckAnswer.from_line(line)) is not None:
                output.answers[answer.experiment] = answer
            elif line:
                output.others.append(line)
        for whole in filter(str.strip, _lines(stderr)):
            output.others.append(whole)
            line = whole.strip()
            output.last_line = printable(line, NOTE_LENGTH)
            if line.startswith(_ERROR):
                output.refusal = output.last_line.removeprefix(_ERROR)
        return output

    def answers_to(
        self, request: CheckRequest, *, python: str, exit_code: int | None, timeout: timedelta
    ) -> list[CheckAnswer]:
        """Return one answer per experiment; `Problem.FAILED` if there is none.

        `exit_code` is None if the process was stopped because the timeout had passed.

        Raises:
            InvalidInputError: If the trainable or the param_space cannot be used at all.
            RunnerError: If there are no answers.
        """
        if exit_code == EXIT_REFUSED and self.refusal:
            raise InvalidInputError(self.refusal)
        asked = [experiment.experiment for experiment in request.experiments]
        missing = [experiment for experiment in asked if experiment not in self.answers]
        if not missing and exit_code == 0:
            return [self.answers[experiment] for experiment in asked]
        stage = f", while it was {self.stage or f'starting {python}'}"
        if exit_code is None:
            limit = timeout.total_seconds()
            why = (
                f"The check of trainable {request.trainable} was stopped after {limit:.10g} s{stage}. A "
                "busy machine or a slow disk may need more time: set "
                f"check_timeout={2 * limit:.10g} (--check-timeout {2 * limit:.10g})."
            )
        else:
            why = (
                f"Could not check trainable {request.trainable}: {python} exited with code {exit_code}"
                f"{stage}. {self.last_line or 'It printed nothing.'}"
            )
        if len(missing) == len(asked):
            raise RunnerError(why)
        failed = {
            experiment: CheckAnswer(experiment=experiment, problem=Problem.FAILED, message=why)
            for experiment in missing
        }
        return [(self.answers | failed)[experiment] for experiment in asked]


def _lines(file: IO[bytes]) -> Iterator[str]:
    file.seek(0)
    return (line.decode(errors="replace").rstrip("\n") for line in file)
