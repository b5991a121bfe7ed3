"""The task that starts the next run of its DAG: when it does, when not, and under which id."""

import json
import re
import shlex
from datetime import UTC, datetime, time, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pendulum
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import (
    DagRunStateResult,
    ErrorResponse,
    GetDagRunState,
    OKResponse,
)

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks import window
from airflow_tune_restore.hooks.dag_runs import trigger_command
from airflow_tune_restore.hooks.window import Repetition
from airflow_tune_restore.operators.repeat_run import RepeatRunOperator
from airflow_tune_restore.operators.totals import Totals
from airflow_tune_restore.protocol.window import end_of_window
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from airflow_tune_restore.version_compat import AirflowFailException, AirflowSkipException, conf

BERLIN = ZoneInfo("Europe/Berlin")
EVENING = datetime(2026, 11, 30, 21, 0, tzinfo=UTC)
FIRST, SECOND = (f"tune_restore_repeat__2026-11-30T21:00:00Z__{number}" for number in (1, 2))


class Line:
    """Stands in for the line to the supervisor."""

    def __init__(self):
        self.sent = []
        self.known = {}

    def send(self, message):
        """Start a DAG run unless it exists; or return the state of one."""
        if isinstance(message, GetDagRunState):
            return DagRunStateResult(state=self.known[message.run_id])
        self.sent.append(message)
        if message.run_id in self.known:
            return ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
        self.known[message.run_id] = "queued"
        return OKResponse(ok=True)


@pytest.fixture
def line(monkeypatch):
    made = Line()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    return made


NO_PROGRESS = "none of 1 trial that ran has finished or got further"


@pytest.fixture
def clock(monkeypatch):
    """Return a function that sets the time."""

    def set_to(moment):
        monkeypatch.setattr(window, "now", lambda: moment)

    set_to(EVENING + timedelta(hours=1))
    return set_to


def totals(*, waiting=3, experiments=1, finished=1, advanced=0, run=1):
    return Totals(
        experiments={"waiting": experiments},
        trials_run=run,
        trials_finished=finished,
        trials_advanced=advanced,
        waiting_experiments=experiments if waiting else 0,
        waiting_trials=waiting,
    ).to_xcom()


def context(run_id="scheduled__x", conf=None):
    dag_run = SimpleNamespace(dag_id="nightly", run_id=run_id, run_after=EVENING, conf=conf)
    return {"dag_run": dag_run, "dag": SimpleNamespace(timezone=BERLIN)}


def repeat(given=None, *, found=None, run_id="scheduled__x", conf=None, **arguments):
    operator = RepeatRunOperator(
        task_id="repeat", totals=given or totals(), searches=found, **arguments
    )
    return operator.execute(context(run_id, conf))


@pytest.mark.usefixtures("clock")
def test_the_next_run_of_the_same_dag_gets_the_same_conf(line):
    conf = {"experiment": "/x", "nested": {"a": [1]}}
    assert repeat(conf=conf) == {"run_id": FIRST, "waiting_trials": 3}
    (message,) = line.sent
    assert (message.dag_id, message.run_id, message.conf) == ("nightly", FIRST, conf)
    assert message.logical_date is None


@pytest.mark.usefixtures("clock")
def test_a_run_that_was_started_by_it_starts_the_one_after(line):
    assert repeat(run_id=FIRST)["run_id"] == SECOND


@pytest.mark.usefixtures("clock")
def test_a_retry_starts_no_second_run(line):
    repeat()
    assert repeat()["run_id"] == FIRST
    assert [message.run_id for message in line.sent] == [FIRST, FIRST]


@pytest.mark.parametrize("state", ["success", "failed"])
@pytest.mark.usefixtures("clock")
def test_a_run_that_was_cleared_starts_one_behind_those_that_have_ended(line, state):
    """Else nothing would take what waits."""
    line.known = {FIRST: state}
    assert repeat()["run_id"] == SECOND
    assert line.known[SECOND] == "queued"


@pytest.mark.parametrize(
    ("given", "found", "reason"),
    [
        (totals(waiting=0), None, "nothing waits for it"),
        (totals(finished=0), None, "none of 1 trial that ran has finished or got further"),
        (totals(finished=0), [], "none of 1 trial that ran has finished or got further"),
        (
            totals(finished=0),
            [{"trials_run": 0}, "/x"],
            "none of 1 trial that ran has finished or got further",
        ),
    ],
)
@pytest.mark.usefixtures("clock")
def test_no_run_is_started_without_need_or_without_progress(line, given, found, reason):
    with pytest.raises(AirflowSkipException, match=reason):
        repeat(given, found=found)
    assert line.sent == []


