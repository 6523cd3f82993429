"""A plain PyTorch + peft training step, written as one would by hand; the same protocol as training_ours.py."""

import json
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

base, folder = sys.argv[1:]
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
batches = json.loads(Path(folder, "batches.json").read_text())
bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
for line in sys.stdin:
    start = time.perf_counter()
    batch = batches[int(line)]
    width = max(len(row["ids"]) for row in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(batch):
        length = len(row["ids"])
        ids[number, :length] = torch.tensor(row["ids"])
        mask[number, :length] = 1
        learn = torch.tensor(row["learn"])
        labels[number, :length][learn] = ids[number, :length][learn]
    targets = labels[:, 1:]
    keep = targets != -100
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        inner = model.get_base_model()
        hidden = inner.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = inner.lm_head(hidden[:, :-1][keep])
    loss = torch.nn.functional.cross_entropy(logits.float(), targets[keep])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(time.perf_counter() - start, flush=True)
