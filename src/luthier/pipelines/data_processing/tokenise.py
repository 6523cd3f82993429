"""Turn conversations into tokens with a mask over what is to be learnt; count what does not fit."""

from typing import Any

import pyarrow as pa

from luthier.errors import UserError
from luthier.pipelines.data_processing.parameters import Tokenise
from luthier.records import EXAMPLE
from luthier.text.chat import check_template, encode


def tokenise(records: pa.Table, tokenizer: Any, parameters: Tokenise) -> tuple[pa.Table, list[str]]:
    """Encode each conversation by the chat template.

    Returns:
        a table of schema `records.EXAMPLE`, and the ids of conversations longer than `max_tokens`, which are dropped.

    Raises:
        UserError: if the tokenizer has no chat template, or an example holds no supervised token (the mask would be
            empty and the model would learn nothing from it), or none is left to train or to test on.
    """
    check_template(tokenizer)
    rows: list[dict[str, Any]] = []
    too_long: list[str] = []
    for record in records.select(["id", "split", "messages"]).to_pylist():
        encoded = encode(tokenizer, record["messages"])
        if not any(encoded.supervised):
            raise UserError(f"{record['id']}: the chat template leaves no token of the answer to learn.")
        if len(encoded.input_ids) > parameters.max_tokens:
            too_long.append(record["id"])
            continue
        rows.append(
            {
                "id": record["id"],
                "split": record["split"],
                "input_ids": encoded.input_ids,
                "supervised": encoded.supervised,
            }
        )
    for name in {"train", "test"} - {row["split"] for row in rows}:
        raise UserError(f"No {name} example has at most {parameters.max_tokens} tokens (data_processing.tokenise.max_tokens).")
    return pa.Table.from_pylist(rows, schema=EXAMPLE), too_long
