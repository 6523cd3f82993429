"""A model's findings become placeholders like any others: patterns win, twice is once, and off means off.

Presidio and spaCy run for real where they are installed (`pip install "luthier[presidio]"`), on two pipelines made here, since
none can be downloaded: one of rules, which finds what the tests know, and one that is trained, which errs as real ones do.
"""

import hashlib
import json
import socket
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.text import pii, presidio
from luthier.text.pii import PLACEHOLDER, Finding, find, placeholder, restore, scrub, scrub_all
from luthier.text.prepare import PromptSettings, ScrubSettings, prepare, scrub_messages, scrub_text
from luthier.text.presidio import LONGEST, PresidioSettings, load_recognizer

KEY = "test"
ANN = placeholder("name", "Ann Smith", KEY)
MAIL = placeholder("email", "ann@shop.example", KEY)
PEOPLE = ["Ann Smith", "Bo Li", "Carla Gomez", "Dmitri Orlov", "Eve O'Neil", "José Müller"]
PIECES = [
    *PEOPLE,
    "Berlin",
    "12 Main Street",
    "ann@shop.example",
    "+44 20 7946 0812",
    "I am",
    " ",
    " ",
    "\n",
    ".",
    ",",
    '"',
    "<",
    ">",
    "lives in",
]
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=120)
MIXED = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join)


@pytest.fixture(scope="module", autouse=True)
def looked_at_together():
    """Few texts would be asked one by one; here they stand for many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pii, "FEW", 0)
        yield


@pytest.fixture(scope="module")
def spacy():
    pytest.importorskip("presidio_analyzer", reason='Presidio is an extra: pip install "luthier[presidio]"')
    return pytest.importorskip("spacy", reason='spaCy comes with the extra: pip install "luthier[presidio]"')


@pytest.fixture(scope="module")
def rules(spacy, tmp_path_factory):
    """Return settings with a pipeline that finds the people of these tests, however they are cased."""
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"})
    ruler.add_patterns(
        [
            {"label": "PERSON", "pattern": name}
            for name in [*PEOPLE, "Ann ann@shop.example", "A. B. Smith", "A B Smith", "Li Wei", "Li Wei Chen"]
        ]
    )
    ruler.add_patterns([{"label": "PERSON", "pattern": [{"LOWER": "ann"}, {"IS_SPACE": True}, {"LOWER": "smith"}]}])
    ruler.add_patterns([{"label": "GPE", "pattern": "Berlin"}, {"label": "FAC", "pattern": "12 Main Street"}])
    ruler.add_patterns([{"label": "PERSON", "pattern": [{"TEXT": "Mallory"}, {"OP": "*"}, {"TEXT": "Eve"}]}])
    folder = tmp_path_factory.mktemp("rules") / "model"
    nlp.to_disk(folder)
    return ScrubSettings(presidio=PresidioSettings(model=str(folder)))


@pytest.fixture(scope="module")
def trained(spacy, tmp_path_factory):
    """Return settings with a pipeline that learned from a few sentences: what it finds hangs on all that stands around."""
    from spacy.training import Example

    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner")
    examples = []
    for person in PEOPLE:
        for before, middle, place in (
            ("I am ", " from ", "Berlin"),
            ("Write to ", ", ", "12 Main Street"),
            ("", " lives in ", "Rome"),
        ):
            start = len(before) + len(person) + len(middle)
            entities = [(len(before), len(before) + len(person), "PERSON"), (start, start + len(place), "LOC")]
            doc = nlp.make_doc(f"{before}{person}{middle}{place}")
            examples.append(Example.from_dict(doc, {"entities": entities}))
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(12):
        nlp.update(examples, sgd=optimizer)
    folder = tmp_path_factory.mktemp("trained") / "model"
    nlp.to_disk(folder)
    return ScrubSettings(presidio=PresidioSettings(model=str(folder)))


# What holds of any model, Presidio or not: these run everywhere.


def fickle(text):
    """Find what depends on the whole text, overlaps itself, and is nonsense: the worst that a model may do."""
    seed = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    spans = [(seed[i] % (len(text) + 1), seed[i + 1] % (len(text) + 1), seed[i + 2]) for i in range(0, 9, 3)]
    return [Finding(min(a, b), max(a, b), "name" if kind % 2 else "address") for a, b, kind in spans]


@given(ANY_TEXT | MIXED | st.text(st.characters(categories=["Cs", "Ll"]), max_size=20), st.sampled_from([(), ("Ann",), ("x*",)]))
@settings(max_examples=300)
def test_scrubbing_twice_is_scrubbing_once_whatever_a_model_finds(text, keep):
    scrubbed, values = scrub(text, KEY, keep=keep, recognizer=fickle)
    assert find(scrubbed, keep=keep, recognizer=fickle) == []
    assert scrub(scrubbed, KEY, keep=keep, recognizer=fickle) == (scrubbed, {})
    assert all(any(character.isalnum() for character in value) for value in values.values())


@given(ANY_TEXT | MIXED)
@settings(max_examples=300)
def test_patterns_win_and_findings_never_overlap(text):
    by_pattern = find(text)
    found = find(text, recognizer=fickle)
    assert [finding for finding in found if finding.kind not in ("name", "address")] == by_pattern
    assert all(one.end <= other.start for one, other in zip(found, found[1:], strict=False))
    covered = {place for one in fickle(text) for place in range(one.start, one.end)}
    covered |= {place for one in by_pattern for place in range(one.start, one.end)}
    assert {place for one in found for place in range(one.start, one.end)} <= covered
    held = {place for match in PLACEHOLDER.finditer(text) for place in range(*match.span())}
    left = covered - held - {place for one in found for place in range(one.start, one.end)}
    assert not any(text[place].isalnum() for place in left)


@given(st.lists(ANY_TEXT | MIXED, max_size=5))
@settings(max_examples=100)
def test_many_texts_at_once_are_scrubbed_as_one_by_one(texts):
    together, values = scrub_all(texts, KEY, recognizer=fickle)
    assert together == [scrub(text, KEY, recognizer=fickle)[0] for text in texts]
    assert values == {number: found for number, text in enumerate(texts) if (found := scrub(text, KEY, recognizer=fickle)[1])}


def test_off_is_the_default_and_older_settings_mean_off():
    assert ScrubSettings().presidio is None
    assert ScrubSettings().recognizer() is None
    older = {name: value for name, value in ScrubSettings().model_dump().items() if name != "presidio"}
    assert ScrubSettings.model_validate(older) == ScrubSettings()
    turn = {"role": "user", "content": "Ann Smith of Berlin"}
    assert scrub_messages([turn], PromptSettings(scrub=ScrubSettings()), KEY) == [(turn, {})]


def test_off_imports_nothing():
    code = """
