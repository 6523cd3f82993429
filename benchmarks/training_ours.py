"""Our training step, asked for one at a time through standard input; prints the seconds of each."""

import json
import sys
import time
from pathlib import Path

import torch

from luthier.likelihood import IGNORED, Example, SupervisedNll, collate, micro_batches
from luthier.machine import resolve_precision
from luthier.models import Base, load_model
from luthier.pipelines.training.parameters import TrainingParameters
from luthier.pipelines.training.worker import make_optimizer, with_adapters

base, folder = sys.argv[1:]
parameters = TrainingParameters()
bf16 = resolve_precision("auto") == "bf16"
torch.manual_seed(0)
model = with_adapters(
    load_model(Base("base", Path(base), ""), torch.float32), parameters, torch.bfloat16 if bf16 else torch.float32
).train()
loss, optimizer = SupervisedNll(model), make_optimizer(model, parameters)
batches = []
for rows in json.loads(Path(folder, "batches.json").read_text()):
    batch = []
    for row in rows:
        ids, learn = torch.tensor(row["ids"]), torch.tensor(row["learn"])
        labels = torch.full_like(ids, IGNORED)
        labels[:-1] = torch.where(learn[1:], ids[1:], IGNORED)
        batch.append(Example("", ids, labels))
    batches.append(batch)
for line in sys.stdin:
    start = time.perf_counter()
    batch = batches[int(line)]
    supervised = sum(int((example.labels != IGNORED).sum()) for example in batch)
    lengths = [len(example.input_ids) for example in batch]
    for piece in micro_batches(range(len(batch)), lengths, parameters.micro_batch_tokens):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            nll = loss(*collate([batch[i] for i in piece])).sum()
        (nll / supervised).backward()
    torch.nn.utils.clip_grad_norm_(loss.parameters(), parameters.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad()
    print(time.perf_counter() - start, flush=True)
