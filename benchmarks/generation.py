"""Answers a second: `luthier.generation` against transformers, its `generate` in a loop and its `pipeline` in batches.

The same support messages, the same weights and precision, the same limit; each in a process of its own, one after another on
the same messages. The base model answers at length and badly. A fine-tuned one is what an evaluation asks: the newest of
`kedro run` if there is one, else one that is trained for a few steps here, in a project folder of its own.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
MESSAGES = 64  # a chunk
LOOP_MESSAGES = 6  # of a chunk: one at a time takes long
BATCH_SIZES = (16, 32, 64)  # of the pipeline: the best one counts
TRAINING_STEPS = 16
# nats between two tokens that count as equal: the spacing of bf16 numbers where logits are (16 to 32), twice
NEAR_TIE = {"bf16": 0.25, "fp32": 0.01}


class Contestant:
    """A process that answers chunks of prompts."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, prompts: list[str], batch_size: int = 1) -> tuple[float, list[str]]:
        """Return answers a second, and the answers."""
        self.process.stdin.write(json.dumps({"prompts": prompts, "batch_size": batch_size}) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        return len(prompts) / told["seconds"], told["texts"]


def newest_tuned(project: Path) -> Path | None:
    """Return the newest fine-tuned model of a project."""
    found = sorted((project / "data/06_models/tuned_model").glob("*/tuned_model"))
    return found[-1] if found else None


def train_briefly(project: Path) -> Path:
    """Fine-tune as `kedro run` does, for a few steps, in a project folder of its own."""
    (project / "src").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", project)
    shutil.copytree(ROOT / "conf", project / "conf")
    shutil.copytree(ROOT / "data/01_raw", project / "data/01_raw")
    rooms, steps = "data_processing,training", f"training.max_steps={TRAINING_STEPS}"
    command = [sys.executable, "-m", "kedro", "run", "--pipelines", rooms, "--params", steps]
    subprocess.run(command, cwd=project, check=True)
    tuned = newest_tuned(project)
    assert tuned is not None
    return tuned


def other_texts(
    folder: str, dtype: Any, prompts: list[list[int]], pairs: list[tuple[str, str]], tolerance: float
) -> tuple[int, list[tuple[str, str]]]:
    """Return how many pairs of answers part where both next tokens are equally likely, and the other pairs that differ."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)
    ties, others = 0, []
    for prompt, pair in zip(prompts, pairs, strict=True):
        if pair[0] == pair[1]:
            continue
        one, other = ([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in pair)
        at = next(at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        with torch.inference_mode():
            logs = model(torch.tensor([prompt + one[:at]])).logits[0, -1].float().log_softmax(-1)
        if abs(float(logs[one[at]] - logs[other[at]])) <= tolerance:
            ties += 1
        else:
            others.append(pair)
    return ties, others


def compete(
    what: str, folder: str, dtype: Any, precision: str, prompts: list[list[int]], texts: list[str], length: int
) -> list[dict]:
    """Let the three answer chunk after chunk, each chunk by one after the other; return the rows of one model."""
    arguments = (folder, precision, str(length))
    ours = Contestant("generation_ours.py", *arguments)
    pipeline = Contestant("generation_peer.py", "pipeline", *arguments)
    loop = Contestant("generation_peer.py", "loop", *arguments)
    speeds: dict[str, list[float]] = {"ours": [], "pipeline": [], "loop": []}
    pairs = []
    try:
        chunks = [texts[at : at + MESSAGES] for at in range(0, MESSAGES * (REPEATS + 1), MESSAGES)]
        # the first chunk warms up, and finds the pipeline's best batch size
        ours.ask(chunks[0])
        loop.ask(chunks[0][:1])
        best = max(BATCH_SIZES, key=lambda size: pipeline.ask(chunks[0], size)[0])
        for chunk in chunks[1:]:
            speed, answers = ours.ask(chunk)
            speeds["ours"].append(speed)
            speed, theirs = pipeline.ask(chunk, best)
            speeds["pipeline"].append(speed)
            speeds["loop"].append(loop.ask(chunk[:LOOP_MESSAGES])[0])
            pairs += list(zip(answers, theirs, strict=True))
    finally:
        for contestant in (ours, pipeline, loop):
            contestant.process.kill()
    tolerance = NEAR_TIE[precision]
    ties, others = other_texts(folder, dtype, prompts[MESSAGES : MESSAGES * (REPEATS + 1)], pairs, tolerance)
    for pair in others:
        print("another answer, and no near tie:", *map(repr, pair), sep="\n  ", file=sys.stderr)
    median = {name: statistics.median(found) for name, found in speeds.items()}
    better = max(("pipeline", "loop"), key=lambda name: median[name])
    rows = []
    for name, told in (("pipeline", f"pipeline(batch_size={best})"), ("loop", "generate in a loop")):
        ratios = sorted(a / b for a, b in zip(speeds["ours"], speeds[name], strict=True))
        rows.append(
            {
                "what": f"{what}, {precision}, against {told}",
                "ours": median["ours"],
                "peer": median[name],
                "unit": "answers/s",
                "ratio": {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]},
                "kind": "goal" if name == better else "info",
                "goal": 3.0 if name == better else None,
            }
        )
    for told, count in (("near ties", ties), ("for another reason", len(others))):
        told = f"{what}: other texts than the pipeline's, {told} (within {tolerance} nats or not), of {len(pairs)}"
        rows.append({"what": told, "ours": count, "peer": None, "unit": "answers", "ratio": None, "kind": "info", "goal": None})
    return rows


def run() -> list[dict]:
    """Measure with the base model and with a fine-tuned one."""
    import torch
    import yaml

    from luthier.configuration import FolderParameters, ModelParameters
    from luthier.machine import resolve_precision
    from luthier.models import ModelDirectory, load_model, load_tokenizer, load_tuned, resolve_base
    from luthier.text.chat import encode_prompt
    from luthier.text.prepare import PromptSettings, RowError, prompt_messages

    precision = resolve_precision("auto")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    data = yaml.safe_load((ROOT / "conf/base/parameters.yml").read_text())["data"]
    length = yaml.safe_load((ROOT / "conf/base/parameters_evaluation.yml").read_text())["evaluation"]["max_new_tokens"]
    settings = PromptSettings(system=data["system"], user=data["user"])
    folders = FolderParameters(root=str(ROOT), base_models=str(ROOT / "data/06_models/base"), shards="unused", work="unused")
    base = resolve_base(ModelParameters(base="packaged:smollm2-135m-instruct"), folders)
    tokenizer = load_tokenizer(base)
    prompts, texts = [], []
    for line in (ROOT / data["path"]).read_text(encoding="utf-8").splitlines():
        try:
            prompt = encode_prompt(tokenizer, prompt_messages(json.loads(line), settings))
        except (ValueError, RowError):
            continue
        text = tokenizer.decode(prompt)
        # the peers are given text; a row that holds a whole book would decide the padding of its batch
        if len(prompt) < 1024 and tokenizer(text, add_special_tokens=False)["input_ids"] == prompt:
            prompts.append(prompt)
            texts.append(text)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        tuned = newest_tuned(ROOT) or train_briefly(Path(temporary, "project"))
        models = {"base": load_model(base, dtype), "fine-tuned": load_tuned(base, ModelDirectory(tuned), dtype)}
        for name, model in models.items():
            model.save_pretrained(Path(temporary, name))
            tokenizer.save_pretrained(Path(temporary, name))
        del models, model
        for name in ("fine-tuned", "base"):
            what = f"SmolLM2-135M {name}, {MESSAGES} support messages"
            rows += compete(what, str(Path(temporary, name)), dtype, precision, prompts, texts, length)
    return rows
