"""What the experiments of `generated_restores` are made of: hypothesis draws what people do.

A recipe is JSON; `tests.support.experiments.generated` makes the experiment of it, and knows what
`{"is": …, "of": …}` stands for. What Ray 2.60 itself does not survive is not drawn; each such place
has the reason.
"""

from typing import Any

from hypothesis import strategies as st

KINDS = ["skip", "resume", "restart"]
FLAGS = ["resume_unfinished", "resume_errored", "restart_errored"]

TEXTS = st.characters(codec="utf-8", exclude_categories=["Cc"])
WORDS = st.text(TEXTS, max_size=30)
LONG_TEXTS = ["a long text, " * 120, "C:\\models\\größe\\" * 80, "[{'a': 1}] = s3://b/k?x=1 " * 60]
"""In a grid, of more than 1,000 characters in the experiment tag."""
FLOATS = st.floats() | st.sampled_from([float("nan"), float("inf"), -float("inf")])
INTEGERS = st.integers(-(2**63), 2**63 - 1)
PLAIN = st.one_of(
    st.none(), st.booleans(), INTEGERS, FLOATS, WORDS,
    st.sampled_from(["", "../up", "/data/a/b", "C:\\data\\", "null", "NaN", *LONG_TEXTS]),
)  # fmt: skip


def _is(name: str, of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"is": st.just(name), "of": of})


NUMPY = st.one_of(
    _is("float64", FLOATS),
    _is("float32", st.floats(width=32)),
    _is("int64", INTEGERS),
    _is("bool_", st.booleans()),
)
TUPLES = _is("tuple", st.lists(PLAIN, max_size=3))
"""Of plain values: Ray cannot put two others back into one tuple (`assign_value`, 2.60)."""


def _nested(
    values: st.SearchStrategy[Any], names: st.SearchStrategy[str] = WORDS
) -> st.SearchStrategy[Any]:
    return st.recursive(
        values,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
        ),
        max_leaves=6,
    )  # fmt: skip


@st.composite
def _configs(draw: st.DrawFn, *, search: str) -> dict[str, Any]:
    """What stands in a config beside `trial`."""
    names = WORDS | st.sampled_from(["lr", "layer.0/width", "env", "größe", "a b", "C:\\data"])
    if search == "optuna":  # it flattens the space, and Ray then refuses the separator
        names = names.map(lambda name: name.replace("/", " "))
    odd = NUMPY | TUPLES | st.just(2**70) | st.just({"is": "function", "of": None})
    values = _nested(PLAIN | odd, names)
    if search == "grid":  # the others do not resolve what is to be sampled
        values |= _is("sampled", PLAIN)
    config = draw(st.dictionaries(names, values, max_size=4))
    if number := draw(st.sampled_from([0, 0, 0, 600])):
        config["many"] = {"is": "many", "of": number}
    return config


NUMBERS = FLOATS | INTEGERS | NUMPY
OWN = _nested(PLAIN | NUMPY | TUPLES) | st.just({"is": "missing", "of": None})
"""Integers have 64 bits: Ray's logger for TensorBoard takes no larger ones."""

SMALL = st.integers(-9, 9) | st.floats(-9, 9)
AUTOFILLED: dict[str, st.SearchStrategy[Any]] = {
    "training_iteration": SMALL
    | st.booleans()
    | _is("float64", SMALL)
    | _is("bool_", st.booleans()),
    "timesteps_this_iter": SMALL,
    "episodes_this_iter": SMALL | FLOATS,
    "timesteps_total": st.integers(1, 9),
    "episodes_total": PLAIN,
    "time_this_iter_s": FLOATS | st.booleans() | _is("float64", FLOATS),
    **dict.fromkeys(["time_total_s", "timestamp", "date", "pid", "hostname", "node_ip"], PLAIN),
    **dict.fromkeys(["trial_id", "experiment_tag", "config"], PLAIN),
    "should_checkpoint": PLAIN,
}
"""Metrics of Ray's own names, with what it survives (2.60): others end its driver, or fail the trial."""

NO_ITERATIONS = st.sampled_from([float("nan"), float("inf"), -float("inf")])
"""Ray survives them if there are `timesteps_total`: its logger for TensorBoard counts in those, then."""


