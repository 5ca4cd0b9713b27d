"""A labelled file for posttrain.deidentify, made from a seed: what is in it, what only looks so, and what no pattern sees.

python tests/privacy_cases.py                      recall and precision by kind
python tests/privacy_cases.py --wrong              and every case that went wrong
python tests/privacy_cases.py --backend presidio   the same, where Presidio is installed
"""

import argparse
import collections
import random
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from posttrain.data import analyzer, privacy


class Case(NamedTuple):
    text: str
    labels: list[tuple[str, str]]  # (kind, value) in the order of the text
    hard: bool = False  # looks like something and is nothing, or is something and does not look so


ROUND = [
    "Please write to {} by Friday.", "{}", "Contact: {}.", "I asked ({}) and got no answer.", "Old: {}, new: unknown",
    "The form says \"{}\" in the last line.", "Reach me under {}, thanks!", "first line\n{}\nlast line", "| name | {} |", "<b>{}</b>",
]  # fmt: skip


def check_digit(digits: str) -> str:
    """Luhn's, from the left: the other way round than the code under test."""
    total = 0
    for place, digit in enumerate(digits):
        n = int(digit)
        if (len(digits) - place) % 2:
            n = n * 2 - 9 if n > 4 else n * 2
        total += n
    return str(-total % 10)


def card(rng, prefix: str, length: int) -> str:
    digits = prefix + "".join(rng.choices("0123456789", k=length - len(prefix) - 1))
    return digits + check_digit(digits)


def iban(rng, country: str, letters: int, digits: int) -> str:
    account = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=letters)) + "".join(
        rng.choices("0123456789", k=digits)
    )
    remainder = 0
    for c in account + country + "00":  # digit by digit, as on paper
        for digit in str(ord(c) - 55) if c.isalpha() else c:
            remainder = (remainder * 10 + int(digit)) % 97
    return f"{country}{98 - remainder:02d}{account}"


def in_fours(text: str, between: str = " ") -> str:
    return between.join(text[i : i + 4] for i in range(0, len(text), 4))


def people(rng) -> dict[str, list[str]]:
    """Values of each kind, in the ways that people write them."""
    d = lambda n: "".join(rng.choices("0123456789", k=n))  # noqa: E731
    names, hosts = ["jo", "anna.miller", "k_lee", "o'brien", "m-b.s+news", "TOM", "x99", "jörg"], [
        "example.org", "mail.example.co.uk", "uni-bonn.de", "a.io", "EXAMPLE.COM", "müller.de", "sub.dept.example.museum",
    ]  # fmt: skip
    found = {
        "email": [f"{rng.choice(names)}@{rng.choice(hosts)}" for _ in range(50)],
        "phone": [
            form(d) for form in (
                lambda d: f"+49 170 {d(7)}", lambda d: f"+49 (0)30 {d(6)}", lambda d: f"+1 212-{rng.randint(200, 999)}-{d(4)}",
                lambda d: f"+44 20 {d(4)} {d(4)}", lambda d: f"+33 1 {d(2)} {d(2)} {d(2)} {d(2)}", lambda d: f"+91{rng.randint(6, 9)}{d(9)}",
                lambda d: f"0049 89 {d(7)}", lambda d: f"({rng.randint(200, 999)}) {rng.randint(200, 999)}-{d(4)}",
                lambda d: f"{rng.randint(200, 999)}-{rng.randint(200, 999)}-{d(4)}", lambda d: f"{rng.randint(200, 999)}.{rng.randint(200, 999)}.{d(4)}",
                lambda d: f"1-800-{rng.randint(200, 999)}-{d(4)}", lambda d: f"030 {d(7)}", lambda d: f"0171/{d(8)}", lambda d: f"020 7{d(3)} {d(4)}",
                lambda d: f"06 {d(2)} {d(2)} {d(2)} {d(2)}", lambda d: f"(089) {d(6)}", lambda d: f"0{rng.randint(15, 17)}{d(9)}"[:11],
                lambda d: f"+86 138 {d(4)} {d(4)}", lambda d: f"+55 (11) 9{d(4)}-{d(4)}",
            ) for _ in range(3)
        ],
        "credit_card": [
            write(card(rng, prefix, length))
            for prefix, length in (("4", 16), ("51", 16), ("2221", 16), ("6011", 16), ("4", 13), ("4", 19))
            for write in (str, in_fours, lambda c: in_fours(c, "-"))
            for _ in range(2) if length != 13 or write is str
        ] + [card(rng, "34", 15) for _ in range(3)] + [f"{c[:4]} {c[4:10]} {c[10:]}" for c in (card(rng, "37", 15) for _ in range(3))],
        "iban": [
            write(iban(rng, *country))
            for country in (("DE", 0, 18), ("GB", 4, 14), ("FR", 0, 23), ("NL", 4, 10), ("NO", 0, 11), ("CH", 0, 17), ("MT", 4, 23), ("PL", 0, 24))
            for write in (str, in_fours, lambda i: in_fours(i.lower()), lambda i: in_fours(i, "-"))
        ],
        "ipv4": [f"{rng.randint(11, 255)}.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}" for _ in range(30)],
        "ipv6": [
            form() for form in (
                lambda: ":".join(f"{rng.randint(4096, 65535):x}" for _ in range(8)), lambda: f"2001:db8::{rng.randint(1, 65535):x}",
                lambda: f"fe80::{rng.randint(256, 65535):x}:{rng.randint(256, 65535):x}", lambda: f"::ffff:10.{rng.randint(10, 255)}.0.{rng.randint(10, 99)}",
                lambda: f"2A00:1450:{rng.randint(4096, 65535):X}::{rng.randint(16, 255):X}",
            ) for _ in range(5)
        ],
        "ssn": [f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}" for _ in range(25)],
        "url": [
            form for n in range(8) for form in (
                f"https://example.org/u/{n}", f"http://www.example.com/a_(b{n})", f"www.shop{n}.de/cart?user=jo&id={n}",
                f"https://jo:pw{n}@host.example:8443/x#top", f"ftp://files.example.net/{n}.txt",
            )
        ],
    }  # fmt: skip
    return found


