"""What raters are asked, in Bengali: the questions with their scales, and every other sentence of the rating page.

Knows nothing about runs, files or the page's components.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnft.ui_strings import digits, number


@dataclass(frozen=True)
class Question:
    """One question about one reply.

    Attributes:
        key: its name in files.
        label: its name for raters; `english` beside it.
        hint: what is meant.
        steps: the words of the scale, from `low` on.
    """

    key: str
    label: str
    english: str
    hint: str
    low: int
    steps: tuple[str, ...]

    @property
    def high(self) -> int:
        return self.low + len(self.steps) - 1

    @property
    def choices(self) -> list[tuple[str, int]]:
        return [(f"{digits(str(i), 'bn')} {step}".strip(), i) for i, step in enumerate(self.steps, self.low)]


_OF_FIVE = ("একদম না", "", "", "", "পুরোপুরি")
_OF_THREE = ("নেই", "অল্প", "স্পষ্ট")

# The first three as in EmpatheticDialogues, the other three as in EPITOME.
QUESTIONS = (
    Question("empathy", "সহমর্মিতা", "Empathy", "মানুষটির মনের অবস্থা বুঝে উত্তর দেওয়া হয়েছে কি?", 1, _OF_FIVE),
    Question("relevance", "প্রাসঙ্গিকতা", "Relevance", "যা বলা হয়েছে, উত্তরটা কি ঠিক সে কথারই?", 1, _OF_FIVE),
    Question("fluency", "ভাষার সাবলীলতা", "Fluency", "বাংলাটা কি শুদ্ধ আর স্বাভাবিক?", 1, _OF_FIVE),
    Question(
        "emotional_reaction",
        "মমতার প্রকাশ",
        "Emotional reaction",
        "উত্তরে কি উষ্ণতা, মায়া বা উদ্বেগ ফুটে উঠেছে?",
        0,
        _OF_THREE,
    ),
    Question(
        "interpretation",
        "অনুভূতি বোঝা",
        "Interpretation",
        "মানুষটি কী অনুভব করছেন, উত্তরে কি তা বোঝার চেষ্টা আছে?",
        0,
        _OF_THREE,
    ),
    Question(
        "exploration",
        "আরও জানতে চাওয়া",
        "Exploration",
        "মানুষটির কথা আরও শুনতে কি আলতো করে প্রশ্ন করা হয়েছে?",
        0,
        _OF_THREE,
    ),
)
PREFERENCES = {"A": "উত্তর ক", "tie": "দুটোই সমান", "B": "উত্তর খ"}
NATIVE = {"yes": "হ্যাঁ", "no": "না"}
REGIONS = {
    "BD": "বাংলাদেশ",
    "IN-WB": "পশ্চিমবঙ্গ",
    "IN-TR": "ত্রিপুরা",
    "IN-AS": "আসাম",
    "other": "অন্য কোথাও",
}
LONGEST_NAME = 40
RATER = rf"\w[\w .\-]{{0,{LONGEST_NAME - 1}}}"  # for `regex`, whose \w holds Bengali vowel signs

_SENTENCES = {
    "title": "কোন উত্তরটা মনের কাছাকাছি?",
    "english_title": "Blind rating of replies",
    "intro": "কেউ একজন নিজের মনের কথা লিখেছেন, আর তার দুটি উত্তর পাশাপাশি দেখানো হচ্ছে। কোন উত্তর কার লেখা, তা জানানো হয় না। "
    "আপনার কাছে যেমন লাগে, তেমনই নম্বর দিন; এখানে ঠিক-ভুল বলে কিছু নেই। "
    "একই জোড়া পরে আবারও আসতে পারে, তখনও নতুন করে ভেবে নম্বর দিন।",
    "heavy": "কিছু লেখায় মৃত্যু, নির্যাতন বা নিজের ক্ষতি করার কথা থাকতে পারে। খারাপ লাগলে যেকোনো সময় থামুন; "
    "উপরের নম্বরগুলোতে আপনিও ফোন করতে পারেন।",
    "kept": "যা রাখা হয়: আপনার ছদ্মনাম, অঞ্চল, বাংলা মাতৃভাষা কি না, নম্বরগুলো আর সময়। ফলাফল ছাপা হলে শুধু গড় আর সংখ্যা থাকে, কারও নাম থাকে না।",
    "rater": "ছদ্মনাম",
    "rater_hint": "আসল নাম নয়, যেকোনো ডাকনাম। পরে এই ছদ্মনাম লিখলেই যেখানে থেমেছিলেন, সেখান থেকে শুরু হবে।",
    "native": "বাংলা কি আপনার মাতৃভাষা?",
    "region": "আপনি কোন অঞ্চলের মানুষ?",
    "start": "শুরু করি",
    "other_rater": "অন্য কেউ নম্বর দেবেন",
    "person": "মানুষটি লিখেছেন",
    "earlier": "আগের কথা",
    "reply_was": "উত্তর ছিল",
    "reply_a": "উত্তর ক",
    "reply_b": "উত্তর খ",
    "nothing": "(কোনো উত্তর আসেনি)",
    "preference": "সব মিলিয়ে কোন উত্তরটা ভালো?",
    "send": "জমা দিয়ে পরেরটা দেখি",
    "keys": "কিবোর্ডে: Tab চেপে প্রশ্ন থেকে প্রশ্নে যান, সংখ্যা চেপে নম্বর দিন (শেষ প্রশ্নে ১ = ক, ২ = সমান, ৩ = খ), শেষে Enter।",
    "progress": "{rater}: এই দফার {of}টি জোড়ার মধ্যে {place} নম্বর",
    "rated": "এ পর্যন্ত জমা দিয়েছেন {count}টি",
    "welcome": "আবার স্বাগত, {rater}! আগের {count}টি জোড়া রাখা আছে, এখান থেকে এগোই।",
    "kept_one": "জমা হয়েছে, ধন্যবাদ!",
    "round_done": "একটি দফা শেষ হলো, অনেক ধন্যবাদ! চাইলে এখানেই থামুন, পরে ফিরলে এখান থেকেই শুরু হবে।",
    "all_done": "সব জোড়া দেখা শেষ। এতটা সময় আর মন দেওয়ার জন্য আন্তরিক ধন্যবাদ!",
    "missing": "জমা হয়নি। এখনো বাকি: {names}।",
    "many_missing": "জমা হয়নি। এখনো {count}টি প্রশ্নের উত্তর বাকি।",
    "of_a": "ক-এর {name}",
    "of_b": "খ-এর {name}",
    "preferred": "কোনটা ভালো",
    "moved_on": "ওই জোড়াটি আর এখানে নেই: হয় আগেই জমা হয়েছে, নয়তো লেখা বদলেছে। এটি তার পরের জোড়া।",
    "bad_rater": "ছদ্মনামে ১ থেকে {most}টি অক্ষর বা সংখ্যা দিন; মাঝে ফাঁকা, বিন্দু বা হাইফেন থাকতে পারে।",
    "missing_rater": "মাতৃভাষা আর অঞ্চলের ঘরও বেছে নিন।",
    "failed": "দুঃখিত, এখন জমা রাখা গেল না। পাতাটি খোলা রেখে একটু পরে আবার চাপুন।",
}


def say(key: str, **values: object) -> str:
    """The sentence `key`, with numbers in Bengali digits."""
    shown = {name: number(value, "bn") if isinstance(value, int) else value for name, value in values.items()}
    return _SENTENCES[key].format(**shown)


def valid_answers(answers: dict[str, object]) -> tuple[dict[str, str], list[str]]:
    """Answers as they are kept, and the names of those that are missing; an impossible value counts as missing.

    Args:
        answers: by column, `empathy_a` to `exploration_b` and `preference`, as a browser sent them.
    """
    kept, missing = {}, []
    for side in ("a", "b"):
        for question in QUESTIONS:
            name = f"{question.key}_{side}"
            value = answers.get(name)
            # `True` is an int as well
            if type(value) is int and question.low <= value <= question.high:
                kept[name] = str(value)
            else:
                missing.append(say(f"of_{side}", name=question.label))
    preference = answers.get("preference")
    if isinstance(preference, str) and preference in PREFERENCES:
        kept["preference"] = preference
    else:
        missing.append(say("preferred"))
    return kept, missing
