"""More to train on from what there is: the same requests with slips, in other words, two in one message. Training split only.

A copy must deserve its parent's answer. So only what the user wrote changes, values that the answer takes from the message
must survive, and two messages are joined only where the whole answer is the same. Nor may a copy become a message that is
held out. What a copy becomes depends on the seed, its parent and its number, never on the order of rows.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from luthier.configuration import Parameters
from luthier.errors import UserError
from luthier.records import user_text
from luthier.text.extracted import extracted_texts
from luthier.text.noise import Noise, add_noise
from luthier.text.prepare import compact_json, strict_json

Rate = Annotated[float, Field(ge=0, le=1)]
Record = dict[str, Any]
Paraphrases = Mapping[str, Sequence[str]]
# A short message often comes out as it went in, or loses a value: that many draws before a copy is given up.
_ATTEMPTS = 8


class Augment(Parameters):
    """How the training split grows. Off unless `copies` or `rebalance` says otherwise."""

    copies: float = Field(default=0.0, ge=0, le=100)
    """Expected number of altered copies of each training record: 0.5 makes one of every second record."""
    noise: Noise | None = Noise()
    """Slips of the keyboard, casing, missing punctuation; null for none."""
    paraphrases: str | None = None
    """File of phrases and what may stand in their place: YAML `phrase: [alternatives]`, or JSONL of `{phrase, alternatives}`."""
    paraphrase: Rate = 0.5
    """Share of the phrases found in a copy that are replaced."""
    mix: Rate = 0.0
    """Share of copies that are joined with another short message of the same label and answer."""
    mix_characters: int = Field(default=200, ge=1)
    """Longest message that is joined."""
    rebalance: Literal["none", "weight"] = "none"
    """`weight` takes rare labels more often and frequent ones less: the mean number of records a label, divided by its own."""
    max_weight: float = Field(default=5.0, ge=1)
    """`weight` changes a record's weight by this factor at most, up or down."""
    protect: list[str] | None = None
    """Fields of a JSON answer (`order`, `customer.name`) whose text, where the message holds it, must survive; null: all."""

    @property
    def is_off(self) -> bool:
        """Whether the records stay as they are."""
        return not self.copies and self.rebalance == "none"


def load_paraphrases(path: str) -> dict[str, list[str]]:
    """Read phrases and their alternatives from YAML (`.yml`, `.yaml`) or JSONL.

    Raises:
        UserError: if the file is missing or an entry is not a phrase with a list of alternatives.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"augment.paraphrases: {path} cannot be read: {error}") from error
    found: dict[str, list[str]] = {}
    for where, phrase, alternatives in _entries(path, text):
        if not isinstance(phrase, str) or not phrase.strip():
            raise UserError(f"augment.paraphrases: {where}: the phrase must be text, not {phrase!r}")
        good = isinstance(alternatives, list) and alternatives and all(isinstance(a, str) and a.strip() for a in alternatives)
        if not good:
            raise UserError(f"augment.paraphrases: {where}: {phrase!r} needs a list of texts, not {alternatives!r}")
        found.setdefault(phrase.strip().casefold(), []).extend(alternative.strip() for alternative in alternatives)
    return found


def _entries(path: str, text: str) -> Iterator[tuple[str, Any, Any]]:
    if Path(path).suffix in (".yml", ".yaml"):
        try:
            value = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise UserError(f"augment.paraphrases: {path} is not YAML: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f"augment.paraphrases: {path} must map phrases to lists: `phrase: [one, another]`")
        yield from ((path, phrase, alternatives) for phrase, alternatives in value.items())
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            entry = strict_json(line)
        except ValueError as error:
            raise UserError(f"augment.paraphrases: {where} is not JSON: {error}") from error
        if not isinstance(entry, dict) or set(entry) != {"phrase", "alternatives"}:
            raise UserError(f'augment.paraphrases: {where} must be {{"phrase": ..., "alternatives": [...]}}, not {line[:80]}')
        yield where, entry["phrase"], entry["alternatives"]


def _draw(seed_key: str) -> float:
    """Return a number from 0 to 1, 1 excluded, that the key decides."""
    return int.from_bytes(hashlib.sha256(seed_key.encode("utf-8", "surrogatepass")).digest()[:6]) / 2**48


@lru_cache(maxsize=8)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    # of two phrases that begin alike the longer one is meant
    either = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)


def paraphrase(text: str, paraphrases: Paraphrases, rate: float, seed_key: str) -> str:
    """Replace phrases, found as whole words in any case, by one of their alternatives; a capital in front stays one."""
    if not paraphrases:
        return text

    def replace(match: re.Match[str]) -> str:
        alternatives = paraphrases.get(match[0].casefold(), ())
        place = f"{seed_key}:{match.start()}"
        if not alternatives or _draw(f"{place}:whether") >= rate:
            return match[0]
        chosen = alternatives[int(_draw(f"{place}:which") * len(alternatives))]
        return chosen[0].upper() + chosen[1:] if match[0][0].isupper() else chosen

    return _pattern(tuple(paraphrases)).sub(replace, text)


def _can_be_joined(record: Record, longest: int) -> bool:
    roles = [message["role"] for message in record["messages"] if message["role"] != "system"]
    one_turn = roles == ["user", "assistant"] and not record["rejected"]
    return one_turn and record["label"] is not None and len(user_text(record["messages"])) <= longest


def _same_but_for_the_user(record: Record) -> str:
    """Return what two records must share to be joined: the label, and all messages but the user's."""
    return json.dumps([record["label"], [message for message in record["messages"] if message["role"] != "user"]], sort_keys=True)