UNSEEN = [  # somebody's, and no pattern here sees it, or sees all of it
    ("jo at example dot com", [("email", "jo at example dot com")]), ("jo(at)example.org", [("email", "jo(at)example.org")]),
    ("root@localhost", [("email", "root@localhost")]), ("Почта: иван@пример.рф", [("email", "иван@пример.рф")]),
    ("555-0147", [("phone", "555-0147")]), ("4155550132", [("phone", "4155550132")]), ("one seven zero, five five five", [("phone", "one seven zero, five five five")]),
    ("41111 11111 11111 1", [("credit_card", "41111 11111 11111 1")]), ("078051120", [("ssn", "078051120")]),
    ("example.com/~jo", [("url", "example.com/~jo")]), ("ring 8.8.8.8", [("ipv4", "8.8.8.8")]), ("t.me/jo_1990", [("url", "t.me/jo_1990")]),
]  # fmt: skip

NOTHING = [  # hard negatives that need no numbers drawn
    "foo@bar", "a @ b", "@handle", "icon@2x.png", "lodash@4.17.21", "@app.route('/x')", "3 @ 1.50", "user@", "@example.org", "C++@home",
    "12:34:56", "at 23:59:59.123", "00:1A:2B:3C:4D:5E", "std::vector<int>", "a::b", "x[::2]", "x[1::3]", "Foo::Bar::baz", "ratio 1:2:3:4", "::before",
    "section 1.2.3.4", "1.2.3.4 Scope", "version 10.0.19.45", "v12.4.15.16", "firmware 11.20.33.41", "§ 12.3.14.15", "10.0.19041.1", "1.2.3", "999.1.2.3",
    "192.168.1", "Release 20.10.11.12", "5.4.3.2.1", "build 10.11.12.13", "256.300.1.20", "ISBN 978-3-16-148410-0", "ISBN 0-306-40615-2", "0306406152",
    "9783161484100", "ISSN 0317-8471", "2024-01-15", "15/01/2024", "01-02-2024", "03.04.2023", "2024-01-15T12:30:00Z", "20240115", "1999-2024", "01/02/03",
    "12/25/2023 10:30", "07-04-1976 1030", "1,234,567.89", "1 234 567", "3.14159265358979", "1e10", "-273.15", "0.000123456", "10-20-30", "100-200-300",
    "0 1 2 3 4 5 6 7 8 9", "05 10 15 20", "1-1-1-1-1-1-1-1", "2 + 2 = 4", "0x7fff5fbff8c8", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "sha256:9f86d081884c7d65",
    "000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000", "12-345-6789", "123-456-789", "1234-56-7890", "DE00 1234", "GB 12 pounds",
    "AT20 the door", "DE89 3704 0044 0532 0130 01", "NO93 8601 1117 948", "XX12 3456 7890 1234", "FR2024", "http://", "https", "www.", "httpd.conf", "www is the web",
    "e.g. this", "file.name.txt", "node.js", "self.value", "0000 0000 0000 0000", "4444 4444 4444 4444", "1234 5678 9012 3456 7890 1234", "No. 0012345678",
    "Flight LH 0400", "room 0815", "postcode 01067 Dresden", "0900-1700", "score 103-98", "chapters 12-14", "€ 012,50", "M 5 x 20 - 8.8", "$1,299.00", "GPS 48.8584, 2.2945",
]  # fmt: skip