@st.composite
def _reports(
    draw: st.DrawFn, *, kind: str, by_score: bool, is_endless: bool, is_ranked: bool
) -> dict[str, list[Any]]:
    """What a trial reports beside its score, and sometimes in its place; values take turns.

    Args:
        draw: Hypothesis gives it.
        kind: Of the trainable.
        by_score: Whether checkpoints are kept by the score.
        is_endless: Whether it is tried again until it succeeds.
        is_ranked: Whether a searcher or scheduler computes with score and iteration.
    """
    names = st.sampled_from(["loss", "val/acc", "größe", "a b"])
    reports = draw(st.dictionaries(names, st.lists(OWN, min_size=1, max_size=3), max_size=3))
    if is_ranked:
        return reports
    if draw(st.sampled_from([False, False, True])):
        scores = NUMBERS if by_score else NUMBERS | st.none() | WORDS | st.lists(NUMBERS)
        reports["score"] = draw(st.lists(scores, min_size=1, max_size=3))
    for name in draw(st.lists(st.sampled_from(list(AUTOFILLED)), max_size=2, unique=True)):
        reports[name] = draw(st.lists(AUTOFILLED[name], min_size=1, max_size=2))
    if draw(st.sampled_from([False, False, False, True])):
        reports["training_iteration"] = [draw(NO_ITERATIONS)]
        reports["timesteps_total"] = [draw(AUTOFILLED["timesteps_total"])]
    if is_endless:  # a class is saved by its iterations: with others it would never come to its end
        reports.pop("training_iteration", None)
    ends = ["yes", 1, float("nan")]
    if draw(st.sampled_from([False, False, False, True])):  # a class that never says so never ends
        reports["done"] = [draw(st.sampled_from(ends if kind == "class" else [*ends, 0, None, ""]))]
    return reports


NAMES = st.text(
    st.characters(
        codec="utf-8",
        # of no use to people, and refused: what turns directions, and other formats
        exclude_categories=["Cc", "Cf", "Cn", "Co", "Zl", "Zp"],
        exclude_characters="/",
    ),
    max_size=40,
) | st.sampled_from(
    ["lr=0.1,b=[1, 2]", ".hidden", "a b", "größe 模型", "C:\\model", "%s{0}", "..", "n" * 190]
)  # fmt: skip


@st.composite
def _creators(draw: st.DrawFn) -> dict[str, str]:
    """Who names trials and their directories; `TRIAL_ID` stands for the id, as nothing else is unique."""
    creators = {}
    if draw(st.sampled_from([False, False, True])):
        creators["trial_name_creator"] = "TRIAL_ID " + draw(NAMES | st.just("a/b"))
    if draw(st.sampled_from([False, False, True])):
        creators["trial_dirname_creator"] = draw(
            NAMES.filter(lambda text: len(text.encode()) <= 200)
        ) + draw(st.sampled_from(["TRIAL_ID", "-TRIAL_ID."]))
    return creators


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """What `generated.make_tuner` makes, and when its driver dies."""
    kind = draw(st.sampled_from(["function", "class"]))
    search = draw(st.sampled_from(["grid", "grid", "grid", "position", "learner", "optuna"]))
    is_run = draw(st.sampled_from([False, False, True]))
    asha = search == "grid" and not is_run and draw(st.sampled_from([False, False, False, True]))
    one_by_one = asha or search in ("learner", "optuna")  # of two, chance decides who is first
    max_failures = draw(st.sampled_from([0, 0, 0, 1, -1]))  # Ray's parser takes integers only
    is_endless = max_failures == -1
    num_to_keep = draw(st.sampled_from([None, None, 1, 2]))
    by_score = num_to_keep is not None and draw(st.booleans())
    first = 1 if kind == "function" else 0  # a class may fail in setup
    trials = []
    for number in range(draw(st.sampled_from([2, 1, 2, 3]))):
        iterations = draw(st.sampled_from([3, 2, 4] if is_endless else [3, 1, 2, 4]))
        trials.append(
            {
                "name": f"t{number}",
                "iterations": iterations,
                # that is tried until it succeeds, so it must have a checkpoint to go on from
                "checkpoint_every": 1 if is_endless else draw(st.sampled_from([1, 1, 2, 0])),
                "fails_once": is_endless,
                "factor": draw(st.integers(1, 3)),
                "fails_at": draw(st.none() | st.integers(2 if is_endless else first, iterations)),
                "reports": draw(
                    _reports(
                        kind=kind,
                        by_score=by_score,
                        is_endless=is_endless,
                        is_ranked=one_by_one,
                    )
                ),
                "note": draw(st.sampled_from(["", "", "", *LONG_TEXTS])),
            }
        )
    dies_after = draw(st.sampled_from([3, 1, 2, 4, 6, None, None]))
    if dies_after is None and all(trial["fails_at"] is None for trial in trials):
        trials[0]["fails_at"] = trials[0]["iterations"]  # or there is nothing to restore
    return {
        "kind": kind,
        "is_run": is_run,
        "search": search,
        "asha": asha,
        "one_by_one": one_by_one,
        "trials": trials,
        "config": draw(_configs(search=search)),
        "creators": draw(_creators()),
        "num_to_keep": num_to_keep,
        "by_score": by_score,
        "frequency": 1 if is_endless else draw(st.sampled_from([1, 1, 2, 0])),
        "checkpoint_at_end": draw(st.booleans()),
        # of four CPUs: one trial at a time, or two
        "resources": "all" if one_by_one else draw(st.sampled_from(["all", "two", "bundles"])),
        "concurrent": draw(st.sampled_from([None, None, None, None, 1]))
        if search == "grid" else None,
        "max_failures": max_failures,
        "dies_after": dies_after,
        "period": draw(st.sampled_from(["0", "0", "1000"])),  # of the experiment's snapshots
    }  # fmt: skip


