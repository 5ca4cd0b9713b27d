"""What is found, what only looks so, how much of it, and that no line takes long."""

import time

import pytest
from privacy_cases import cases, measure

from posttrain.data import privacy
from posttrain.data.privacy import Found, merged, patterns, substitute


def found(text, *kinds):
    return [(kind, text[start:end]) for kind, start, end in patterns(kinds or privacy.KINDS)(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail jo@x.org, or call +49 (0)170 1234567.", [("email", "jo@x.org"), ("phone", "+49 (0)170 1234567")]),
        # Luhn, from the right: 1 + 2·1 + 1 + 2·1 + … + 1 + 2·4 = 30
        ("card 4111 1111 1111 1111, not 4111 1111 1111 1112", [("credit_card", "4111 1111 1111 1111")]),
        ("Table 5 4111111111111111", [("credit_card", "4111111111111111")]),
        ("DE89 3704 0044 0532 0130 00 BIC COBADEFF", [("iban", "DE89 3704 0044 0532 0130 00")]),  # of the registry
        ("DE88 3704 0044 0532 0130 00", []),
        ("at 10.0.0.19:80, in 1.2.3.4 of version 10.0.0.19, x>=10.0.0.19", [("ipv4", "10.0.0.19")]),
        ("fe80::1%eth0 or 2001:db8::1: no answer", [("ipv6", "fe80::1%eth0"), ("ipv6", "2001:db8::1")]),
        ("12:34:56 std::map a::b x[::2] 00:1A:2B:3C:4D:5E", []),
        ("123-45-6789, 666-45-6789, 123 45 6789", [("ssn", "123-45-6789")]),
        ("SSN 078 05 1120", [("ssn", "078 05 1120")]),
        ("(see https://x.org/a_(b)). www.y.de!", [("url", "https://x.org/a_(b)"), ("url", "www.y.de")]),
        ("foo@bar, icon@2x.png, 2024-01-15, 01-02-2024, ISBN 978-3-16-148410-0", []),
        ("请写信给jo@x.org，谢谢", [("email", "jo@x.org")]),  # no space before it
        ("fax 5550147 or 5550147", [("phone", "5550147")]),
    ],
)
def test_what_is_found(text, expected):
    assert found(text) == expected


def test_the_longest_of_those_that_overlap_gives_the_kind():
    text = "https://x.org/?mail=jo@x.org&tel=+491701234567"
    assert found(text) == [("url", text)] and found(text, "email") == [("email", "jo@x.org")]
    assert merged([Found("phone", 0, 9), Found("ssn", 0, 9)]) == [
        Found("ssn", 0, 9)
    ]  # as long: the one that is checked
    # what sticks out of the longer one does not stay in sight, and a third that hangs on the second comes along
    assert merged([Found("phone", 8, 14), Found("email", 0, 10), Found("url", 13, 15)]) == [Found("email", 0, 15)]
    assert merged([Found("email", 0, 4), Found("email", 4, 8)]) == [Found("email", 0, 4), Found("email", 4, 8)]


FIGURES = {  # labelled, found, right
    "email": (71, 67, 67), "url": (42, 40, 40), "credit_card": (46, 46, 45), "iban": (39, 39, 39), "ssn": (30, 29, 29),
    "ipv4": (31, 30, 30), "ipv6": (25, 25, 25), "phone": (75, 73, 72),
}  # fmt: skip


def test_recall_and_precision_on_the_labelled_cases():
    """The table of docs/data_tools.md: a change of a pattern changes these figures."""
    every = cases()
    assert len(every) == 501 and sum(not case.labels for case in every) == 162
    by_kind, _ = measure(patterns(), every)
    figures = {kind: (n["labelled"], n["found"], n["right"]) for kind, n in by_kind.items()}
    assert figures == FIGURES


@pytest.mark.parametrize(
    "line",
    ["1-" * 50_000, "a@" * 50_000, "a@a." * 25_000, "a" * 100_000, "4 " * 50_000, "0 " * 50_000, "+1" * 50_000, "1:" * 50_000,
     ":" * 100_000, "www.aa" + ")" * 100_000, "DE12 " * 20_000, "call 1 " * 14_000, "ssn 123 45 6789 " * 6_000, "01) (" * 20_000],
    ids=lambda line: line[:8],
)  # fmt: skip
def test_a_line_of_100_kB_takes_less_than_a_second(line):
    start = time.perf_counter()
    found(line)
    assert time.perf_counter() - start < 1


def test_what_stands_there_instead():
    assert substitute("ipv4", "10.0.0.19", "replace") == "[IPV4]"
    assert substitute("email", "jo@x.org", "mask") == "**@*.***"
    assert substitute("credit_card", "4111 1111 1111 1234", "mask") == "**** **** **** 1234"
    # printf 'email:jo@x.org' | openssl dgst -sha256 -hmac salt
    assert substitute("email", "Jo@X.org", "hash", b"salt") == "[EMAIL_924077f94263fd27]"
    same = [
        ("phone", "+49 (0)170 1234567", "0049 170/1234567"),
        ("iban", "DE89 3704", "de893704"),
        ("ipv6", "2001:DB8::1", "2001:db8:0::1"),
    ]
    for kind, a, b in same:
        assert (
            substitute(kind, a, "hash", b"s") == substitute(kind, b, "hash", b"s") != substitute(kind, a, "hash", b"t")
        )


def test_what_was_merged_is_hashed_as_it_stands():
    """No address any more, and still somebody's."""
    assert len(substitute("ipv6", "2001:db8::1, 0170/1234567", "hash", b"s")) == len("[IPV6_0123456789abcdef]")


@pytest.mark.parametrize("action", privacy.ACTIONS)
def test_nothing_is_found_in_what_was_replaced(action):
    """A second pass changes nothing."""
    find = patterns()
    for case in cases()[:330]:
        text, place = "", 0
        for kind, start, end in find(case.text):
            text += case.text[place:start] + substitute(kind, case.text[start:end], action, b"s")
            place = end
        assert find(text + case.text[place:]) == [], case.text