@pytest.mark.usefixtures("clock")
def test_a_row_of_dag_runs_has_an_end(line):
    with pytest.raises(AirflowSkipException, match="1000 were started one after the other"):
        repeat(run_id="tune_restore_repeat__2026-11-30T21:00:00Z__1000")
    assert line.sent == []


@pytest.mark.usefixtures("clock")
def test_a_trial_that_failed_again_but_got_further_is_progress(line):
    assert repeat(totals(finished=0, advanced=1))["run_id"] == FIRST


@pytest.mark.usefixtures("clock")
def test_a_drawn_sample_is_progress(line):
    assert repeat(totals(finished=0), found=[{}, {"trials_run": 2}])["run_id"] == FIRST


@pytest.mark.usefixtures("clock")
def test_without_totals_nothing_is_known_to_wait(line):
    operator = RepeatRunOperator(task_id="repeat", totals=None)
    with pytest.raises(AirflowSkipException, match="the commit has no totals"):
        operator.execute(context())
    assert line.sent == []


@pytest.mark.usefixtures("clock")
def test_the_log_has_all_that_the_person_on_call_needs(line, capfd):
    with pytest.raises(AirflowSkipException):
        repeat(totals(finished=0, experiments=2), conf={"a b": "it's"})
    out = capfd.readouterr().out
    assert (
        "3 trials wait for the next DAG run, in 2 experiments, and no further DAG run is started: "
        "none of 1 trial that ran has finished or got further. One that is started by hand takes "
        "others first. To start one: "
        "airflow dags trigger nightly --conf "
    ) in out


def test_the_command_can_be_copied_into_a_shell(tmp_path):
    words = shlex.split(trigger_command(context(conf={"a b": "it's"})["dag_run"]))
    assert json.loads(words[-1]) == {"a b": "it's"}
    assert trigger_command(context()["dag_run"]) == "airflow dags trigger nightly"


@pytest.mark.parametrize(
    ("window", "hours", "starts"),
    [
        ({"until": "07:00"}, 8.9, True),  # 06:54 in Berlin
        ({"until": "07:00"}, 9.0, False),
        ({"until": "07:00"}, 30, False),  # the next evening is not in the window again
        ({"until": " 7:00:30 "}, 9.0, True),
        ({"max_duration": 3600.0}, 0.9, True),
        ({"max_duration": "3600"}, 1, False),
        ({"max_duration": timedelta(hours=2), "until": "07:00"}, 2, False),
        ({"max_duration": timedelta(hours=20), "until": "07:00"}, 9, False),
    ],
)
def test_the_window_counts_from_the_first_run(line, clock, window, hours, starts):
    clock(EVENING + timedelta(hours=hours))
    for run_id in ("scheduled__x", SECOND):
        line.sent.clear()
        if starts:
            repeat(run_id=run_id, **window)
        else:
            with pytest.raises(
                AirflowSkipException, match="the window of this DAG run ended at 2026-1"
            ):
                repeat(run_id=run_id, **window)
        assert bool(line.sent) is starts


@pytest.mark.parametrize("rendered", ["", "None", "25:00", "7 pm", "07:00+01:00"])
@pytest.mark.usefixtures("clock")
def test_a_template_that_renders_to_no_time_of_day_starts_nothing(line, rendered):
    operator = RepeatRunOperator(task_id="repeat", totals=totals(), until="{{ var.value.until }}")
    operator.until = rendered
    with pytest.raises(AirflowFailException, match="is not a time of day, such as '07:00'"):
        operator.execute(context())
    assert line.sent == []


@pytest.mark.parametrize(
    "arguments", [{"until": "24:00"}, {"max_duration": 0}, {"max_duration": "x"}]
)
def test_a_window_that_is_none_is_refused_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidInputError):
        RepeatRunOperator(task_id="repeat", totals=None, **arguments)


@pytest.mark.parametrize("broken", [3, {"trials_run": "x"}, {"experiments": [1]}])
def test_totals_that_are_none_are_refused_in_words(broken):
    with pytest.raises(InvalidInputError, match="is not the XCom of a CommitRestoreOperator"):
        Totals.parse(broken)


# the row of DAG runs


