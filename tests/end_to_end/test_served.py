"""What is served is what was evaluated: the same prompts, the same answers, the same probabilities."""

import json

import pandas as pd
import pytest
from commands import kedro_in, output

from tests.serving.processes import serving
from tests.serving.versions import Home

TOLERANCE = 0.02
"""In nats a token: that of the package's parity check (deployment.parity.tolerance)."""


def newest(project, name):
    (*_, path) = sorted((project / "data").glob(f"*/{name}/*/{name}"))
    return pd.read_parquet(path)


def agreement(project, server, most=None, tie=TOLERANCE):
    """Ask what the evaluation asked, or the first `most` of it; return how many answers there are, and how many differ at a near tie.

    A plain answer, a streamed one and the evaluation's are compared, and the mean log-probability of the answer's tokens.
    """
    questions, answers = newest(project, "questions.parquet"), newest(project, "tuned_answers.parquet")
    asked = questions[questions["set"] == "test"].merge(answers, on=["set", "kind", "id"])
    asked = asked.head(most or len(asked))
    assert len(asked) >= 12
    ties = compared = 0
    for row in asked.itertuples():
        # the client knows nothing of the model's own system prompt
        turns = [turn for turn in json.loads(row.messages) if turn["role"] != "system"]
        what = {"model": "luthier", "messages": turns, "temperature": 0, "logprobs": True, "top_logprobs": 2}
        plain = server.client.chat.completions.create(**what).choices[0]
        stream = server.client.chat.completions.create(**what, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        tokens = plain.logprobs.content
        gaps = [token.top_logprobs[0].logprob - token.top_logprobs[1].logprob for token in tokens]
        for text in (plain.message.content, streamed):
            if text.strip() != row.answer:
                assert min(gaps) <= tie + 1e-6, (text, row.answer)
                ties += 1
        if plain.message.content.strip() == row.answer and len(tokens) == row.answer_tokens:
            mean = sum(token.logprob for token in tokens) / len(tokens)
            assert mean == pytest.approx(row.mean_log_probability, abs=TOLERANCE)
            compared += 1
    assert compared >= len(asked) / 2
    return 2 * len(asked), ties


def test_the_tiny_model_is_served_as_it_was_evaluated(copied):
    promoted = kedro_in(copied, "promote", "--force", "--reason", "a test", "--env", "test")
    assert promoted.returncode == 0, output(promoted)
    with serving(Home(copied, within=copied)) as server:
        asked, ties = agreement(copied, server)
        assert ties <= 0.1 * asked
        assert (server.rows()["version"] == 1).all()
