"""The same with transformers alone: `python generation_peer.py loop|pipeline MODEL PRECISION LENGTH`."""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.utils import logging

logging.set_verbosity_error()
mode, folder, precision, length = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if precision == "bf16" else torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
options = {"max_new_tokens": int(length), "do_sample": False}
answerer = pipeline("text-generation", model=model, tokenizer=tokenizer)


def one_by_one(prompts: list[str]) -> list[str]:
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        tokens = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return texts


def in_batches(prompts: list[str], batch_size: int) -> list[str]:
    found = answerer(prompts, batch_size=batch_size, return_full_text=False, add_special_tokens=False, **options)
    return [answers[0]["generated_text"].strip() for answers in found]


for line in sys.stdin:
    asked = json.loads(line)
    start = time.perf_counter()
    texts = one_by_one(asked["prompts"]) if mode == "loop" else in_batches(asked["prompts"], asked["batch_size"])
    print(json.dumps({"seconds": time.perf_counter() - start, "texts": texts}), flush=True)