import sys
from luthier.text.prepare import PromptSettings, ScrubSettings, prepare
done, values = prepare([{"role": "user", "content": "Ann, ann@shop.example"}], PromptSettings(scrub=ScrubSettings()), "k")
assert len(values) == 1
print([name for name in ("presidio_analyzer", "spacy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pipeline_is_told_from_another_of_its_name(tmp_path):
    assert presidio.pipeline_version("numpy") == version("numpy")  # it need not be loaded to be asked
    (tmp_path / "ner").mkdir()
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "ner" / "model").write_bytes(b"one")
    one = presidio.pipeline_version(str(tmp_path))
    assert presidio.pipeline_version(str(tmp_path)) == one
    (tmp_path / "ner" / "model").write_bytes(b"two")
    assert presidio.pipeline_version(str(tmp_path)) != one


def test_without_presidio_the_user_reads_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    presidio._load.cache_clear()
    wanted = PromptSettings(scrub=ScrubSettings(presidio=PresidioSettings()))
    with pytest.raises(UserError, match=r'pip install "luthier\[presidio\]"'):
        prepare([{"role": "user", "content": "hello"}], wanted, KEY)


@pytest.mark.parametrize("wrong", [{"entities": {}}, {"entities": {"PERSON": "nmae"}}, {"min_score": 2}, {"modle": "x"}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PresidioSettings(**wrong)


# What Presidio and spaCy do.


def test_names_and_places_become_placeholders_and_come_back(rules):
    text = "I am Ann Smith from Berlin."
    scrubbed, values = scrub_text(text, rules, KEY)
    assert scrubbed == f"I am {ANN} from {placeholder('address', 'Berlin', KEY)}."
    assert restore(scrubbed, values) == text
    assert scrub_text(text, rules, "other")[0] != scrubbed


@given(st.sampled_from(PEOPLE), st.sampled_from([str.upper, str.lower, str.title, str]), st.sampled_from(["", "Hi ", "(", "\n"]))
@settings(max_examples=60)
def test_the_same_person_has_the_same_placeholder(rules, name, case, before):
    assert scrub_text(f"{before}{case(name)}, hello", rules, KEY)[0] == f"{before}{placeholder('name', name, KEY)}, hello"


def test_spaces_and_full_stops_make_no_other_person_but_vowel_signs_do(rules):
    assert scrub_text("Ann  Smith", rules, KEY)[0] == scrub_text("Ann Smith", rules, KEY)[0] == ANN
    assert scrub_text("A. B. Smith", rules, KEY)[0] == scrub_text("A B Smith", rules, KEY)[0]
    assert placeholder("name", "मीना", KEY) != placeholder("name", "माना", KEY)


def test_a_pattern_wins_and_the_rest_of_the_name_goes_too(rules):
    scrubbed, values = scrub_text("Ann ann@shop.example wrote", rules, KEY)
    assert scrubbed == f"{placeholder('name', 'Ann', KEY)} {MAIL} wrote"
    assert list(values.values()) == ["Ann", "ann@shop.example"]


def test_what_is_to_be_kept_is_kept(rules):
    kept = rules.model_copy(update={"keep": ("Ann Smith", "Berlin")})
    assert scrub_text("Ann Smith, Bo Li, Berlin", kept, KEY)[0] == f"Ann Smith, {placeholder('name', 'Bo Li', KEY)}, Berlin"
    # a pattern that matches nothing, everywhere, keeps nothing and cuts no name in two
    assert scrub_text("Ann Smith", rules.model_copy(update={"keep": ("x*",)}), KEY)[0] == ANN


def test_prompts_and_answers_lose_the_same_person_alike_but_never_the_extraction_fields(rules):
    settings_ = PromptSettings(scrub=rules.model_copy(update={"extraction_fields": ("customer",)}))
    answer = json.dumps({"customer": "Ann Smith", "notes": ["from Ann Smith", {"to": "ann smith", "customer": "Bo Li"}], "n": 1})
    calls = json.dumps(
        [{"function": {"name": "send", "arguments": json.dumps({"a": "Mallory", "b": "x", "to": "Eve", "customer": "Bo Li"})}}]
    )
    turns = [
        {"role": "user", "content": "It is Ann Smith"},
        {"role": "assistant", "content": answer},
        {"role": "assistant", "content": "Thanks, Ann Smith", "tool_calls": calls},
    ]
    prepared, values = prepare(turns, settings_, KEY)
    assert prepared[0]["content"] == f"It is {ANN}"
    assert json.loads(prepared[1]["content"]) == {
        "customer": "Ann Smith",
        "notes": [f"from {ANN}", {"to": ANN, "customer": "Bo Li"}],
        "n": 1,
    }
    assert prepared[2]["content"] == f"Thanks, {ANN}"
    # the pipeline would take all from Mallory to Eve for one name: read as a whole, the arguments would be no JSON any more
    (call,) = json.loads(prepared[2]["tool_calls"])
    assert json.loads(call["function"]["arguments"]) == {"a": "Mallory", "b": "x", "to": "Eve", "customer": "Bo Li"}
    assert values == {ANN: "Ann Smith"}
    assert prepare(prepared, settings_, KEY) == (prepared, {})


@given(st.dictionaries(st.text(max_size=3), MIXED, max_size=4), st.booleans())
@settings(max_examples=60)
def test_json_stays_json_of_the_same_shape(rules, value, nested):
    def done(text):
        return scrub_text(text, rules, KEY)[0]

    answer = json.dumps({"arguments": json.dumps(value)} if nested else value)
    scrubbed = json.loads(done(answer))
    assert list(json.loads(scrubbed["arguments"]) if nested else scrubbed) == list(value)
    assert done(done(answer)) == done(answer)


def test_texts_without_anything_for_a_pattern_are_read_too(rules):
    recognizer = rules.recognizer()
    texts = ["Bo Li", "", "nobody", "Ann Smith, ann@shop.example"]
    together, values = scrub_all(texts, KEY, rules.kinds, rules.keep, recognizer)
    assert together == [placeholder("name", "Bo Li", KEY), "", "nobody", f"{ANN}, {MAIL}"]
    assert sorted(values) == [0, 3]


@given(st.text(max_size=80) | MIXED | st.text(st.characters(categories=["Cs", "Mn", "Cf", "So", "Lo"]), max_size=30))
@example("\ud800 Ann Smith \udfff")
@example("Ann Smith\x00\u200b👩‍👧 Berlin")
@settings(max_examples=150)
def test_a_trained_pipeline_takes_any_text_and_twice_is_once(trained, text):
    scrubbed, values = scrub_text(text, trained, KEY)
    assert scrub_text(scrubbed, trained, KEY) == (scrubbed, {})
    assert scrub_text(text, trained, KEY) == (scrubbed, values)


def test_the_trained_pipeline_finds_somebody(trained):
    text, values = scrub_text("I am Carla Gomez from Berlin", trained, KEY)
    assert placeholder("name", "Carla Gomez", KEY) in text, (text, values)


def test_rows_and_threads_do_not_matter(trained):
    texts = [f"I am {person} from Berlin, word{number}" for number, person in enumerate(PEOPLE * 10)]
    alone = [scrub_text(text, trained, KEY) for text in texts]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns in the midst of a text
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda text: scrub_text(text, trained, KEY), texts)) == alone
    finally:
        sys.setswitchinterval(usual)
    backwards, _ = scrub_all(texts[::-1], KEY, recognizer=trained.recognizer())
    assert backwards[::-1] == [text for text, _ in alone]


@pytest.mark.parametrize("before", [0, LONGEST - 4, 1_000_100])
def test_a_name_is_found_anywhere_in_a_long_text(rules, before):
    text = ("word " * (before // 5 + 1))[:before] + " Ann Smith" + " word" * 12_000
    assert scrub_text(text, rules, KEY)[0] == text.replace("Ann Smith", ANN)


def test_a_name_that_a_pieces_end_cuts_is_taken_out_whole(rules):
    before = "word " * (LONGEST // 5 - 2) + "or "
    text = f"{before} Li Wei Chen" + " word" * 1_000
    assert text[:LONGEST].endswith(" Li Wei")
    assert scrub_text(text, rules, KEY)[0] == text.replace("Li Wei Chen", placeholder("name", "Li Wei Chen", KEY))


def test_new_words_do_not_fill_the_memory(rules, monkeypatch):
    import spacy

    loaded = []
    load = spacy.load
    monkeypatch.setattr(spacy, "load", lambda name: loaded.append(load(name)) or loaded[-1])
    presidio._load.cache_clear()
    scrub_text("Ann Smith", rules, KEY)
    known = len(loaded[0].vocab.strings)
    for number in range(300):
        scrub_text(f"neverseen{number}", rules, KEY)
    assert len(loaded) == 1
    assert len(loaded[0].vocab.strings) == known


def test_the_users_entities_labels_and_scores_are_obeyed(rules):
    def scrubbed(text, **changes):
        changed = rules.presidio.model_copy(update=changes)
        return scrub_text(text, rules.model_copy(update={"presidio": changed}), KEY)[0]

    assert scrubbed("at 12 Main Street", entities={"FAC": "address"}) == f"at {placeholder('address', '12 Main Street', KEY)}"
    assert scrubbed("Ann Smith at 12 Main Street") == f"{ANN} at 12 Main Street"
    assert scrubbed("Ann Smith", entities={"GPE": "address"}) == "Ann Smith"
    assert scrubbed("Ann Smith", min_score=0.9) == "Ann Smith"
    passport = "my passport is 912803456"
    assert scrubbed(passport, entities={"US_PASSPORT": "national_id"}, min_score=0.05) != passport
    assert scrubbed(passport, entities={"US_PASSPORT": "national_id"}, min_score=1) == passport


def test_settings_travel_as_json(rules):
    prompt = PromptSettings(scrub=rules)
    again = PromptSettings.model_validate_json(prompt.model_dump_json())
    assert again == prompt
    turn = {"role": "user", "content": "Ann Smith"}
    assert prepare([turn], again, KEY) == ([{"role": "user", "content": ANN}], {ANN: "Ann Smith"})


def test_nothing_reaches_for_the_network(rules, monkeypatch):
    import tldextract

    # Presidio's own search for e-mail addresses downloads a list through this, once: here it remembers no earlier download
    monkeypatch.setattr("tldextract.tldextract.TLD_EXTRACTOR", tldextract.TLDExtract(cache_dir=None))
    called = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **_: called.append(arguments))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: called.append(address))
    with pytest.raises(UserError) as error:
        load_recognizer(rules.presidio.model_copy(update={"entities": {"NOTHING": "name"}}))
    known = str(error.value).split("It finds ")[1].removesuffix(".").split(", ")
    assert {"PERSON", "LOCATION", "US_SSN", "URL"} <= set(known)
    everything = load_recognizer(rules.presidio.model_copy(update={"entities": dict.fromkeys(known, "name"), "min_score": 0}))
    for text in (
        "mail ann@shop.co.uk or https://www.shop.co.uk/x, Ann Smith",
        f"{string.printable} 4111 1111 1111 1111 912803456",
    ):
        assert everything(text)
    with pytest.raises(UserError):
        load_recognizer(PresidioSettings(model="en_core_web_absent"))
    assert called == []


def test_errors_say_what_to_write(rules, tmp_path):
    def error(**changes):
        with pytest.raises(UserError) as raised:
            load_recognizer(rules.presidio.model_copy(update=changes))
        return str(raised.value)

    assert "python -m spacy download en_core_web_absent" in error(model="en_core_web_absent")
    assert "pip install" in error(model="en_core_web_absent")
    assert f"cannot load {str(tmp_path)!r}" in error(model=str(tmp_path))
    assert "did you mean 'PERSON'?" in error(entities={"PERSN": "name"})
    assert "write `language: en`" in error(language="de")


@pytest.mark.parametrize("with_spans", [False, True])
def test_a_pipeline_that_cannot_find_names_is_refused(spacy, tmp_path, with_spans):
    nlp = spacy.blank("en")
    if with_spans:  # which Presidio does not read, whatever their labels
        nlp.add_pipe("span_ruler").add_patterns([{"label": label, "pattern": "Ann"} for label in ("PERSON", "GPE")])
    nlp.to_disk(tmp_path / "model")
    with pytest.raises(UserError, match=r"does not find (LOCATION|PERSON)"):
        load_recognizer(PresidioSettings(model=str(tmp_path / "model")))


def test_the_step_reads_records_in_which_no_pattern_can_find_anything(rules, tmp_path):
    import pyarrow.parquet as pq
    from tables import record, records

    from luthier.pipelines.data_processing.scrub import scrub_shard

    shards = records([record("I am Ann Smith", "Hello ann smith", "one"), record("nobody", "ok", "two")])
    scrub_shard(tmp_path, shards.files[0], PromptSettings(scrub=rules), KEY)
    found = {row["id"]: row["messages"] for row in pq.read_table(tmp_path / "records.parquet").to_pylist()}
    assert [turn["content"] for turn in found["one"]] == [f"I am {ANN}", f"Hello {ANN}"]
    assert [turn["content"] for turn in found["two"]] == ["nobody", "ok"]
    changed = pq.read_table(tmp_path / "changed.parquet").to_pylist()
    assert [(row["id"], row["what"], row["before"]) for row in changed] == [("one", "name", None)] * 2
