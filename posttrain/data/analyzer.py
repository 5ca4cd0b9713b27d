"""Presidio (Microsoft) as the finder of privacy.py, where it is installed: --backend presidio.

Without a language model it looks for the same kinds by its own patterns; with one (--ner-model, a spaCy pipeline that
is installed) for names and places, too.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from posttrain.data.privacy import KINDS, Finder, Found, merged
from posttrain.errors import UserError, reason

BY_MODEL = {"PERSON": "person", "LOCATION": "location", "NRP": "group"}  # only with a language model
ENTITIES = {
    "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "credit_card", "IBAN_CODE": "iban", "IP_ADDRESS": "ip",
    "US_SSN": "ssn", "URL": "url",
}  # fmt: skip
LEAST = 0.4  # what Presidio gives a phone number: without the words around it nothing gets more than its pattern's


def presidio(kinds: tuple[str, ...], ner_model: str | None = None) -> Finder:
    """kinds: of privacy.KINDS, and of person, location, group where there is a model."""
    engine = _engine(ner_model)
    wanted = [entity for entity, kind in (ENTITIES | BY_MODEL).items() if kind in kinds]
    wanted += ["IP_ADDRESS"] * bool({"ipv4", "ipv6"} & set(kinds))

    def find(text: str) -> list[Found]:
        if not text.strip():
            return []
        results = engine.analyze(text=text, language="en", entities=wanted, score_threshold=LEAST)
        found = [Found(_kind(r.entity_type, text[r.start : r.end]), r.start, r.end) for r in results]
        return merged([one for one in found if one.kind in kinds])

    return find


def _kind(entity: str, value: str) -> str:
    kind = (ENTITIES | BY_MODEL)[entity]
    return kind if kind != "ip" else "ipv6" if ":" in value else "ipv4"


def _engine(ner_model: str | None) -> Any:
    if importlib.util.find_spec("presidio_analyzer") is None:
        raise UserError("--backend presidio: it is not installed: pip install -r requirements-privacy.txt")
    import spacy
    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    # The list of top-level domains that it brings: else the first e-mail address fetches one from the network
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    if ner_model is None:
        pipeline = spacy.blank("en")  # words only: AnalyzerEngine() by itself would fetch a model
    else:
        try:
            pipeline = spacy.load(ner_model)
        except Exception as error:
            raise UserError(f"--ner-model {ner_model}: spaCy cannot load it: {reason(error)}") from None

    class Pipeline(SpacyNlpEngine):
        """The pipeline that is already there."""

        def load(self) -> None:
            self.nlp = {"en": pipeline}

        def is_loaded(self) -> bool:
            return True

    nlp = Pipeline()
    nlp.load()
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"], nlp_engine=nlp)
    if ner_model is None:
        registry.remove_recognizer("SpacyRecognizer")
    return AnalyzerEngine(registry=registry, nlp_engine=nlp, supported_languages=["en"])


def kinds_of(backend: str, ner_model: str | None) -> tuple[str, ...]:
    """All kinds that can be asked for."""
    return KINDS + (tuple(BY_MODEL.values()) if backend == "presidio" and ner_model is not None else ())