def _replace_user_turns(record: Record, change: Callable[[str, int], str]) -> Record:
    """Change each of the user's turns, and the same turns where the rejected conversation repeats them."""
    changed: dict[str, str] = {}
    for turn, message in enumerate(record["messages"]):
        if message["role"] == "user":
            changed.setdefault(message["content"], change(message["content"], turn))

    def replaced(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**m, "content": changed.get(m["content"], m["content"])} if m["role"] == "user" else dict(m) for m in messages]

    rejected = replaced(record["rejected"]) if record["rejected"] else record["rejected"]
    return {**record, "messages": replaced(record["messages"]), "rejected": rejected}


def _altered(
    record: Record, partners: Sequence[Record], parameters: Augment, paraphrases: Paraphrases, draw: str
) -> tuple[Record, dict[str, Any]]:
    """Return the record with its user's turns altered, and what was done."""
    by: list[str] = []
    done: dict[str, Any] = {"by": by}
    altered = record
    if len(partners) > 1 and _draw(f"{draw}:mix") < parameters.mix:
        drawn = int(_draw(f"{draw}:partner") * len(partners))
        partner = partners[drawn] if partners[drawn]["key"] != record["key"] else partners[drawn - 1]
        altered = _replace_user_turns(altered, lambda text, _: f"{text}\n{user_text(partner['messages'])}")
        by.append("mix")
        done["with"] = partner["key"]
    worded = _replace_user_turns(
        altered, lambda text, n: paraphrase(text, paraphrases, parameters.paraphrase, f"{draw}:{n}:words")
    )
    if worded["messages"] != altered["messages"]:
        by.append("paraphrases")
    noise = parameters.noise
    if noise is None:
        return worded, done
    noisy = _replace_user_turns(worded, lambda text, n: add_noise(text, noise, f"{draw}:{n}:noise"))
    if noisy["messages"] != worded["messages"]:
        by.append("noise")
    return noisy, done


def _copies(
    record: Record,
    partners: Sequence[Record],
    parameters: Augment,
    seed: int,
    paraphrases: Paraphrases,
    held_out: Callable[[str], bool],
) -> Iterator[Record]:
    whole, rest = divmod(parameters.copies, 1)
    wanted = int(whole) + (_draw(f"{seed}:{record['key']}:copies") < rest)
    values = extracted_texts(record["messages"], parameters.protect)
    seen = {user_text(record["messages"])}
    for number in range(1, wanted + 1):
        for attempt in range(_ATTEMPTS):
            altered, done = _altered(record, partners, parameters, paraphrases, f"{seed}:{record['key']}:{number}:{attempt}")
            text = user_text(altered["messages"])
            if text in seen or not all(value in text for value in values) or held_out(text):
                continue
            seen.add(text)
            key = hashlib.sha256(f"{record['key']}~{number}".encode()).hexdigest()[:32]
            provenance = compact_json({"from": record["key"], **done, "seed": seed})
            yield {**altered, "key": key, "id": f"{record['id']}~{number}", "provenance": provenance}
            break


def _weight(label: str | None, parameters: Augment, label_counts: Mapping[str, int]) -> float:
    if parameters.rebalance == "none" or label is None:
        return 1.0
    mean = sum(label_counts.values()) / len(label_counts)
    return max(1 / parameters.max_weight, min(parameters.max_weight, mean / label_counts[label]))


def augment(
    records: Sequence[Record],
    parameters: Augment,
    seed: int,
    paraphrases: Paraphrases,
    label_counts: Mapping[str, int],
    content_hash: Callable[[Sequence[Mapping[str, Any]]], str],
    held_out: Callable[[str], bool],
) -> list[Record]:
    """Add altered copies of the training records, and weigh them by label.

    Records of other splits come back as they are. A copy that cannot be told from its parent, in which a value of the answer
    is lost, or that says what is held out, is drawn again and then given up: there may be fewer copies than asked for. A
    partner to be joined with is sought among the records given, so `mix`, and nothing else, depends on how the data is cut
    into shards.

    Args:
        records: records of one shard, with splits.
        parameters: what to do.
        seed: of all draws.
        paraphrases: alternatives by case-folded phrase, from `load_paraphrases`.
        label_counts: training records by label, of the whole data set; every label that occurs, if `rebalance` is on.
        content_hash: gives the hash of messages that a copy's `content_hash` is set to.
        held_out: tells whether what a user says must not be trained on.

    Returns:
        the records and the copies, sorted by key. A copy's key is a hash of its parent's key and its number, its id
        `parent~1`, its cluster and split its parent's, its provenance `{"from", "by", "with" (if joined), "seed"}`.
    """
    training = sorted((record for record in records if record["split"] == "train"), key=lambda record: record["key"])
    groups: dict[str, list[Record]] = defaultdict(list)
    partners: dict[str, list[Record]] = {}
    for record in training:
        if parameters.mix > 0 and _can_be_joined(record, parameters.mix_characters):
            partners[record["key"]] = groups[_same_but_for_the_user(record)]
            partners[record["key"]].append(record)
    result = [record for record in records if record["split"] != "train"]
    for record in training:
        copies = [
            {**copy, "content_hash": content_hash(copy["messages"])}
            for copy in _copies(record, partners.get(record["key"], []), parameters, seed, paraphrases, held_out)
        ]
        factor = _weight(record["label"], parameters, label_counts)
        result += [row if factor == 1 else {**row, "weight": row["weight"] * factor} for row in (record, *copies)]
    return sorted(result, key=lambda record: record["key"])
