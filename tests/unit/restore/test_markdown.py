"""Text from storage in Markdown: a renderer shows it, and never obeys it."""

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.markdown import NOTHING, code, table

MARKDOWN = MarkdownIt("commonmark").enable("table")
HOSTILE = (
    "` | \\ [a](http://b) <img src=x onerror=y> ![i](//c) **d** https://e # f &amp; \n\n- g\r\v"
)
texts = st.text() | st.text("`|\\<>[]()!*_#&~-= \n\tah:/.@")


def tokens(text):
    return [
        each for token in MARKDOWN.parse(text) for each in (token, *(token.children or ()))
    ]  # fmt: skip


@given(texts)
@example(HOSTILE)
@example("`")
@example("\\")
@example("|")
def test_a_text_is_one_code_span_with_all_of_it(text):
    found = tokens(f"a {code(text)} b")
    kinds = [token.type for token in found if token.type not in ("text", "inline")]
    shown = printable(text).replace("`", "'").replace("|", "¦").strip()
    if not shown:
        assert code(text) == NOTHING
        return
    assert kinds == ["paragraph_open", "code_inline", "paragraph_close"]
    assert [token.content for token in found if token.type == "code_inline"] == [shown]


@given(st.lists(st.tuples(texts, texts), max_size=4))
@example([(HOSTILE, HOSTILE)])
def test_a_text_stays_in_its_cell(rows):
    found = tokens("\n".join(table(["one", "two"], [map(code, row) for row in rows])))
    cells = [token for token in found if token.type == "td_open"]
    assert len(cells) == 2 * len(rows)
    allowed = {"text", "code_inline", "inline"}
    assert {token.type for token in found if not token.type.startswith(("t", "table"))} <= allowed


def test_a_long_text_is_shortened():
    assert len(code("x" * 10_000, 50)) == 52
