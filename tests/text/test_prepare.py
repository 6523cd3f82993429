"""A row becomes the same clean conversation every time, or a reason in the user's words; never a crash."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.text.prepare import (
    PromptSettings,
    RowError,
    ScrubSettings,
    compact_json,
    conversation,
    prepare,
    prompt_messages,
    render,
)

MESSY = st.text(
    st.one_of(
        st.sampled_from("\r\n\t  \u00a0\u2028\u0085\u200b\u200c\u200d\u2060\ufeff\x00\x1f\x7f\u0301\u0308\u1100\u1161\u0344é🏽e"),
        st.characters(codec="utf-8"),
    ),
    max_size=40,
)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.none())
)
SETTINGS = PromptSettings(system="Be brief.", user="{{ body }}", assistant="{{ answer | json }}")


@given(VALUES)
@settings(deadline=None, max_examples=100)
def test_a_template_prints_text_alone(value):
    row = {"body": value}
    if isinstance(value, str):
        assert render("{{ body }}", row) == value
    else:
        with pytest.raises(RowError, match=r"^body must be text, not "):
            render("{{ body }}", row)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@settings(deadline=None, max_examples=100)
def test_json_of_a_template_reads_back_and_keeps_the_order_of_keys(value):
    text = render("{{ answer | json }}", {"answer": value})
    assert text == compact_json(value)
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert list(json.loads(text)) == list(value)
    assert "\n" not in text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_of_a_template_is_never_something_that_is_not_json(number):
    with pytest.raises(RowError, match="JSON"):
        render("{{ answer | json }}", {"answer": {"amount": number}})


@pytest.mark.parametrize("row", [{"boddy": "x", "subject": None}, {"Body": "x"}])
def test_a_missing_column_is_told_with_the_one_that_was_meant(row):
    for template in ("{{ body }}", "{{ body | json }}", "{{ body | upper }}"):
        with pytest.raises(RowError, match=rf"^has no column 'body' \(did you mean '{next(iter(row))}'\?\)$"):
            render(template, row)


def test_the_column_that_is_named_is_the_one_to_blame():
    template = "{% if subject %}{{ subject }}\n{% endif %}{{ body }}"
    for subject, body, blamed in ((None, None, "body"), ("x", None, "body"), (7, "x", "subject"), (True, "x", "subject")):
        with pytest.raises(RowError, match=f"^{blamed} must be text"):
            render(template, {"other": body, "id": subject, "subject": subject, "body": body})


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}",
        "{{ (n / m) | string }}",
        "{{ body.missing.deeper }}",
        "{{ body[9] }}",
        "{{ items[5] }}",
        "{{ ().__class__.__bases__ }}",
        "{{ items.append(1) }}",
        "{% for %}",
        "{{ body | nosuchfilter }}",
        "{{ body + 1 }}",
        "{{ '%d' | format(body) }}",
        "{{ body.encode('ascii').decode('utf-16') }}",
        "{{ items | join('x') | int(base=99) }}",
        "{% for x in items recursive %}{{ loop(items) }}{% endfor %}",
        "{% include 'other' %}",
    ],
)
def test_a_template_that_fails_is_a_reason_not_a_crash(template):
    with pytest.raises(RowError):
        render(template, {"body": "äb", "n": 1, "m": 0, "items": [1, 2]})


@given(st.dictionaries(st.text(), VALUES, max_size=5))
@settings(deadline=None, max_examples=100)
def test_any_columns_may_stand_beside_those_that_the_template_names(others):
    row = others | {"self": "x", "context": "y", "args": "z", "body": "text", "loop": 1}
    assert render("{{ body }}", row) == "text"


@pytest.mark.parametrize(
    "body", ["", " \n\t ", "\u200b\ufeff", "\u2060\ufeff\u200d \u00a0", "\u200c\u200d", "\u00ad", "\ufe0f \u200d"]
)
def test_a_message_in_which_nothing_can_be_seen_is_empty(body):
    with pytest.raises(RowError, match="the user's message is empty"):
        prompt_messages({"body": body}, SETTINGS)
    with pytest.raises(RowError, match="the answer is empty"):
        conversation({"body": "x", "answer": body}, SETTINGS.model_copy(update={"assistant": "{{ answer }}"}))


@pytest.mark.parametrize("answer", [None, ""])
def test_an_empty_answer_is_refused(answer):
    template = "{{ answer | json }}" if answer is None else "{{ answer }}"
    with pytest.raises(RowError, match="the answer is empty"):
        conversation({"body": "x", "answer": answer}, SETTINGS.model_copy(update={"assistant": template}))


@given(MESSY, st.none() | st.text(min_size=1))
@settings(deadline=None, max_examples=100)
def test_the_prompt_is_the_conversation_without_its_answer(body, system):
    prompt = SETTINGS.model_copy(update={"system": system})
    row = {"body": f"x{body}", "answer": {"intent": "praise"}}
    messages = conversation(row, prompt)
    assert messages[:-1] == prompt_messages(row, prompt)
    assert messages[-1] == {"role": "assistant", "content": '{"intent":"praise"}'}
    assert [m["role"] for m in messages] == ["system"] * bool(system) + ["user", "assistant"]
    # what serving sees, JSON there and back, is what training saw
    assert prompt_messages(json.loads(json.dumps(row)), PromptSettings.model_validate(prompt.model_dump())) == messages[:-1]


def test_deep_json_is_a_reason_not_a_crash():
    deep: list = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(RowError):
        render("{{ answer | json }}", {"answer": deep})
    while deep:
        deep = deep.pop()


def test_a_clients_messages_are_prepared_as_a_row_is():
    prompt = SETTINGS.model_copy(update={"scrub": ScrubSettings()})
    body = "Itâ€™s  me, <p>ann@shop.example</p>"
    trained = prompt_messages({"body": body}, prompt, "key")
    served, values = prepare([{"role": "system", "content": "Be brief."}, {"role": "user", "content": body}], prompt, "key")
    assert served == trained
    assert "It’s me" in served[1]["content"]
    assert list(values.values()) == ["ann@shop.example"]
    again, nothing = prepare(served, prompt, "key")
    assert (again, nothing) == (served, {})


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ValueError, match="is not a regular expression"):
        ScrubSettings(keep=("(",))
