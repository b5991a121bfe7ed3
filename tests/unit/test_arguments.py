"""Operator arguments as templates leave them."""

from datetime import timedelta

import pytest

from airflow_tune_restore import arguments
from airflow_tune_restore.exceptions import InvalidInputError


@pytest.mark.parametrize("value", [True, "True", "true", "1", "yes"])
def test_true_in_its_forms(value):
    assert arguments.parse_bool("flag", value) is True


@pytest.mark.parametrize("value", [False, None, "False", "", "None", "0"])
def test_false_in_its_forms(value):
    assert arguments.parse_bool("flag", value) is False


def test_the_error_names_the_argument():
    with pytest.raises(InvalidInputError, match="resume_errored='perhaps'"):
        arguments.parse_bool("resume_errored", "perhaps")


@pytest.mark.parametrize("value", [timedelta(minutes=1), 60, 60.0, "60", "60.0"])
def test_a_span_in_its_forms(value):
    assert arguments.parse_span("stale_after", value) == timedelta(minutes=1)


@pytest.mark.parametrize("value", ["soon", None, -1, "nan"])
def test_a_span_that_is_none(value):
    with pytest.raises(InvalidInputError, match="stale_after="):
        arguments.parse_span("stale_after", value)


def test_an_unknown_health_word_is_named_with_the_known_ones():
    with pytest.raises(InvalidInputError, match=r"dead is not among errored, finished"):
        arguments.parse_health({"errored", "dead"})


@pytest.mark.parametrize(
    "value", ["/a", ["/a"], ("/a", "/a"), [{"experiment": "/a", "name": "a"}], {"experiment": "/a"}]
)
def test_experiments_in_their_forms(value):
    assert arguments.parse_addresses(value) == ["/a"]


@pytest.mark.parametrize("value", [None, "", []])
def test_no_experiments(value):
    assert arguments.parse_addresses(value) == []


def test_an_item_that_is_not_an_experiment_is_shown():
    with pytest.raises(InvalidInputError, match="neither an address"):
        arguments.parse_addresses([{"uri": "/a"}])


@pytest.mark.parametrize(
    "value",
    [["a_1", "b_2"], ("a_1", "b_2"), "a_1,b_2", " a_1 , b_2\n", "a_1\nb_2", "['a_1', 'b_2']"],
)
def test_ids_in_their_forms(value):
    assert arguments.parse_ids("trials", value) == ("a_1", "b_2")


@pytest.mark.parametrize("value", [None, "", " ", "None", ",\n", (), [], "[]"])
def test_no_ids_are_refused(value):
    with pytest.raises(InvalidInputError, match=r"trials=.* names no trial"):
        arguments.parse_ids("trials", value)


@pytest.mark.parametrize(
    "value", [[7], [""], ["a1", " "], "['']", "['a1', '']", "[7]", "[a1]", "['a1'", "[['a1']]"]
)
def test_an_id_that_is_empty_or_not_text_is_shown(value):
    with pytest.raises(InvalidInputError, match=r"trials=.* holds an empty value, or one that"):
        arguments.parse_ids("trials", value)


@pytest.mark.parametrize("value", [["a 1"], "['a 1']", " a 1 ", '["a 1"]'])
def test_an_id_is_not_split_at_its_blank(value):
    assert arguments.parse_ids("trials", value) == ("a 1",)


@pytest.mark.parametrize("value", [None, "m:train", " m:train", {"train": "m:t"}])
def test_a_trainable_stays_as_it_is(value):
    assert arguments.parse_trainable("trainable", value) == value


def test_a_mapping_of_trainables_that_a_template_rendered_is_read():
    given = {"team_a/**": {"trainable": "m:t", "resume_errored": True}, "ppo": "m:u"}
    assert arguments.parse_trainable("trainable", f" {given}\n") == given


@pytest.mark.parametrize("value", ["{", "{'train'}", "{'train': m}", '{"train": null}', "{{ x }}"])
def test_a_broken_mapping_of_trainables_is_not_the_name_of_one(value):
    with pytest.raises(InvalidInputError, match=r"trainable=.* starts like a mapping, and is none"):
        arguments.parse_trainable("trainable", value)
