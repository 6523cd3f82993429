"""Names and addresses, found by a model: Microsoft Presidio's analyzer over a spaCy pipeline. An extra, off by default.

https://microsoft.github.io/presidio/analyzer/. Nothing is downloaded, and nothing runs on a GPU: what is found in a text
depends on the text, the settings and the pipeline alone. A pipeline finds most names, never all; the table
`scrub_changes` shows what became of each record.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.artefacts import hash_of, hash_of_file
from luthier.errors import UserError, did_you_mean
from luthier.text.pii import AnyKind, Finding, Recognizer

# spaCy refuses texts of a million characters, and needs memory by their length. A longer text than this is read in pieces, which
# overlap: a name that the end of one cuts stands whole in the next.
LONGEST, OVERLAP = 50_000, 1_000
_SURROGATE = re.compile("[\ud800-\udfff]")
WHERE = "data_processing.scrub.presidio"


class PresidioSettings(BaseModel):
    """What Presidio is to find, and with which model."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    language: str = "en"
    """ISO 639-1 code: of the spaCy pipeline, and of Presidio's own patterns."""
    model: str = "en_core_web_lg"
    """An installed spaCy pipeline, or the folder of one."""
    entities: dict[str, AnyKind] = Field(default={"PERSON": "name", "LOCATION": "address"}, min_length=1)
    """Presidio's entities, or the pipeline's own labels, and the kind of placeholder for each: `US_PASSPORT: national_id`."""
    min_score: float = Field(default=0.5, ge=0, le=1)
    """Least score of a finding. Presidio gives all that a spaCy pipeline finds 0.85; its own patterns score from 0 to 1."""


def load_recognizer(settings: PresidioSettings) -> Recognizer:
    """Return what finds the settings' entities in a text. The pipeline is loaded once in a process.

    Raises:
        UserError: if Presidio or the pipeline is not installed, is of another language, or does not know an entity.
    """
    return _load(*_parts(settings))


def check_recognizer(settings: PresidioSettings) -> None:
    """Make sure that `load_recognizer` can load; nothing is kept, for it is other processes that need it.

    Raises:
        UserError: as `load_recognizer`.
    """
    _load.__wrapped__(*_parts(settings))


def _parts(settings: PresidioSettings) -> tuple[str, str, tuple[tuple[str, AnyKind], ...], float]:
    return settings.language, settings.model, tuple(sorted(settings.entities.items())), settings.min_score


def pipeline_version(model: str) -> str:
    """Return what tells a spaCy pipeline from another one of the same name: its version, or a hash of its folder."""
    try:
        return version(model)
    except (PackageNotFoundError, ValueError):  # a path is no name of a package
        folder = Path(model)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return hash_of([[file.relative_to(folder).as_posix(), hash_of_file(file)] for file in files])


@lru_cache(maxsize=4)
def _load(language: str, model: str, kinds: tuple[tuple[str, AnyKind], ...], min_score: float) -> Recognizer:
    nlp = _pipeline(language, model)
    kind_of = dict(kinds)
    analyzer = _analyzer(nlp, language, list(kind_of), model)
    lock = Lock()

    def recognize(text: str) -> list[Finding]:
        found = [finding for start, piece in _pieces(text) for finding in analyze(start, piece)]
        found.sort(key=lambda one: (-one[0], one[1].start, -one[1].end, one[1].kind))
        return [finding for _, finding in found]

    def analyze(offset: int, text: str) -> list[tuple[float, Finding]]:
        # a zone frees the words of the text, which spaCy would keep for ever; a pipeline has one zone at a time
        with lock, nlp.memory_zone():
            results = analyzer.analyze(text, language, list(kind_of), score_threshold=min_score)
            return [(one.score, Finding(offset + one.start, offset + one.end, kind_of[one.entity_type])) for one in results]

    return recognize


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    # spaCy takes no half of a surrogate pair
    text = _SURROGATE.sub("\ufffd", text)
    for start in range(0, max(1, len(text) - OVERLAP), LONGEST - OVERLAP):
        yield start, text[start : start + LONGEST]


def _pipeline(language: str, model: str) -> Any:
    """Load a spaCy pipeline that is on this machine; Presidio itself would download what is not."""
    try:
        import presidio_analyzer  # noqa: F401
        import spacy
    except ImportError as error:
        raise UserError(f'{WHERE}: Presidio cannot be imported ({error}): pip install "luthier[presidio]".') from error
    if not (spacy.util.is_package(model) or Path(model).is_dir()):
        raise UserError(
            f"{WHERE}.model: there is no spaCy pipeline {model!r} here, neither installed nor as a folder. "
            f"`python -m spacy download {model}` finds the wheel and runs pip install; "
            "without a network, pip install the wheel's file, or write the folder of a pipeline."
        )
    try:
        nlp = spacy.load(model)
    except (OSError, ValueError) as error:
        raise UserError(f"{WHERE}.model: spaCy cannot load {model!r}: {error}") from error
    if nlp.lang not in (language, "xx"):
        raise UserError(
            f"{WHERE}.language is {language!r}, but the pipeline {model!r} is for {nlp.lang!r}: write `language: {nlp.lang}`."
        )
    return nlp


def _analyzer(nlp: Any, language: str, entities: list[str], model: str) -> Any:
    """Return Presidio's analyzer over a pipeline that is loaded, so that Presidio neither downloads it nor moves it to a GPU."""
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    labels = {
        label
        for name in nlp.pipe_names
        if "doc.ents" in nlp.get_pipe_meta(name).assigns
        for label in nlp.pipe_labels.get(name, ())
    }
    configuration = NerModelConfiguration()
    # a label may be asked for by its own name; what nobody asked for is passed over in silence
    named = configuration.model_to_presidio_entity_mapping | {label: label for label in labels if label in entities}
    configuration.model_to_presidio_entity_mapping = named
    configuration.labels_to_ignore = sorted(label for label in labels if named.get(label, label) not in entities)

    engine = SpacyNlpEngine([{"lang_code": language, "model_name": model}], configuration)
    engine.nlp = {language: nlp}
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers([language], engine)
    # it downloads the list of public suffixes (tldextract); our own patterns find e-mail addresses
    registry.remove_recognizer("EmailRecognizer")

    by_pattern = (one for one in registry.recognizers if not isinstance(one, SpacyRecognizer))
    known = {named.get(label, label) for label in labels} | {entity for one in by_pattern for entity in one.supported_entities}
    if unknown := [entity for entity in entities if entity not in known]:
        hints = ", ".join(entity + did_you_mean(entity, sorted(known)) for entity in unknown)
        raise UserError(f"{WHERE}.entities: {model!r} does not find {hints}. It finds {', '.join(sorted(known))}.")
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])
