"""Load a package and ask it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.models import Base, load_model, load_tokenizer
from luthier.packages.check import check_package
from luthier.packages.contents import FACTS, PROMPT, first_line, some
from luthier.text.prepare import Message, PromptSettings, prepare

if TYPE_CHECKING:
    import pandas as pd


def facts_of(folder: Path) -> dict[str, Any]:
    """Return what a checked package says about itself: `format`, `kind`, `base`, `dtype`, `tuned`, `chat_template`."""
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return facts


def prompt_settings_of(folder: Path) -> PromptSettings:
    """Return how a checked package's prompts are made."""
    return PromptSettings.model_validate_json((folder / PROMPT).read_text(encoding="utf-8"))


def load_package(
    folder: Path, dtype: Any, expected: str | None = None, key: Path | None = None, base: Base | None = None
) -> tuple[Any, Any, PromptSettings]:
    """Check a package and load it: the model (in evaluation mode, on the CPU), its tokenizer, its prompt settings.

    Args:
        folder: the package.
        dtype: torch dtype to compute in.
        expected: see `check_package`.
        key: see `check_package`.
        base: the base model, which an adapter package needs.

    Raises:
        UserError: if the package is refused, or is an adapter of another base than the one given.
    """
    check_package(folder, expected, key)
    facts = facts_of(folder)
    here = Base(facts["base"]["name"], folder, facts["base"]["identity"])
    model = load_model(here, dtype) if facts["kind"] == "merged" else _load_adapter(folder, facts["base"], base, dtype)
    return model.eval(), load_tokenizer(here), prompt_settings_of(folder)


def _load_adapter(folder: Path, wanted: Mapping[str, str], base: Base | None, dtype: Any) -> Any:
    if base is None or base.identity != wanted["identity"]:
        given = "none was given" if base is None else f"{base.identity} was given"
        raise UserError(f"{folder} is an adapter for {wanted['identity']}; {given}. Package merged weights to load it alone.")
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open
    from transformers import GenerationConfig

    try:
        adapted = PeftModel.from_pretrained(load_model(base, torch.float32), folder)
    except RuntimeError as error:
        raise UserError(f"{folder} is refused; its adapter does not fit {base.identity}: {first_line(error)}") from error
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        wrong = set(file.keys()) ^ set(get_peft_model_state_dict(adapted))
    if wrong:
        raise UserError(f"{folder} is refused; its adapter does not fit {base.identity}: {some(sorted(wrong))}")
    model = adapted.merge_and_unload()
    # the parameters alone: rotary frequencies are no parameters, and rounded ones turn distant tokens the wrong way
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def greedy_tokens(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
    """Let a model continue prompts with its likeliest tokens; options go to `generate`, whose output is returned.

    How long an answer may be is the model's generation setting `max_new_tokens`, or the option. Prompts are padded on the left,
    and the padding is masked.
    """
    import torch

    from luthier.text.chat import end_tokens

    width = max(map(len, prompts))
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    seen = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    with torch.inference_mode():
        return model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(seen, device=model.device),
            do_sample=False,
            eos_token_id=end_tokens(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )


@dataclass(frozen=True)
class PackagedModel:
    """A model that answers messages as they come from a client: prepared and asked exactly as in training."""

    model: Any
    tokenizer: Any
    settings: PromptSettings

    def answer(self, messages: Sequence[Message]) -> str:
        """Return the greedy answer to a conversation; the model's own system prompt is added where the client gives none.

        Personal data are taken out as in training, so an answer can hold placeholders.
        """
        from luthier.text.chat import encode_prompt

        turns = list(messages)
        if self.settings.system and not any(message["role"] == "system" for message in turns):
            turns.insert(0, {"role": "system", "content": self.settings.system})
        prepared, _ = prepare(turns, self.settings, os.environ.get("LUTHIER_PII_KEY", ""))
        prompt = encode_prompt(self.tokenizer, prepared)
        tokens = greedy_tokens(self.model, self.tokenizer, [prompt])[0, len(prompt) :].tolist()
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def predict(self, model_input: "pd.DataFrame") -> list[str]:
        """Return the answer to each row: `messages` as OpenAI has them, or `prompt`, the text of the user's turn.

        Raises:
            UserError: if the table has neither column, or a message is no text.
        """
        if "messages" in model_input:
            conversations = [[_as_message(turn) for turn in messages] for messages in model_input["messages"]]
        elif "prompt" in model_input:
            conversations = [[{"role": "user", "content": str(text)}] for text in model_input["prompt"]]
        else:
            raise UserError(f"give a column `messages` or `prompt`, not {', '.join(map(str, model_input.columns))}")
        return [self.answer(messages) for messages in conversations]


def _as_message(turn: Mapping[str, Any]) -> Message:
    if not isinstance(turn.get("content"), str | None):
        raise UserError(f"content must be text, not {type(turn['content']).__name__}: this model reads nothing else")
    message: Any = {name: value for name, value in turn.items() if value is not None} | {"content": turn.get("content") or ""}
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = json.dumps(message["tool_calls"], ensure_ascii=False)
    return message
