"""What is read from columns at once is what is read from a conversation alone."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.pipelines.data_processing.deduplicate import _folded, _folded_user_text
from luthier.pipelines.data_processing.messages import user_texts
from luthier.pipelines.data_processing.shingles import fold
from luthier.records import RECORD, user_text

TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    }
)
CONVERSATIONS = st.lists(st.lists(TURNS, max_size=4), max_size=6)


@given(CONVERSATIONS)
@settings(deadline=None, max_examples=200)
def test_the_texts_of_users(conversations):
    table = pa.Table.from_pylist([{"messages": said} for said in conversations], RECORD)
    assert user_texts(table) == [user_text(said) for said in conversations]
    assert user_texts(table.slice(1)) == [user_text(said) for said in conversations[1:]]
    for said, text in zip(conversations, user_texts(table, otherwise="system"), strict=True):
        users = [turn["content"] for turn in said if turn["role"] == "user"]
        others = [turn["content"] for turn in said if turn["role"] != "system"]
        assert text == "\n".join(users if any(turn["role"] == "user" for turn in said) else others)
        assert _folded_user_text(_folded(said)) == fold(user_text(said))
