"""What looks like a person's e-mail address, phone number, card … in a text, and what to put in its place.

    email        name@host.tld
    url          http://, https://, ftp:// or www.
    credit_card  13 to 19 digits, together or in the groups that cards have, with Luhn's check digit
    iban         a country's letters, its length, and the check digits (ISO 13616: mod 97 = 1)
    ssn          123-45-6789 (US); with spaces or together only behind "SSN" or "social security"
    ipv4, ipv6   1.2.3.4-like section and version numbers are none: see _ipv4
    phone        +49 170 1234567, 0049 …, (212) 555-0147, 212-555-0147, 030 1234567, 0170/1234567, and any 7 to 15
                 digits behind a word such as "phone" or "Tel."

These patterns know no names, no postal addresses, no dates of birth: analyzer.py asks a model for those.

Matches that overlap become one, from the first character to the last, of the kind of the longest (of two as long: of
the one that stands first above). So nothing that was found stays in sight.

No pattern goes back over more than a few dozen characters: a line without an end takes time in proportion to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

KINDS = ("email", "url", "credit_card", "iban", "ssn", "ipv4", "ipv6", "phone")
ACTIONS = ("replace", "mask", "hash")
LAST_FOUR = ("phone", "credit_card", "iban", "ssn")  # what --action mask leaves of them
Span = tuple[int, int]


class Found(NamedTuple):
    kind: str
    start: int
    end: int


Finder = Callable[[str], list[Found]]


def patterns(kinds: tuple[str, ...] = KINDS) -> Finder:
    """The finder of these kinds by the patterns below."""

    def find(text: str) -> list[Found]:
        if len(text) < 7:  # the shortest of all: a@bc.de, 1.2.3.45
            return []
        return merged([Found(kind, *span) for kind in kinds for span in FIND[kind](text)])

    return find


def merged(found: list[Found]) -> list[Found]:
    """In the order of the text; those that overlap as one.

    >>> merged([Found("phone", 3, 9), Found("url", 0, 8), Found("email", 12, 20)])
    [Found(kind='url', start=0, end=9), Found(kind='email', start=12, end=20)]
    """
    rank = {kind: i for i, kind in enumerate(KINDS)}
    out: list[tuple[int, int, Found]] = []  # (start, end, the one that gives the kind)
    for one in sorted(found, key=lambda f: (f.start, f.end)):
        if not out or one.start >= out[-1][1]:
            out.append((one.start, one.end, one))
            continue
        start, end, best = out[-1]
        best = min(best, one, key=lambda f: (f.start - f.end, rank.get(f.kind, len(KINDS))))
        out[-1] = (start, max(end, one.end), best)
    return [Found(best.kind, start, end) for start, end, best in out]


# ---------------------------------------------------------------- what each kind looks like

LETTER = "A-Za-zÀ-ÖØ-öø-ɏ"  # Latin: Chinese text has no space before an address
# No top-level domain: icon@2x.png, package@1.2.js
ENDINGS = "png|jpe?g|gif|svg|webp|bmp|tiff?|pdf|json|js|css|html?|t?gz|jar|whl|exe|dll"
EMAIL = re.compile(
    rf"(?<![{LETTER}0-9])[{LETTER}0-9_+%][{LETTER}0-9_.+%'-]{{0,63}}@"
    rf"(?:[{LETTER}0-9][{LETTER}0-9-]{{0,62}}\.){{1,8}}(?!(?:{ENDINGS})\b)[{LETTER}]{{2,24}}(?![{LETTER}0-9_-])",
    re.IGNORECASE,
)
URL = re.compile(r"(?<![A-Za-z0-9])(?:(?:https?|ftp)://|www\.)[^\s<>\"`\\^{|}，。；：！？）」』】]{3,2048}", re.I)
CARD = re.compile(
    r"(?<![\w.-])(?:[2-6]\d{12,18}"
    r"|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?"  # 4-4-4-4, and 3 more
    r"|3\d{3}([ -])\d{6}\2\d{4,5})(?!\w|[-.]\d)",  # American Express, Diners
    re.ASCII,
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d\d(?=[ -]?[A-Z0-9]{2})", re.IGNORECASE)
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w)", re.ASCII)
IPV6 = re.compile(
    r"(?:(?<![\w:.])|(?<=[G-Zg-z]:))[0-9A-Fa-f:]{3,39}(?:(?:\.\d{1,3}){3})?(?:%[A-Za-z0-9]{1,16})?(?![\w:])", re.ASCII
)
SSN = re.compile(r"(?<![\w.-])(\d{3})(?:([ -])(\d\d)\2|(\d\d))(\d{4})(?!\w|[-.]\d)", re.ASCII)

_APART = r"(?:[ .\-/]|[ ]?\(|\)[ ]?|[ ]-[ ])?"  # between two digits of a number that begins with + or 00
PHONE = re.compile(
    # +49 (0)170 1234567, 0049 170 1234567
    rf"(?<![\w.,/-])(?:\+|(?<!\d )00(?=[ ]?[1-9])|\(\+(?=\d{{1,3}}\)))[ ]?\d(?:{_APART}\d){{6,14}}(?!\w|[-.]\d)"
    # (212) 555-0147, 1-212-555-0147, 212.555.0147
    r"|(?<![\w.,/-])(?:1[ .-])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d(?=[-.])[-.])[2-9]\d\d[-. ]\d{4}(?!\w|[-.]\d)"
    # 030 1234567, (030) 1234 567, 0170/1234567, 020 7946 0958, 01 23 45 67 89
    r"|(?<![\w.,/-])(?<!\d )(?:\(0[1-9]\d{0,4}\) ?|0[1-9]\d{0,4}[ /-])\d{2,8}(?:(?P<apart>[ -])\d{2,5}(?:(?P=apart)\d{2,5}){0,3})?(?!\w|[-./]\d|[:%€$])"
    # 01701234567
    r"|(?<![\w.,/-])0[1-9]\d{8,9}(?!\w|[-.,/]\d)",
    re.ASCII,
)
CALLED = re.compile(
    r"(?<![A-Za-z])(?:tele?fon|telephone|tel|phone|mobile|mobil|cell|fax|handy|whatsapp|sms|call(?: me)?(?: at| on)?)"
    r"(?: (?:number|no|nr))?[.:#]{0,2} ?(?:is |at |on )?(\+?\(?\d(?:[ .\-/()]{0,2}\d){6,14})(?!\w|[-.]\d)",
    re.IGNORECASE | re.ASCII,
)
DATE = re.compile(r"\d\d([-/ ])\d\d\1(?:19|20)\d\d\b")
NUMBERED = re.compile(
    r"(?:\b(?:v|ver|version|release|build|firmware|section|sections|sec|chapter|clause|paragraph|article|rule|table|figure|fig"
    r"|abschnitt|kapitel)\.?|§|[=<>~!]=)[ ]{0,2}(?:is |no\. )?$",
    re.IGNORECASE,
)
SOCIAL = re.compile(r"\b(?:ssn|social[ -]security)\b[^\n]{0,24}$", re.IGNORECASE)


def _email(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (match.span() for match in EMAIL.finditer(text))


def _url(text: str) -> Iterator[Span]:
    """Without the punctuation that ends the sentence, and without a bracket that was opened before it."""
    for match in URL.finditer(text):
        url, end = match[0], match.end()
        open_ones = {")": url.count("(") - url.count(")"), "]": url.count("[") - url.count("]")}
        while (last := text[end - 1]) in ".,;:!?'*_~" or open_ones.get(last, 0) < 0:
            open_ones[last] = open_ones.get(last, 0) + 1
            end -= 1
        if re.search(r"[^\W_]", text[match.start() : end].partition("://")[2] or url[4:]):
            yield match.start(), end


def _card(text: str) -> Iterator[Span]:
    for match in CARD.finditer(text):
        if luhn(match[0]):
            yield match.span()


def luhn(number: str) -> bool:
    """Every second digit from the right doubled, its own digits added: the sum ends in 0.

    >>> luhn("4111 1111 1111 1111"), luhn("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(c) for c in number if c.isdigit()]
    total = sum(digits[-1::-2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return total % 10 == 0 and len(set(digits)) > 1


# Characters of each country's IBAN (the registry of SWIFT)
LENGTHS = {country: int(length) for length, countries in {
    "15": "NO", "16": "BE", "18": "DK FI FO GL NL SD", "19": "MK SI", "20": "AT BA EE KZ LT LU MN XK",
    "21": "CH HR LI LV", "22": "BG BH CR DE GB GE IE ME RS VA", "23": "AE GI IL IQ OM TL SO", "24": "AD CZ ES MD PK RO SA SE SK TN VG",
    "25": "LY PT ST", "26": "IS TR", "27": "BI DJ FR GR IT MC MR SM", "28": "AL AZ BY CY DO GT HU LB NI PL SV",
    "29": "BR EG PS QA UA", "30": "JO KW MU YE", "31": "MT SC", "32": "LC", "33": "RU",
}.items() for country in countries.split()}  # fmt: skip


def _iban(text: str) -> Iterator[Span]:
    for match in IBAN.finditer(text):
        length = LENGTHS.get(match[0][:2].upper(), 0)
        place, kept = match.start(), ""
        while place < len(text) and len(kept) < length:
            if text[place].isascii() and text[place].isalnum():
                kept += text[place].upper()
            elif text[place] not in " -" or not text[place - 1].isalnum():  # one space or hyphen between two
                break
            place += 1
        behind = text[place : place + 1]
        if length and len(kept) == length and not behind.isalnum() and _mod_97(kept) == 1:
            yield match.start(), place


def _mod_97(iban: str) -> int:
    """ISO 13616: the first four characters behind the rest, A = 10 … Z = 35."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97


def _ipv4(text: str) -> Iterator[Span]:
    """Four numbers up to 255. None where all are below 10 (1.2.3.4: a section; so are 8.8.8.8 and 1.1.1.1, which are
    nobody's), or behind a word such as version, release, section."""
    for match in IPV4.finditer(text):
        parts = match[0].split(".")
        if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts) or max(map(int, parts)) < 10:
            continue
        if not NUMBERED.search(text[max(0, match.start() - 24) : match.start()]):
            yield match.span()


def _ipv6(text: str) -> Iterator[Span]:
    """What Python's ipaddress reads as one, and has a digit and a group of three or more: a::b and x[::2] are code."""
    for match in IPV6.finditer(text):
        end = match.end() - (match[0].endswith(":") and not match[0].endswith("::"))  # "at fe80::12: no answer"
        address = text[match.start() : end]
        if address.count(":") < 2 or not re.search(r"\d", address) or not re.search(r"[0-9A-Fa-f]{3}", address):
            continue
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            continue
        yield match.start(), end


def _ssn(text: str) -> Iterator[Span]:
    for match in SSN.finditer(text):
        area, group, serial = match[1], match[3] or match[4], match[5]
        if area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000":  # never given out
            continue
        if match[2] == "-" or SOCIAL.search(text[max(0, match.start() - 48) : match.start()]):
            yield match.span()


def _phone(text: str) -> Iterator[Span]:
    for match in PHONE.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        least = 9 if match[0].lstrip("(")[0] == "0" else 8  # 01-02-2024, 05 10 15 20
        if len(digits) < least or DATE.match(match[0]) or (len(match[0]) == len(digits) == 10 and _is_isbn(digits)):
            continue
        yield match.span()
    yield from (match.span(1) for match in CALLED.finditer(text))


def _is_isbn(digits: str) -> bool:
    """Of ten digits: 10 a + 9 b + … + 1 j is a multiple of 11 (one number in eleven)."""
    return sum((10 - i) * int(digit) for i, digit in enumerate(digits)) % 11 == 0


FIND: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _email, "phone": _phone, "credit_card": _card, "iban": _iban, "ipv4": _ipv4, "ipv6": _ipv6, "ssn": _ssn, "url": _url,
}  # fmt: skip


# ---------------------------------------------------------------- what stands there instead


def substitute(kind: str, value: str, action: str, salt: bytes = b"") -> str:
    """replace: [EMAIL]. mask: every letter and digit a star, of numbers all but the last four. hash: [EMAIL_0f…], the
    first 64 bits of HMAC-SHA256 under the salt: the same value, however it is written, is the same token.

    >>> substitute("phone", "+49 170 1234567", "mask"), substitute("email", "jo@x.org", "mask")
    ('+** *** ***4567', '**@*.***')
    """
    if action == "replace":
        return f"[{kind.upper()}]"
    if action == "mask":
        shown = 4 if kind in LAST_FOUR else 0
        places = [i for i, c in enumerate(value) if c.isalnum()]
        hidden = set(places[: max(0, len(places) - shown)])
        return "".join("*" if i in hidden else c for i, c in enumerate(value))
    code = hmac.new(salt, f"{kind}:{_same(kind, value)}".encode(errors="surrogatepass"), hashlib.sha256).hexdigest()
    return f"[{kind.upper()}_{code[:16]}]"


def _same(kind: str, value: str) -> str:
    """One way to write what may be written in several. (A phone number with its country's code and one without stay
    two.)"""
    if kind == "ipv6":
        with contextlib.suppress(ValueError):  # what was merged with something beside it is no address
            return str(ipaddress.IPv6Address(value))
    if kind == "phone":
        digits = re.sub(r"\D", "", value.replace("(0)", ""))
        return digits.removeprefix("00")
    if kind in ("credit_card", "iban", "ssn"):
        return re.sub(r"[^0-9A-Z]", "", value.upper())
    return value if kind == "url" else " ".join(value.casefold().split())
