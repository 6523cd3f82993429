"""Our answers to chunks of prompts, asked for through standard input: `python generation_ours.py MODEL PRECISION LENGTH`."""

import json
import sys
import time
from pathlib import Path

import torch

from luthier.generation import generate
from luthier.models import Base, load_model, load_tokenizer

folder, precision, length = sys.argv[1:]
base = Base("model", Path(folder), "")
model = load_model(base, torch.bfloat16 if precision == "bf16" else torch.float32).eval()
tokenizer = load_tokenizer(base)
for line in sys.stdin:
    prompts = json.loads(line)["prompts"]
    start = time.perf_counter()
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    texts = [answer.text for answer in generate(model, tokenizer, ids, int(length), 8192)]
    print(json.dumps({"seconds": time.perf_counter() - start, "texts": texts}), flush=True)
