"""Personal data out of a data file: e-mail, phone, credit card, IBAN, IPv4 and IPv6, US SSN, URL.

    python -m posttrain.deidentify --in rows.jsonl --out clean.jsonl
    python -m posttrain.deidentify --in rows.jsonl --out clean.jsonl --kinds email phone --action mask
    python -m posttrain.deidentify --in rows.parquet --out clean.parquet --action hash --report found.json

--action replace   [EMAIL]
         mask      **@*.***, of numbers all but the last four digits
         hash      [EMAIL_0f83…]: the same address is the same token everywhere; whoever has the salt can try addresses

All strings of all columns are looked at (.jsonl, .json, .csv, .parquet), and nothing else is changed. Names, postal
addresses and dates of birth are NOT found without a model (--backend presidio --ner-model NAME), and no pattern finds
everything: docs/data_tools.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
from collections import Counter
from typing import Any

from posttrain.data import analyzer, privacy
from posttrain.data.files import whole_file
from posttrain.data.redaction import Redactor, redact_file
from posttrain.errors import UserError, clear_exit


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.deidentify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--in", dest="source", required=True, metavar="FILE")
    add("--out", required=True, metavar="FILE", help="of the same kind; may be the same file")
    add("--kinds", nargs="+", metavar="KIND", help=f"default: all of {', '.join(privacy.KINDS)}")
    add("--action", choices=privacy.ACTIONS, default="replace")
    add("--salt", help="of hash; better in the environment, as POSTTRAIN_SALT; default: a new one, which is told")
    add("--backend", choices=["patterns", "presidio"], default="patterns")
    add("--ner-model", metavar="NAME", help="of presidio: an installed spaCy pipeline, for names and places")
    add("--report", metavar="FILE.json", help="what was found, per field and kind")
    with clear_exit():
        print(deidentify(**vars(parser.parse_args(arguments))))


def deidentify(
    source: str,
    out: str,
    *,
    kinds: list[str] | None = None,
    action: str = "replace",
    salt: str | None = None,
    backend: str = "patterns",
    ner_model: str | None = None,
    report: str | None = None,
) -> str:
    """Write `out` and the report; returns what to say."""
    possible = analyzer.kinds_of(backend, ner_model)
    if unknown := [kind for kind in kinds or [] if kind not in possible]:
        raise UserError(f"--kinds {unknown[0]}: expected some of {', '.join(possible)}")
    if ner_model is not None and backend != "presidio":
        raise UserError("--ner-model belongs to --backend presidio")
    if salt is not None and action != "hash":
        raise UserError("--salt belongs to --action hash")
    salt = salt or os.environ.get("POSTTRAIN_SALT")
    made = secrets.token_hex(16) if action == "hash" and not salt else None
    wanted = tuple(kind for kind in possible if kind in (kinds or possible))
    find = privacy.patterns(wanted) if backend == "patterns" else analyzer.presidio(wanted, ner_model)
    redactor = Redactor(find, action, (salt or made or "").encode())
    redact_file(source, out, redactor)
    lines = told(redactor, source, out, wanted)
    if made is not None:
        lines.append(
            f"the salt was made: POSTTRAIN_SALT={made} gives the same tokens again. Keep it apart from the data"
        )
    if report is not None:
        with whole_file(report) as file:
            file.write(json.dumps(as_report(redactor, wanted, action, backend), indent=2, ensure_ascii=False).encode())
    return "\n".join(lines)


def told(redactor: Redactor, source: str, out: str, kinds: tuple[str, ...]) -> list[str]:
    rows = f"{redactor.rows:,} row{'s' * (redactor.rows != 1)}"
    lines = [f"read {rows} from {source}: something was found in {redactor.changed:,}"]
    lines += [f"  {field:28} {_counted(found)}" for field, found in _by_field(redactor.found).items()]
    for where, found in _by_field(redactor.left).items():
        lines.append(f"  left as it is, {where}: {_counted(found)} (keys and numbers are not rewritten)")
    return [*lines, f"looked for {', '.join(kinds)}; {not_found(kinds)}", f"wrote {out}"]


def not_found(kinds: tuple[str, ...]) -> str:
    names = "" if "person" in kinds else "names, "
    return f"NOT for {names}postal addresses, dates of birth, account names, or what is written in words (jo at example dot com)"


def as_report(redactor: Redactor, kinds: tuple[str, ...], action: str, backend: str) -> dict[str, Any]:
    """Without the salt: whoever reads the report must not be able to try addresses."""
    return {
        "rows": redactor.rows,
        "rows_changed": redactor.changed,
        "found": {field: dict(found) for field, found in _by_field(redactor.found).items()},
        "left_as_it_is": {where: dict(found) for where, found in _by_field(redactor.left).items()},
        "kinds": list(kinds),
        "action": action,
        "backend": backend,
        "limits": not_found(kinds),
    }


def _by_field(counts: Counter[tuple[str, str]]) -> dict[str, Counter[str]]:
    out: dict[str, Counter[str]] = {}
    for (field, kind), n in counts.items():
        out.setdefault(field, Counter())[kind] = n
    return out


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{kind} {n:,}" for kind, n in found.most_common())


if __name__ == "__main__":
    main()
