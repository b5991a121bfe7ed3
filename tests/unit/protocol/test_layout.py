"""Names: injective, inside, and sorted as Ray sorts them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.protocol import layout

NOW = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
names = st.text(min_size=1, max_size=30).filter(lambda name: name != layout.WHOLE_EXPERIMENT)


@given(a=st.tuples(names, names), b=st.tuples(names, names))
def test_two_trials_never_share_a_key(a, b):
    assert (layout.seed_key(*a) == layout.seed_key(*b)) == (a == b)


@given(restore_id=names, trial_id=names)
def test_no_name_leads_outside(restore_id, trial_id):
    parts = layout.outcome_key(restore_id, trial_id, 1).split("/")
    assert len(parts) == 7
    assert not {"", ".", ".."} & set(parts)


@given(
    st.lists(
        st.from_regex(r"experiment_state-[0-9A-Za-z_.-]{1,25}\.json", fullmatch=True), min_size=1
    )
)
def test_a_committed_state_sorts_after_all_others(existing):
    """Ray takes the largest name (ray.tune.execution.experiment_state, 2.60)."""
    name = layout.committed_state_name(existing, lambda: NOW)
    assert name > max(existing)
    assert layout.is_state_file(name)
    assert layout.is_committed_state(name)


def test_a_second_commit_counts_on_and_a_later_driver_still_wins():
    first = layout.committed_state_name(["experiment_state-2026-11-23_10-00-00.json"], lambda: NOW)
    assert first == "experiment_state-2026-11-23_10-00-00_r000001.json"
    assert layout.committed_state_name([first], lambda: NOW).endswith("_r000002.json")
    assert first < "experiment_state-2026-11-23_10-00-01.json"


@pytest.mark.parametrize(
    "name", ["experiment_state-x.json.tmp", "state.json", "xexperiment_state-1.json"]
)
def test_other_files_are_no_state(name):
    assert not layout.is_state_file(name)


def test_the_first_state_of_an_experiment_that_never_started_is_named_by_the_clock():
    name = layout.committed_state_name([], lambda: NOW)
    assert name == "experiment_state-2026-11-24_01-02-03_r000001.json"


@pytest.mark.parametrize("session", ["2026-11-23_10-00-00", "2026-11-23_10-00-00_r000002"])
@pytest.mark.parametrize("kind", ["basic-variant-state", "search_gen_state"])
def test_a_searcher_state_is_found_again_under_its_session(kind, session):
    name = layout.in_session(f"{kind}-{layout.KEPT}.json", session)
    assert layout.is_searcher_state(name)
    assert (
        layout.session_of(name) == session == layout.session_of(f"experiment_state-{session}.json")
    )
    assert not layout.is_searcher_state(f"experiment_state-{session}.json")
    assert not layout.is_searcher_state(f"callback-states-{session}.pkl")


@given(trial_id=names)
def test_a_wish_to_stop_names_its_trial(trial_id):
    key = layout.stop_key("r", 1, trial_id)
    assert layout.unsegment(key.rpartition("/")[2].removesuffix(".json")) == trial_id
