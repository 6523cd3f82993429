"""Tokenizers of both kinds that language models have: of bytes (GPT-2), and of words that hold their space (SentencePiece)."""

from sharp import folders_in
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from luthier.configuration import ModelParameters
from luthier.models import load_tokenizer, resolve_base

WORDS = ["▁the", "▁", "▁End", "the", "▁a", "é", "a", "b", "E", "n", "d", "END", ".", "\n"]


def byte_level(folder):
    """Return the tiny model's: a token for each byte."""
    return load_tokenizer(resolve_base(ModelParameters(base="tiny:llama"), folders_in(folder)))


def with_spaces():
    """Return one of words and, where a word is unknown, bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.BPE({token: number for number, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
