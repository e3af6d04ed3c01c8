"""The grammar of a call, over arbitrary text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaylab.call_tag import LIMIT, find_calls, format_call, strip_calls

# Text that is rich in what matters: tags, halves of tags, digits of several scripts, spaces.
SCRAPS = [
    "<call>", "</call>", "<", ">", "<call", "call>", "/", "7", "12", "0", " ", "\n", "\t", "٣", "³", "x", "-", "é", "=",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(SCRAPS), max_size=24).map("".join) | st.text(max_size=60)


def slow_find(text: str):
    """The grammar, one character at a time, with no regular expression over the whole."""
    found, i = [], 0
    while i < len(text):
        if not text.startswith("<call>", i):
            i += 1
            continue
        for end in range(i + 6, min(i + 6 + 32, len(text)) + 1):
            if text.startswith("<call>", end):
                found.append((i, i + 6, None, "unclosed"))
                i += 6
                break
            if text.startswith("</call>", end):
                body = text[i + 6 : end].strip(" \t\r\n")
                if not body:
                    n, problem = None, "empty"
                elif any(c not in "0123456789" for c in body):
                    n, problem = None, "malformed"
                else:
                    n = int(body)
                    problem = "zero" if n == 0 else "too_large" if n >= 10**12 else None
                    n = None if problem else n
                found.append((i, end + 7, n, problem))
                i = end + 7
                break
        else:
            found.append((i, i + 6, None, "unclosed"))
            i += 6
    return found


@given(TEXTS)
def test_finding_equals_the_slow_grammar(text):
    assert [(c.start, c.end, c.n, c.problem) for c in find_calls(text)] == slow_find(text)


@given(TEXTS)
def test_stripping_removes_the_closed_calls_and_nothing_else(text):
    kept, last = "", 0
    for start, end, _, problem in slow_find(text):
        if problem != "unclosed":
            kept += text[last:start]
            last = end
    assert strip_calls(text) == kept + text[last:]


@given(st.integers(1, LIMIT - 1), st.text(alphabet="ab \n", max_size=9), st.text(alphabet="ab \n", max_size=9))
def test_a_formatted_call_is_found(n, before, after):
    (call,) = find_calls(before + format_call(n) + after)
    assert (call.n, call.problem, call.start) == (n, None, len(before))
    assert strip_calls(before + format_call(n) + after) == before + after


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<call>5</call>", [(5, None)]),
        ("<call> 5\n</call>", [(5, None)]),
        ("<call>007</call>", [(7, None)]),
        ("<call></call>", [(None, "empty")]),
        ("<call>  </call>", [(None, "empty")]),
        ("<call>0</call>", [(None, "zero")]),
        ("<call>٣</call>", [(None, "malformed")]),  # an Arabic-Indic three is no digit of the grammar
        ("<call>³</call>", [(None, "malformed")]),
        ("<call>-5</call>", [(None, "malformed")]),
        ("<call>5 5</call>", [(None, "malformed")]),
        ("<call>999999999999</call>", [(10**12 - 1, None)]),
        ("<call>1000000000000</call>", [(None, "too_large")]),
        ("<call>5", [(None, "unclosed")]),
        ("<call><call>5</call>", [(None, "unclosed"), (5, None)]),
        ("<call>" + "x" * 33 + "</call>", [(None, "unclosed")]),
        ("<call>" + "x" * 32 + "</call>", [(None, "malformed")]),
        ("</call>5<call>", [(None, "unclosed")]),
        ("<Call>5</Call>", []),
        ("<call>5</call><call>6</call>", [(5, None), (6, None)]),
        ("<call>5</call></call>", [(5, None)]),
    ],
)
def test_examples(text, expected):
    assert [(c.n, c.problem) for c in find_calls(text)] == expected


@pytest.mark.parametrize("n", [0, -1, LIMIT])
def test_numbers_out_of_range_cannot_be_formatted(n):
    with pytest.raises(ValueError, match=re.escape(str(n))):
        format_call(n)


def test_finding_takes_linear_time_in_hostile_text():
    assert len(find_calls("<call>" * 200_000)) == 200_000  # quadratic would never end
    assert find_calls("<call" * 200_000) == []
