"""What a base model's own card says of its licence, and what is told of everybody else's work."""

import re

import pytest

from bnft.config import REPOSITORY
from bnft.licences import licence_declared, licence_of
from tests.hub_server import check_card

PAGE = "https://huggingface.co/somebody/base"


def front(**values):
    return "---\n" + "\n".join(f"{key}: {value}" for key, value in values.items()) + "\n---\n# A base\n"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (front(license="gemma"), {"license": "gemma"}),
        (front(language="bn", license="apache-2.0"), {"license": "apache-2.0"}),
        (
            # as meta-llama/Llama-4-Scout-17B-16E has it
            front(license="other", license_name="llama4", license_link="LICENSE"),
            {"license": "other", "license_name": "llama4", "license_link": f"{PAGE}/blob/main/LICENSE"},
        ),
        (
            front(license="other", license_name="tongyi", license_link="https://x.test/licence"),
            {"license": "other", "license_name": "tongyi", "license_link": "https://x.test/licence"},
        ),
        (front(license="other"), {"license": "other", "license_name": "base-model", "license_link": PAGE}),
    ],
)
def test_the_base_s_own_words_are_passed_on(card, expected):
    matter = licence_declared(card, PAGE).front_matter()
    assert matter == expected
    check_card(front(**matter))


@pytest.mark.parametrize(
    "card", ["", "# no front matter\n", "---\nlanguage: bn\n---\n", "---\nlicense: [a\n---\n", "---\nlicense: 3\n---\n"]
)
def test_a_card_that_says_nothing_is_none(card):
    assert licence_declared(card, PAGE) is None


@pytest.mark.parametrize("page", [PAGE, ""])
def test_an_unknown_licence_says_that_it_is_unknown(page):
    licence = licence_of("", page)
    assert (licence.id, licence.link, licence.shown, licence.notice) == ("other", page, "", "")
    assert "could not tell which one that is" in licence.card


def test_no_licence_claims_what_only_this_program_s_own_model_is():
    assert licence_of("mit").card == licence_of("apache-2.0").card == ""
    assert licence_of("llama3.1").shown == "llama3.1"
    assert licence_declared(front(license="other", license_name="llama4"), PAGE).shown == "llama4"


@pytest.mark.parametrize("link", ["javascript:alert(1)", "javascript://x/%0aalert(1)", "data:text/html,x", "//x.test"])
def test_a_link_that_is_no_page_is_left_out(link):
    for page in (PAGE, ""):
        address = licence_of("other", page, "mine", link).front_matter().get("license_link", "")
        assert address in ("", PAGE, f"{PAGE}/blob/main/{link}")


def test_every_library_that_is_asked_for_stands_in_the_list_with_its_licence():
    """Made anew by python benchmarks/third_party_licences.py."""
    listed = (REPOSITORY / "THIRD_PARTY_LICENCES.md").read_text(encoding="utf-8")
    for file in REPOSITORY.glob("requirements*.txt"):
        for name in re.findall(r"^([\w-]+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            name = name.replace("_", "-").lower()
            if name != "-r":
                assert re.search(rf"^\| {name} \| .*{re.escape(file.name)}", listed, re.MULTILINE), name
    assert "not told" not in listed
    for what in ("OFL", "CC BY 4.0", "Gemma Terms of Use", "Llama 3.1 Community License"):
        assert what in listed
