"""Presidio where it is installed, and a stand-in for it where it is not."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest

from posttrain.data import analyzer
from posttrain.errors import UserError


def test_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"it is not installed: pip install -r requirements-privacy.txt"):
        analyzer.presidio(("email",))


@pytest.fixture
def stand_in(monkeypatch):
    """Modules of its names that know two words; what they were asked is kept."""
    asked = []

    class Engine:
        def __init__(self, **keys):
            self.registry = keys["registry"]

        def analyze(self, text, **keys):
            asked.append(keys)
            words = {"Anna": "PERSON", "jo@x.org": "EMAIL_ADDRESS", "x.org": "URL", "fe80::1": "IP_ADDRESS"}
            found = [(e, text.find(w), len(w)) for w, e in words.items() if w in text and e in keys["entities"]]
            return [SimpleNamespace(entity_type=e, start=i, end=i + n) for e, i, n in found]

    class Registry:
        def load_predefined_recognizers(self, **keys):
            asked.append("predefined")

        def remove_recognizer(self, name):
            asked.append(f"without {name}")

    def load(name):
        if name != "en_stand_in":
            raise OSError(f"[E050] Can't find model '{name}'.")
        return "a pipeline"

    modules = {
        "presidio_analyzer": {"AnalyzerEngine": Engine, "RecognizerRegistry": Registry},
        "presidio_analyzer.nlp_engine": {"SpacyNlpEngine": object},
        "tldextract": {"tldextract": SimpleNamespace(), "TLDExtract": lambda **keys: keys},
        "spacy": {"blank": lambda language: "words only", "load": load},
    }
    for name, has in modules.items():
        module = ModuleType(name)
        vars(module).update(has)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return asked


def test_kinds_and_overlaps(stand_in):
    find = analyzer.presidio(("email", "url", "ipv6"))
    text = "Anna: jo@x.org from fe80::1"
    assert [(f.kind, text[f.start : f.end]) for f in find(text)] == [("email", "jo@x.org"), ("ipv6", "fe80::1")]
    assert find(" ") == [] and "without SpacyRecognizer" in stand_in  # no model: no names
    assert analyzer.presidio(("ipv4",))(text) == []
    assert sys.modules["tldextract"].tldextract.TLD_EXTRACTOR == {"suffix_list_urls": ()}  # nothing is fetched
    assert stand_in[-1]["entities"] == ["IP_ADDRESS"] and stand_in[-1]["score_threshold"] == 0.4


def test_with_a_model_for_names(stand_in):
    find = analyzer.presidio(("person",), "en_stand_in")
    assert [f.kind for f in find("Anna: jo@x.org")] == ["person"] and "without SpacyRecognizer" not in stand_in
    assert analyzer.kinds_of("presidio", "en_stand_in")[-3:] == ("person", "location", "group")
    assert "person" not in analyzer.kinds_of("presidio", None)
    with pytest.raises(UserError, match=r"--ner-model en_none: spaCy cannot load it: \[E050\] Can't find model"):
        analyzer.presidio(("person",), "en_none")


def test_the_real_one():
    pytest.importorskip("presidio_analyzer")
    text = "Mail jo.miller@example.org, card 4111 1111 1111 1111, DE89 3704 0044 0532 0130 00"
    found = analyzer.presidio(("email", "credit_card", "iban"))(text)
    assert [f.kind for f in found] == ["email", "credit_card", "iban"]
