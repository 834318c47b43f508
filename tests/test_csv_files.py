"""Tables that people open: what looks like a formula is text there, and comes back as it was."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft.csv_files import CsvReader, csv_text


def read(text):
    return list(CsvReader(io.StringIO(text, newline="")))


# From https://owasp.org/www-community/attacks/CSV_Injection, and a list with dashes as models write it.
@pytest.mark.parametrize(
    "written",
    [
        '=HYPERLINK("http://example.org?x="&A1,"খুলুন")',
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-2+3+cmd|' /C calc'!A0",
        "@SUM(1+1)",
        "\t=1",
        "\r=1",
        "＝1+1",
        "- প্রথমে একটু বিশ্রাম নিন।",
        "'=1",
    ],
)
def test_a_formula_is_written_as_text(written):
    cells = csv_text([{"id": "a", "reply": written}], ["id", "reply"], header=False)
    assert cells.startswith(("a,'", "a,\"'"))
    assert read(csv_text([{"id": "a", "reply": written}], ["id", "reply"])) == [{"id": "a", "reply": written}]


@pytest.mark.parametrize("value", [-0.5, "-0.5", "+3", "-1e-05", 7, "ভালো", "'quoted'", "", "a=b", "1-2"])
def test_numbers_and_other_texts_stay_as_they_are(value):
    assert csv_text([{"x": value}], ["x"], header=False).strip('"\n') == str(value)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
def test_every_text_comes_back(text):
    assert read(csv_text([{"id": "1", "x": text}], ["id", "x"])) == [{"id": "1", "x": text}]