def cases(seed: int = 0) -> list[Case]:
    rng = random.Random(seed)
    out = []
    for kind, values in people(rng).items():
        out += [Case(rng.choice(ROUND).format(value), [(kind, value)]) for value in values]
    out += [
        Case(f"{lead}{value}", [("phone", value)])
        for lead in ("Tel.: ", "phone number is ", "Call me at ")
        for value in ("5550147", "415 555 0132")
    ]
    out += [
        Case(f"{lead}{value}", [("ssn", value)])
        for lead in ("SSN: ", "my social security number is ")
        for value in ("078 05 1120", "219099999")
    ]
    out += [Case(text, labels, hard=True) for text, labels in UNSEEN]
    out += [Case(text, [], hard=True) for text in NOTHING]
    for _ in range(40):  # order numbers that Luhn refuses
        number = card(rng, rng.choice("23456"), 16)
        wrong = number[:-1] + str((int(number[-1]) + rng.randint(1, 9)) % 10)
        out.append(Case(f"Order {rng.choice([str, in_fours])(wrong)} has been shipped.", [], hard=True))
    for _ in range(20):  # and some numbers of no meaning: one in ten has the right check digit by chance
        out.append(Case(f"Invoice {''.join(rng.choices('0123456789', k=16))}, paid.", [], hard=True))
    for first, second in zip(rng.sample(out[:200], 20), rng.sample(out[:200], 20), strict=True):
        out.append(Case(f"{first.text} {second.text}", first.labels + second.labels))
    return out


def measure(find, some: list[Case]) -> tuple[dict[str, collections.Counter], list[str]]:
    """({kind: {labelled, found, right}}, what went wrong); right: the same kind, the same characters."""
    by_kind: dict[str, collections.Counter] = {kind: collections.Counter() for kind in privacy.KINDS}
    wrong = []
    for case in some:
        found = collections.Counter((kind, case.text[a:b]) for kind, a, b in find(case.text))
        labelled = collections.Counter(case.labels)
        for name, counts in (("labelled", labelled), ("found", found), ("right", labelled & found)):
            for (kind, _), n in counts.items():
                by_kind[kind][name] += n
        if found != labelled:
            wrong.append(f"{case.text!r:.100}: missed {list(labelled - found)}, said {list(found - labelled)}")
    return by_kind, wrong


def table(by_kind: dict[str, collections.Counter]) -> list[str]:
    total = sum(by_kind.values(), collections.Counter())
    lines = ["| kind | labelled | found | right | recall | precision |", "|---|---|---|---|---|---|"]
    for kind, n in [*by_kind.items(), ("all", total)]:
        recall, precision = (f"{n['right'] / n[of]:.3f}" if n[of] else "–" for of in ("labelled", "found"))
        lines.append(f"| {kind} | {n['labelled']} | {n['found']} | {n['right']} | {recall} | {precision} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=["patterns", "presidio"], default="patterns")
    parser.add_argument("--wrong", action="store_true")
    options = parser.parse_args()
    every = cases()
    finder = privacy.patterns() if options.backend == "patterns" else analyzer.presidio(privacy.KINDS)
    counts, mistakes = measure(finder, every)
    print(f"{len(every)} texts, {sum(not case.labels for case in every)} of them without anything")
    print("\n".join(table(counts)))
    print("\n".join(mistakes) if options.wrong else f"{len(mistakes)} texts went wrong (--wrong shows them)")
