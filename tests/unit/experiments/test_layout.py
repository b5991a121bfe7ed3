"""Names: injective, inside, and sorted as Ray sorts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.experiments import layout

names = st.text(min_size=1, max_size=30)


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
    name = layout.committed_state_name(existing)
    assert name > max(existing)
    assert layout.is_state_file(name)
    assert layout.is_committed_state(name)


def test_a_second_commit_counts_on_and_a_later_driver_still_wins():
    first = layout.committed_state_name(["experiment_state-2026-11-23_10-00-00.json"])
    assert first == "experiment_state-2026-11-23_10-00-00_r000001.json"
    assert layout.committed_state_name([first]).endswith("_r000002.json")
    assert first < "experiment_state-2026-11-23_10-00-01.json"


@pytest.mark.parametrize(
    "name", ["experiment_state-x.json.tmp", "state.json", "xexperiment_state-1.json"]
)
def test_other_files_are_no_state(name):
    assert not layout.is_state_file(name)
