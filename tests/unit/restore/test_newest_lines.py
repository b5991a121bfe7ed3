"""The newest lines of a flood are kept."""

from airflow_tune_restore.launch.log_lines import LONGEST_LINE, NewestLines
from airflow_tune_restore.protocol.printable import shortened


def test_few_lines_are_all_kept_in_order():
    kept = NewestLines(most_lines=3)
    kept.add("a")
    kept.add_result("r1")
    kept.add("b")
    assert kept.take("look there") == ["a", "r1", "b"]
    assert kept.take("look there") == []


def test_the_newest_are_kept_and_the_rest_is_counted_where_it_is_missing():
    kept = NewestLines(most_lines=2)
    kept.add_result("r1")
    for number in range(50_000):
        kept.add(f"line {number}")
    kept.add_result("r2")
    kept.add("the end")
    gap = "… 49,999 lines left out here; look there"
    assert kept.take("look there") == ["r1", gap, "line 49999", "r2", "the end"]


def test_results_are_bounded_too():
    kept = NewestLines(most_lines=2)
    kept.add("a")
    for number in range(5):
        kept.add_result(f"r{number}")
    assert kept.take("w") == ["a", "… 3 results left out here; w", "r3", "r4"]


def test_characters_are_counted_and_long_lines_cut():
    kept = NewestLines(most_lines=1000, most_characters=2 * LONGEST_LINE)
    for letter in "abc":
        kept.add(letter * 10**6)
    shown = kept.take("w")
    assert shown == [
        "… 1 line left out here; w",
        shortened("b" * 10**6, LONGEST_LINE),
        shortened("c" * 10**6, LONGEST_LINE),
    ]
