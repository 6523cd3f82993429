"""One step of data preparation as a peer does it: `python data_peer.py STEP FOLDER`, in the peer's own environment.

Reads `corpus.jsonl` of the folder, and prints the CPU seconds that the step took, imports and loading aside.
"""

import json
import resource
import shutil
import sys
from pathlib import Path

step, folder = sys.argv[1], Path(sys.argv[2])
with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
    rows = [json.loads(line) for line in lines]
BANDS, ROWS = 32, 4  # as ours


def cpu() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def minhash_datatrove() -> float:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    work = folder / "datatrove"
    shutil.rmtree(work, ignore_errors=True)
    (work / "input").mkdir(parents=True)
    with (work / "input/texts.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"id": row["id"], "text": row["prompt"]}, ensure_ascii=False) + "\n")
    config = MinhashConfig(n_grams=5, num_buckets=BANDS, hashes_per_bucket=ROWS)  # of words: fewer than our characters
    reader = JsonlReader(str(work / "input"))
    pipelines = [
        (1, [reader, MinhashDedupSignature(str(work / "signatures"), config)]),
        (BANDS, [MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)]),
        (1, [MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)]),
        (1, [reader, MinhashDedupFilter(str(work / "remove")), JsonlWriter(str(work / "kept"))]),
    ]
    MinhashDedupSignature(str(work / "warm"), config).get_shingles("loads the words")
    start = cpu()
    for number, (tasks, pipeline) in enumerate(pipelines):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(work / f"logs{number}")).run()
    return cpu() - start


def minhash_datasketch() -> float:
    from datasketch import MinHash, MinHashLSH

    start = cpu()
    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    for row in rows:
        text = " ".join(row["prompt"].casefold().split())
        signature = MinHash(num_perm=BANDS * ROWS)
        signature.update_batch([text[i : i + 5].encode() for i in range(max(1, len(text) - 4))])
        if not index.query(signature):
            index.insert(row["id"], signature)
    return cpu() - start


def scrub_scrubadub() -> float:
    import scrubadub

    scrubber = scrubadub.Scrubber()
    scrubber.clean("loads a@b.com")
    start = cpu()
    found = [{"id": row["id"]} | {name: scrubber.clean(row[name]) for name in ("prompt", "completion")} for row in rows]
    spent = cpu() - start
    (folder / "scrubadub.json").write_text(json.dumps(found))
    return spent


def filter_datatrove() -> float:
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    filters = GopherRepetitionFilter(), GopherQualityFilter()
    documents = [Document(text=row["prompt"], id=row["id"]) for row in rows]
    for one in filters:
        one.filter(documents[0])
    start = cpu()
    for document in documents:
        # a document that the first one drops never reaches the second
        all(one.filter(document) is True for one in filters)
    return cpu() - start


def tokenise_datasets() -> float:
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": row["prompt"]}] for row in rows],
            "completion": [[{"role": "assistant", "content": row["completion"]}] for row in rows],
        }
    )

    def encode(batch: dict) -> dict:
        # as trl's SFTTrainer does it, but a batch at a time: the prompt alone, the whole, and what is beyond the prompt is learnt
        whole = [asked + answer for asked, answer in zip(batch["prompt"], batch["completion"], strict=True)]
        prompts = tokenizer.apply_chat_template(batch["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
        masks = [[False] * len(asked) + [True] * (len(own) - len(asked)) for asked, own in zip(prompts, ids, strict=True)]
        return {"input_ids": ids, "supervised": masks}

    encode(data[:2])
    start = cpu()
    out = str(folder / "tokenised.arrow")
    data.map(encode, batched=True, remove_columns=data.column_names, cache_file_name=out, load_from_cache_file=False)
    return cpu() - start


print(globals()[step]())
