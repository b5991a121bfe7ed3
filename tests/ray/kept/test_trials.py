"""What becomes of trials: behaviours that Ray's own restore tests pin, lived through us.

Which of Ray's tests each of these stands for is in docs/conformance.md.
"""

from tests.support.ray.pair import make_pair


def test_a_finished_experiment_keeps_its_trials_and_is_not_written_to(hosts, tmp_path):
    trials = [{"name": "a"}, {"name": "b"}]
    pair = make_pair(hosts, tmp_path, "counts", trainable="function", trials=trials)
    before = sorted(path.name for path in pair.ours.iterdir())
    ends = pair.restore()
    assert ends.column("status") == ["TERMINATED", "TERMINATED"]
    assert ends.summary is None
    assert sorted(path.name for path in pair.ours.iterdir()) == before
    # Ray writes one more state file
    assert len(list(pair.theirs.glob("experiment_state-*"))) == 2
