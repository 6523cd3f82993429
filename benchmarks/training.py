"""The training step against a plain PyTorch + peft loop: same model, same batches, same supervised tokens, same machine.

The peer is what a careful person writes by hand: peft, bf16 autocast, batches sorted by length, logits at supervised
positions only. It runs in a process of its own, from a folder of its own, without Luthier.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 7


def _start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ask(process: "subprocess.Popen[str]", step: int) -> float:
    """Let the process do one step while the other one waits; return its seconds."""
    process.stdin.write(f"{step}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def run() -> list[dict]:
    """Alternate single steps of the two and compare them pair by pair."""
    from luthier.configuration import FolderParameters, ModelParameters
    from luthier.models import load_tokenizer, resolve_base
    from luthier.pipelines.training.batches import epoch_batches
    from luthier.text.chat import encode

    folders = FolderParameters(root=str(ROOT), base_models=str(ROOT / "data/06_models/base"), shards="unused", work="unused")
    base = resolve_base(ModelParameters(base="packaged:smollm2-135m-instruct"), folders)
    tokenizer = load_tokenizer(base)
    conversations = []
    for line in (ROOT / "data/01_raw/support_messages.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row.get("body"), str) and isinstance(row.get("answer"), dict) and 10 < len(row["body"]) < 1000:
            user, answer = row["body"], json.dumps(row["answer"], separators=(",", ":"))
            conversations.append(encode(tokenizer, [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]))
    lengths = [len(c.input_ids) for c in conversations]
    batches = epoch_batches(lengths, 16, 0, 0)[: REPEATS + 1]
    with tempfile.TemporaryDirectory() as folder:
        rows = [[{"ids": conversations[i].input_ids, "learn": conversations[i].supervised} for i in batch] for batch in batches]
        Path(folder, "batches.json").write_text(json.dumps(rows))
        processes = [_start(script, str(base.folder), folder) for script in ("training_ours.py", "training_peer.py")]
        try:
            for process in processes:
                _ask(process, 0)
            times = [[_ask(process, step) for process in processes] for step in range(1, REPEATS + 1)]
        finally:
            for process in processes:
                process.kill()
    tokens = [sum(lengths[i] for i in batch) for batch in batches[1:]]
    ratios = sorted(peer / ours for ours, peer in times)
    speeds = [statistics.median(t / pair[side] for t, pair in zip(tokens, times, strict=True)) for side in (0, 1)]
    ratio = {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
    what = "LoRA step, SmolLM2-135M, 16 support messages, against a plain PyTorch + peft loop"
    return [{"what": what, "ours": speeds[0], "peer": speeds[1], "unit": "tokens/s", "ratio": ratio, "kind": "goal", "goal": 1.0}]