def test_an_id_leads_back_to_the_first_run():
    moment = datetime(2026, 3, 1, 4, 5, 6, 789012, tzinfo=BERLIN)
    run_id = Repetition.of_run("manual__x", moment).next_run_id()
    assert run_id == "tune_restore_repeat__2026-03-01T03:05:06.789012Z__1"
    later = Repetition.of_run(run_id, EVENING)
    assert (later.origin, later.number) == (moment, 1)
    assert later.next_run_id().endswith("789012Z__2")


@pytest.mark.parametrize(
    "run_id",
    [
        "tune_restore_repeat__yesterday__1",
        "tune_restore_repeat__2026-03-01T03:05:06__1",
        "tune_restore_repeat__2026-03-01T03:05:06Z__0",
        "tune_restore_repeat__2026-03-01T03:05:06Z__9999999",
        "x tune_restore_repeat__2026-03-01T03:05:06Z__1",
        "tune_restore_repeat__9999-12-31T00:00:00Z__1",  # so that its window would never end
        "tune_restore_repeat__0001-01-01T00:00:00+14:00__1",
    ],
)
def test_a_run_that_a_user_has_named_is_a_first_one(run_id):
    assert Repetition.of_run(run_id, EVENING) == Repetition(origin=EVENING)


def test_airflow_takes_the_ids():
    from airflow.utils.types import DagRunType

    assert re.match(conf.get("scheduler", "allowed_run_id_pattern"), SECOND)
    assert DagRunType.from_run_id(SECOND) is DagRunType.MANUAL


@pytest.mark.parametrize(
    ("origin", "until", "end"),
    [
        # the night in which the clock skips 02:00 to 03:00
        ("2026-03-28T22:00:00+00:00", "07:00", "2026-03-29T05:00:00+00:00"),
        ("2026-03-28T22:00:00+00:00", "02:30", "2026-03-29T01:30:00+00:00"),
        # the night in which it shows 02:00 to 03:00 twice
        ("2026-10-24T22:00:00+00:00", "07:00", "2026-10-25T06:00:00+00:00"),
        ("2026-10-24T22:00:00+00:00", "02:30", "2026-10-25T00:30:00+00:00"),
        ("2026-10-25T00:45:00+00:00", "02:30", "2026-10-25T01:30:00+00:00"),
        # at the moment itself, the next day counts
        ("2026-11-30T06:00:00+00:00", "07:00", "2026-12-01T06:00:00+00:00"),
        ("2026-11-30T05:59:59+00:00", "07:00", "2026-11-30T06:00:00+00:00"),
        # yesterday in UTC, today in Berlin
        ("2026-11-30T23:30:00+00:00", "00:15", "2026-12-01T23:15:00+00:00"),
    ],
)
def test_the_end_is_the_next_time_that_a_clock_on_the_wall_shows_it(origin, until, end):
    moment = datetime.fromisoformat(origin)
    expected = datetime.fromisoformat(end)
    assert end_of_window(moment, BERLIN, time.fromisoformat(until), None) == expected


def test_pendulums_time_zones_are_as_good():
    origin = datetime(2026, 10, 25, 0, 45, tzinfo=UTC)
    end = end_of_window(origin, pendulum.timezone("Europe/Berlin"), time(2, 30), None)
    assert end == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert end_of_window(origin, pendulum.timezone("UTC"), None, None) is None


# the group


def group(**arguments):
    with DAG("d", schedule=None) as dag:
        TuneRestoreTaskGroup("restore", trainable="m:train", experiments="/x", **arguments)
    return dag


def test_repeat_adds_a_task_behind_all_others_and_beside_done():
    dag = group(repeat=True, until="07:00", max_duration=3600)
    again = dag.get_task("restore.repeat")
    assert again.upstream_task_ids == {
        f"restore.{name}" for name in ("plan", "trial", "commit", "continue_search")
    }
    assert again.trigger_rule == "all_done"
    assert not again.downstream_task_ids
    assert not dag.get_task("restore.done").downstream_task_ids
    assert "restore.repeat" not in group().task_ids


def test_repeat_is_no_text():
    with pytest.raises(InvalidInputError, match="repeat='no' is neither True nor False"):
        group(repeat="no")


@pytest.mark.parametrize("launcher", ["local", "kubernetes"])
def test_trials_of_the_group_return_nothing_unless_they_are_asked_to(launcher):
    for arguments, pushes in (({}, False), ({"do_xcom_push": True}, True)):
        dag = group(launcher=launcher, trial_args=arguments)
        assert dag.get_task("restore.trial").partial_kwargs["do_xcom_push"] is pushes
