"""Which neighbouring rows are turns of one talk. The layouts are those of the real corpus; the text is made up."""

import pytest

from bnft.corpus_files import RawRow
from bnft.talks import cut_into_pieces

LETTER = "চিঠির মতো লম্বা উত্তর। " * 30


def rows(*specs):
    """Rows from (topics) or (topics, question, answer)."""
    full = [spec if isinstance(spec, tuple) else (spec, f"প্রশ্ন {n}", "উত্তর") for n, spec in enumerate(specs)]
    return [RawRow(number, topics, ((question, answer),)) for number, (topics, question, answer) in enumerate(full, 1)]


@pytest.mark.parametrize(
    ("specs", "sizes", "runs", "cut"),
    [
        (["ভয়", "ভয়", "রাগ", "রাগ"], [2, 2], 2, 0),
        (["ভয়", "ভয়", "ভয়", "রাগ"], [3, 1], 2, 0),
        (["ভয়", " ভয় ", "রাগ"], [2, 1], 2, 0),
        (["ভয়"] * 4 + ["রাগ"], [1] * 5, 2, 1),  # two talks or one and a half: unknown
        (["ভয়"] * 12, [1] * 12, 1, 1),
        (["ভয়"] * 13, [1] * 13, 13, 0),  # a file sorted by subject
        (["ভয়, রাগ", "ভয়, রাগ"], [1, 1], 2, 0),  # counselling labels
        (["", "", ""], [1, 1, 1], 3, 0),  # a table without topics
        ([("ভয়", "ক", LETTER), ("ভয়", "খ", "উত্তর")], [1, 1], 1, 0),  # letters, not turns
        ([("ভয়", "আমি কেন রাতে ঘুমাতে পারি না?", a) for a in ("ক", "খ")], [1, 1], 1, 0),  # one question, two counsellors
        ([("ভয়", "হ্যাঁ", a) for a in ("ক", "খ")], [2], 1, 0),  # a short word may be said twice in a talk
        (["রাগ, ভয়", "ভয়", "ভয়", "ঘুম, ভয়"], [1, 1, 1, 1], 3, 0),  # a label of the lists among lists
        (["রাগ, ঘুম", "ভয়", "ভয়", "ঘুম, রাগ"], [1, 2, 1], 3, 0),  # a label of its own
        (["রাগ, ভয়", "ভয়", "ভয়"], [1, 2], 2, 0),  # where the two parts of the file meet
    ],
)
def test_talks_from_runs_of_one_label(specs, sizes, runs, cut):
    pieces, counts = cut_into_pieces(rows(*specs))
    assert [len(piece.rows) for piece in pieces] == sizes
    assert len({piece.run for piece in pieces}) == runs
    assert counts["cut"] == cut
    assert [row.number for piece in pieces for row in piece.rows] == list(range(1, len(specs) + 1))


def test_chat_rows_are_whole_already():
    chats = [RawRow(number, "ভয়", (("ক", "খ"), ("গ", "ঘ")), is_chat=True) for number in (1, 2)]
    pieces, _ = cut_into_pieces(chats)
    assert [(len(piece.rows), piece.run) for piece in pieces] == [(1, 1), (1, 2)]