@st.composite
def restores(draw: st.DrawFn) -> dict[str, Any]:
    """How it is restored: by flags or by status, with which resources, and whether its cause is gone."""
    by_status = draw(st.booleans())
    if by_status:
        flags = {"per_status": {name: draw(st.sampled_from(KINDS))
                                for name in ("finished", "unfinished", "errored")}}  # fmt: skip
    else:
        flags = {name: draw(st.sampled_from([True, False])) for name in FLAGS}
    return {
        "flags": flags,
        "healed": draw(st.sampled_from([True, True, False])),
        "strategy": draw(st.sampled_from(["auto", "auto", "whole_experiment"])),
        "resources": draw(
            st.sampled_from(["same", "default", "one", "two", "all", "bundles", "by_config"])
        ),
    }


SEARCHERS = {"position": "positioned", "learner": "limited_learner", "optuna": "limited_optuna"}
"""What a user names at the restore of a run that has no tuner.pkl."""


def _trial(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "iterations": 3, "checkpoint_every": 1, "fails_once": False, "factor": 3,
        "fails_at": None, "reports": {}, "note": "", **more,
    }  # fmt: skip


NAN = float("nan")
RICH: list[dict[str, Any]] = [
    {
        "recipe": {
            "kind": "function", "is_run": False, "search": "grid", "asha": False,
            "one_by_one": False, "num_to_keep": 2, "by_score": True, "frequency": 0,
            "checkpoint_at_end": False, "resources": "two", "concurrent": None, "max_failures": 0,
            "dies_after": 4, "period": "0",
            "trials": [
                _trial("t0", fails_at=3, note=LONG_TEXTS[1], reports={
                    "loss": [NAN, {"is": "float32", "of": 0.5}, None, {"is": "missing", "of": None}],
                    "val/acc": [{"top": [1, {"is": "tuple", "of": [1, NAN]}], "größe": {"x": True}}],
                    "training_iteration": [NAN], "timesteps_total": [2],
                }),
                _trial("t1", iterations=4, reports={
                    "score": [NAN, 2.5, {"is": "int64", "of": 3}], "training_iteration": [1.5, True],
                    "time_this_iter_s": [-float("inf")], "should_checkpoint": ["yes"],
                }),
            ],
            "config": {
                "many": {"is": "many", "of": 600}, "C:\\data": "\\\\host\\x", "env": "größe 模型",
                "deep": {"a/b": [None, True, NAN, {"is": "function", "of": None}, {"c": [2**70]}]},
                "sampled": {"is": "sampled", "of": LONG_TEXTS[0]},
                "odd": {"is": "float64", "of": float("inf")}, "pair": {"is": "tuple", "of": [1, ""]},
            },
            "creators": {
                "trial_name_creator": "TRIAL_ID lr=0.1,b=[1, 2]/模型",
                "trial_dirname_creator": ".C:\\größe [" + "n" * 180 + "] TRIAL_ID.",
            },
        },
        "rounds": [
            {"flags": {"resume_unfinished": True, "resume_errored": True, "restart_errored": False},
             "healed": False, "strategy": "auto", "resources": "bundles"},
            {"flags": {"per_status": {"finished": "skip", "unfinished": "skip", "errored": "restart"}},
             "healed": True, "strategy": "auto", "resources": "by_config"},
        ],
    },
    {
        "recipe": {
            "kind": "class", "is_run": True, "search": "learner", "asha": False,
            "one_by_one": True, "num_to_keep": None, "by_score": False, "frequency": 1,
            "checkpoint_at_end": True, "resources": "all", "concurrent": None, "max_failures": -1,
            "dies_after": 1, "period": "0",
            "trials": [
                _trial("t0", fails_once=True, reports={"loss": [NAN]}),
                _trial("t1", fails_once=True, fails_at=2, iterations=2, reports={"loss": [None]}),
            ],
            "config": {"deep": {"a": [{"is": "int64", "of": 1}]}},
            "creators": {},
        },
        "rounds": [
            {"flags": {"resume_unfinished": True, "resume_errored": True, "restart_errored": False},
             "healed": False, "strategy": "auto", "resources": "same"},
        ],
    },
]  # fmt: skip
"""Two that have much of all this at once, for the tests that run every time."""
