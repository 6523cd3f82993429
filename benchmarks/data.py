"""Data preparation: the whole chain over a corpus whose defects are known, and single steps against peers.

`make bench PART=data` takes 200,000 rows, or as many as DATA_RECORDS says, and 20,000 (DATA_PEER_RECORDS) against peers,
which run in environments of their own under .bench/. `make bench PART=data-memory` compares the peak memory of the chain
over two sizes: 100,000 and 1,000,000 rows, or what DATA_MEMORY_RECORDS says (`20000,200000`). `make bench PART=data-scaling`
compares one worker with two, over 8,000 rows (DATA_SCALING_RECORDS).

Times are CPU seconds of a process and all that it started, so that a busy machine and the number of cores change little; those of
scaling are by the clock.
"""

import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_corpus import PERSONAL, fold, grams, jaccard, write

ROOT = Path(__file__).resolve().parents[1]
RECORDS = int(os.environ.get("DATA_RECORDS", 200_000))
PEER_RECORDS = min(RECORDS, int(os.environ.get("DATA_PEER_RECORDS", 20_000)))
MEMORY_RECORDS = tuple(map(int, os.environ.get("DATA_MEMORY_RECORDS", "100000,1000000").split(",")))
SCALING_RECORDS = int(os.environ.get("DATA_SCALING_RECORDS", 8_000))
REPEATS = 3
MODEL = "packaged:smollm2-135m-instruct"
NEAR_THRESHOLD = 0.7
PLACEHOLDER = re.compile(r"<[A-Z_]+_[a-z2-7]{6}>|\{\{[A-Z_-]+\}\}")
"""What stands in the place of personal data: ours, and scrubadub's."""
# One computing thread a process, ours and peers' alike, and nothing fetched.
ALONE = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PEERS = {
    "datatrove": ("datatrove[io,processing]==0.10.1", "spacy==3.8.18", "nltk==3.10.4", "xxhash==3.8.2"),
    "datasketch": ("datasketch==2.0.0",),
    "scrubadub": ("scrubadub==2.0.1",),
    "evidently": ("evidently==0.7.23", "pandas==2.3.3"),
    "datasets": ("datasets==5.2.0", "transformers==5.23.0", "jinja2==3.1.6"),
}


def row(what: str, ours: float, unit: str, **more: Any) -> dict[str, Any]:
    """Make a row of the table; with a goal it is judged, else it informs."""
    kind = "goal" if more.get("goal") is not None else "info"
    return {"what": what, "ours": ours, "peer": None, "unit": unit, "ratio": None, "kind": kind, "goal": None} | more


def cpu() -> float:
    """Return the CPU seconds of this process and of its children, those that live and those that have ended."""
    import psutil

    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    living = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return sum(usage.ru_utime + usage.ru_stime for usage in both) + sum(times.user + times.system for times in living)


# The whole chain, in a process of its own.


def run_chain(project: Path) -> None:
    """Run the room's nodes in their order, with `settings.json` of the folder as parameters; write `chain.json`."""
    from luthier.configuration import DataParameters, FolderParameters, ModelParameters
    from luthier.pipelines.data_processing.parameters import DataProcessingParameters
    from luthier.pipelines.data_processing.pipeline import create_pipeline
    from luthier.shards import Shards

    settings = json.loads((project / "settings.json").read_text())
    folders = FolderParameters(
        root=str(project), base_models=str(ROOT / "data/06_models/base"), shards=str(project / "work"), work="unused"
    )
    values: dict[str, Any] = {
        "params:seed": 0,
        "params:folders": folders,
        "params:model": ModelParameters(base=MODEL),
        "params:data": DataParameters.model_validate(settings["data"]),
        "params:data_processing": DataProcessingParameters.model_validate(settings["data_processing"]),
    }
    steps = [{"name": "start", "began": time.time(), "cpu": cpu()}]
    for node in create_pipeline().nodes:  # the wiring alone: no session, no catalog, no hooks
        began, before = time.time(), cpu()
        made = node.func(*(values[name] for name in node.inputs))
        values.update(zip(node.outputs, made if len(node.outputs) > 1 else (made,), strict=True))
        steps.append({"name": node.name, "began": began, "cpu": cpu() - before})
    tables = {name: str(value.folder) for name, value in values.items() if isinstance(value, Shards)}
    seconds = time.time() - steps[0]["began"]
    facts = {"steps": steps, "cpu": cpu(), "seconds": seconds, "tables": tables, "report": values["data_report"]}
    (project / "chain.json").write_text(json.dumps(facts))


@contextmanager
def chain(data: dict[str, Any], watch: Callable[[int], None] | None = None, **processing: Any) -> Iterator[dict[str, Any]]:
    """Run the chain in a folder that goes away, and yield what it wrote in `chain.json`."""
    with tempfile.TemporaryDirectory(dir=_bench()) as folder:
        project = Path(folder)
        (project / "settings.json").write_text(json.dumps({"data": data, "data_processing": processing}))
        command = [sys.executable, __file__, "chain", folder]
        process = subprocess.Popen(command, env=os.environ | ALONE, start_new_session=True)
        try:
            if watch:
                watch(process.pid)
            if process.wait():
                raise SystemExit(f"the chain ended with {process.returncode}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too: nobody else would end them
                process.wait()
        yield json.loads((project / "chain.json").read_text())


def _bench() -> Path:
    folder = ROOT / ".bench"
    folder.mkdir(exist_ok=True)
    return folder


def corpus(records: int) -> Path:
    """Return the folder of the corpus of so many rows, written once."""
    folder = _bench() / f"corpus-{records}"
    code = (ROOT / "benchmarks/data_corpus.py").read_text()
    if not (folder / "code").exists() or (folder / "code").read_text() != code:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"data: writing {records:,} rows to {folder}", file=sys.stderr)
        write(folder, records)
        (folder / "code").write_text(code)
    return folder


def whole_chain(folder: Path) -> list[dict[str, Any]]:
    """Measure the speed of the chain, and how much of what was planted it found."""
    facts = json.loads((folder / "facts.json").read_text())
    with chain({"path": str(folder / "corpus.jsonl")}) as done:
        size = f"{facts['records']:,} rows, {facts['bytes'] / 1e6:.0f} MB of text, {facts['not_ascii']:.0%} not ASCII"
        rows = [row(f"whole chain, {size}", facts["bytes"] / 1e6 / done["cpu"], "MB/s a core, at least", goal=1.0)]
        rows += [row(f"  {step['name']}", step["cpu"], "CPU seconds") for step in done["steps"] if step["cpu"] >= 0.01]
        return rows + quality(folder, {name: Path(table) for name, table in done["tables"].items()})


def scaling() -> list[dict[str, Any]]:
    """Compare one worker with two, which take turns: processes of this machine, and tasks of Ray; its start counts."""
    folder = corpus(SCALING_RECORDS)
    facts = json.loads((folder / "facts.json").read_text())
    rows = []
    for backend in ("process", "ray"):
        took: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(REPEATS):
            for workers, seconds in took.items():
                settings = {"backend": backend, "workers": workers, "rows_per_shard": max(1, SCALING_RECORDS // 16)}
                with chain({"path": str(folder / "corpus.jsonl")}, executor=settings) as done:
                    seconds.append(done["seconds"])
        ratios = sorted(one / two for one, two in zip(took[1], took[2], strict=True))
        ratio = {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
        one, two = (facts["bytes"] / 1e6 / statistics.median(took[workers]) for workers in (1, 2))
        what = f"whole chain, {facts['records']:,} rows, {backend}: two workers; peer: one"
        rows.append(row(what, two, "MB/s", peer=one, ratio=ratio))
    return rows


# What was planted, and what became of it.


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:  # never splitlines: mojibake holds U+0085, which ends one there
        yield from map(json.loads, lines)


def _truths(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for truth in _lines(folder / "truth.jsonl"):
        found[truth["kind"]].append(truth)
    return found


def quality(folder: Path, tables: dict[str, Path]) -> list[dict[str, Any]]:
    """Compare the tables of a chain with what was planted."""
    from luthier.shards import Shards

    def column(table: str, *names: str) -> Iterator[tuple[Any, ...]]:
        for found in Shards(tables[table]).iter_rows(list(names)):
            yield tuple(found[name] for name in names)

    truths = _truths(folder)
    kept = {identity for (identity,) in column("unique_records", "id")}
    names = [identity for (identity,) in column("assessed_records", "id")]
    cluster = dict(zip(names, (name for (name,) in column("clusters", "cluster")), strict=True))

    pairs = [(truth["id"], truth["of"]) for truth in truths["near"] if truth["jaccard"] >= NEAR_THRESHOLD]
    found = sum(one in cluster and cluster[one] == cluster.get(other) for one, other in pairs)
    rows = [row(f"planted near duplicates found, of {len(pairs):,}", found / len(pairs), "share, at least", goal=0.95)]
    pairs = [(truth["id"], truth["of"]) for truth in truths["exact"]]
    found = sum(not (one in kept and other in kept) for one, other in pairs)
    rows.append(row(f"planted exact duplicates found, of {len(pairs):,}", found / len(pairs), "share, at least", goal=1.0))
    dropped = [identity for (identity,) in column("duplicates", "id")]
    false = _without_partner(dropped, cluster, column("assessed_records", "id", "messages"))
    share = false / max(1, len(dropped))
    rows.append(row(f"dropped without any partner, of {len(dropped):,}", share, "share, at most", goal=0.01))
    return rows + _personal_data(folder, truths["pii"], column) + _repairs(truths, column)


def _without_partner(dropped: list[str], cluster: dict[str, str], texts: Iterator[tuple[Any, ...]]) -> int:
    """Count the dropped records that are not near any other record of their cluster, by sets of 5-grams of our own."""
    crowded = {cluster[identity] for identity in dropped}
    prompts = {identity: said[0]["content"] for identity, said in texts if cluster[identity] in crowded}
    members = defaultdict(list)
    for identity in prompts:
        members[cluster[identity]].append(identity)

    def has_partner(identity: str) -> bool:
        own = grams(prompts[identity])
        others = (other for other in members[cluster[identity]] if other != identity)
        return any(jaccard(own, grams(prompts[other])) >= NEAR_THRESHOLD for other in others)

    return sum(not has_partner(identity) for identity in dropped)


def _runs(value: str) -> list[str]:
    """Return the value and its runs of four letters or digits: what must not be left of it."""
    runs = "".join(character if character.isalnum() else " " for character in value).split()
    return [value, *(run for run in runs if len(run) >= 4)]


def is_gone(value: str, before: str, after: str) -> bool:
    """Tell whether nothing of a value is left: `John <EMAIL>@acme.co.uk` still says who it was."""
    after = PLACEHOLDER.sub("", after)
    return all(after.count(run) <= before.count(run) - value.count(run) for run in _runs(value))


def _personal_data(folder: Path, truths: list[dict[str, Any]], column: Callable[..., Any]) -> list[dict[str, Any]]:
    planted = {truth["id"]: truth["planted"] for truth in truths}
    before = {raw["id"]: raw for raw in _lines(folder / "corpus.jsonl") if raw["id"] in planted}
    after = {
        identity: {"prompt": said[0]["content"], "completion": said[-1]["content"]}
        for identity, said in column("scrubbed_records", "id", "messages")
        if identity in planted
    }
    rows = recall_of_personal_data(planted, before, after)
    rows[0] |= {"unit": "share, at least", "goal": 0.99, "kind": "goal"}
    touched = {identity for (identity,) in column("scrub_changes", "id")}
    plain = {identity for (identity,) in column("scrubbed_records", "id")} - planted.keys()
    return [*rows, row("rows without personal data that were changed", len(touched & plain) / len(plain), "share")]


def recall_of_personal_data(planted: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows of the share of values that are gone, in all and by kind."""
    all_of, gone = Counter[str](), Counter[str]()
    for identity, values in planted.items():
        for side, kind, value, _ in values:
            if identity in after:
                all_of[kind] += 1
                gone[kind] += is_gone(value, before[identity][side], after[identity][side])
    rows = [row(f"planted personal data found, of {all_of.total():,}", gone.total() / all_of.total(), "share")]
    return rows + [row(f"  {kind}", gone[kind] / all_of[kind], "share") for kind in PERSONAL if all_of[kind]]


def _repairs(truths: dict[str, list[dict[str, Any]]], column: Callable[..., Any]) -> list[dict[str, Any]]:
    meant = {truth["id"]: fold(truth["prompt"]) for kind in ("mojibake", "html") for truth in truths[kind]}
    cleaned = column("cleaned_records", "id", "messages")
    found = {identity: fold(said[0]["content"]) for identity, said in cleaned if identity in meant}
    rows = []
    for kind in ("mojibake", "html"):
        right = [found.get(truth["id"]) == meant[truth["id"]] for truth in truths[kind]]
        rows.append(row(f"planted {kind} repaired exactly, of {len(right):,}", statistics.mean(right), "share"))
    stays = {identity for (identity,) in column("assessed_records", "id")}
    gone = [truth["id"] not in stays for truth in truths["garbage"]]
    harmed = len({identity for (identity,) in column("quality_dropped", "id")} - {truth["id"] for truth in truths["garbage"]})
    rows.append(row(f"planted garbage dropped, of {len(gone):,}", statistics.mean(gone), "share"))
    return [*rows, row("other rows dropped with it", harmed, "rows")]


# Single steps against peers.


def environment(name: str) -> Path | None:
    """Return the interpreter of a peer's own environment, made with pip if need be; None if that cannot be done."""
    folder, wanted = _bench() / name, "\n".join(PEERS[name])
    pins = folder / "pins.txt"
    if not pins.exists() or pins.read_text() != wanted:
        print(f"data: installing {name} into {folder}", file=sys.stderr)
        pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *PEERS[name]]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run(pip, check=True)
        except subprocess.CalledProcessError as error:
            print(f"data: {name} is left out: {error}", file=sys.stderr)
            return None
        pins.write_text(wanted)
    return folder / "bin/python"


def records_of(folder: Path) -> Any:
    """Return the rows of a corpus as a table of records."""
    import pyarrow as pa

    from luthier.executors import key_of
    from luthier.records import SPLIT_RECORD
    from luthier.shards import Shards, write_shards

    table = folder / "records"
    if not table.exists():
        raw = _lines(folder / "corpus.jsonl")
        known = {"meta": "{}", "source": "corpus", "weight": 1.0}
        records = [
            known
            | {
                "key": key_of(entry["id"]),
                "id": entry["id"],
                "split": "test" if number % 10 == 0 else "train",
                "messages": [
                    {"role": "user", "content": entry["prompt"]},
                    {"role": "assistant", "content": entry["completion"]},
                ],
            }
            for number, entry in enumerate(raw)
        ]
        write_shards(pa.Table.from_pylist(records, SPLIT_RECORD), table)
    return Shards(table)


def our_step(step: str, folder: Path) -> float:
    """Do one step as our room does it, and return its CPU seconds, imports and loading aside."""
    from luthier.executors import Executor
    from luthier.models import load_tokenizer
    from luthier.pipelines.data_processing import deduplicate, quality, tokenise
    from luthier.pipelines.data_processing.parameters import DataProcessingParameters
    from luthier.text.pii import scrub_all

    records, parameters = records_of(folder), DataProcessingParameters()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        executor = Executor(Path(work), "serial")
        if step == "minhash":
            start = cpu()
            deduplicate.deduplicate(records, parameters.deduplicate, executor)
        elif step == "scrub":
            raw = list(_lines(folder / "corpus.jsonl"))
            start = cpu()
            texts = {name: scrub_all([one[name] for one in raw], "")[0] for name in ("prompt", "completion")}
            found = [{"id": one["id"], "prompt": a, "completion": b} for one, a, b in zip(raw, *texts.values(), strict=True)]
            spent = cpu() - start
            (folder / "ours.json").write_text(json.dumps(found))
            return spent
        elif step == "filter":
            table = records.to_table()
            quality.assess(table.slice(0, 2), parameters.quality)
            start = cpu()
            quality.assess(table, parameters.quality)
        else:
            base = _base()
            load_tokenizer(base)
            start = cpu()
            tokenise.tokenise(records, base, parameters.tokenise, executor)
        return cpu() - start


def _base() -> Any:
    from luthier.configuration import FolderParameters, ModelParameters
    from luthier.models import resolve_base

    folders = FolderParameters(root=str(ROOT), base_models=str(ROOT / "data/06_models/base"), shards="unused", work="unused")
    return resolve_base(ModelParameters(base=MODEL), folders)


def _seconds(command: list[str]) -> float:
    done = subprocess.run(command, env=os.environ | ALONE, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def against(what: str, folder: Path, step: str, peer: str, script: str, goal: float | None, *more: str) -> list[dict[str, Any]]:
    """Let ours and the peer take turns at a step, and compare them pair by pair."""
    python = environment(peer)
    if python is None:
        return []
    megabytes = json.loads((folder / "facts.json").read_text())["bytes"] / 1e6
    theirs = [str(python), str(ROOT / "benchmarks/data_peer.py"), script, str(folder), *more]
    records_of(folder)
    times = [(_seconds([sys.executable, __file__, step, str(folder)]), _seconds(theirs)) for _ in range(REPEATS)]
    ratios = sorted(peer_took / ours for ours, peer_took in times)
    ratio = {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
    ours, peers = (megabytes / statistics.median(side) for side in zip(*times, strict=True))
    pins = f"{peer} {PEERS[peer][0].partition('==')[2]}"
    return [row(f"{what}, against {pins}", ours, "MB of rows/s a core", peer=peers, ratio=ratio, goal=goal)]


def steps_against_peers() -> list[dict[str, Any]]:
    """Compare single steps on the same rows."""
    folder = corpus(PEER_RECORDS)
    shutil.rmtree(folder / "records", ignore_errors=True)  # an earlier version of the room may have written them
    rows = against("near duplicates (5-grams, 32 x 4 hashes)", folder, "minhash", "datatrove", "minhash_datatrove", 10.0)
    rows += against("near duplicates (5-grams, 32 x 4 hashes)", folder, "minhash", "datasketch", "minhash_datasketch", 1.0)
    scrubbed = against("personal data", folder, "scrub", "scrubadub", "scrub_scrubadub", 5.0)
    rows += scrubbed + (_recalls(folder) if scrubbed else [])
    what = "filters and language (the peer: Gopher's filters, no language)"
    rows += against(what, folder, "filter", "datatrove", "filter_datatrove", 1.0)
    base = str(_base().folder)
    what = "tokens and mask (the peer: a batched map)"
    return rows + against(what, folder, "tokenise", "datasets", "tokenise_datasets", 1.0, base)


def _recalls(folder: Path) -> list[dict[str, Any]]:
    """Compare how much personal data ours and scrubadub took out of the same rows."""
    planted = {truth["id"]: truth["planted"] for truth in _truths(folder)["pii"]}
    before = {raw["id"]: raw for raw in _lines(folder / "corpus.jsonl")}
    ours, peers = (
        recall_of_personal_data(planted, before, {one["id"]: one for one in json.loads((folder / name).read_text())})
        for name in ("ours.json", "scrubadub.json")
    )
    rows = [
        mine | {"what": f"{mine['what']}, against scrubadub", "peer": theirs["ours"]}
        for mine, theirs in zip(ours, peers, strict=True)
    ]
    higher = rows[0]["ours"] / max(rows[0]["peer"], 1e-9)
    rows[0] |= {"ratio": {"median": higher, "low": higher, "high": higher}, "kind": "goal", "goal": 1.0}
    return rows


# Real data with a real leak.


def banking77() -> list[dict[str, Any]]:
    """Prepare Banking77's training file with its test file as a benchmark: the texts that stand in both must be found."""
    folder = Path(os.environ.get("BANKING77", ROOT.parent / "shared/data/banking77"))
    if not (folder / "train.csv").exists():
        print(f"data: Banking77 is left out: there is no {folder / 'train.csv'}; set BANKING77 to its folder", file=sys.stderr)
        return []
    import pandas as pd

    from luthier.shards import Shards

    train, test = (set(pd.read_csv(folder / name)["text"].map(fold)) for name in ("train.csv", "test.csv"))
    leaked = train & test
    start = time.monotonic()
    # the benchmark is the test: hardly anything is held out of the training file
    settings = {"split": {"validation": 0, "test": 0.001}, "decontaminate": {"benchmarks": [str(folder / "test.csv")]}}
    with chain({"path": str(folder / "train.csv")}, **settings) as done:
        wall = time.monotonic() - start
        records = {name: Shards(Path(table)) for name, table in done["tables"].items()}
        before, after = (
            {one["id"]: fold(one["messages"][0]["content"]) for one in records[name].iter_rows() if one["split"] == "train"}
            for name in ("divided_records", "split_records")
        )
        found = {line["id"] for line in records["contaminated"].iter_rows() if line["dropped"] and "test.csv" in line["against"]}
    left = set(after.values())
    named = leaked & {before[identity] for identity in found}
    return [
        row("Banking77: training texts that stand in the test file", len(leaked), "texts"),
        row("  reported and dropped as contaminated", len(named), "texts"),
        row("  gone from training, as contaminated or as duplicates", len(leaked - left), "texts, at least", goal=len(leaked)),
        row("  training rows dropped against the test file", len(found), "rows"),
        row("  whole chain", wall, "seconds"),
    ]


def run() -> list[dict[str, Any]]:
    """Measure the chain, its steps against peers, and a real leak."""
    return whole_chain(corpus(RECORDS)) + steps_against_peers() + banking77()


# Memory.


def _watch(samples: list[tuple[float, int]]) -> Callable[[int], None]:
    """Return what notes when how many bytes a process and all that it started held, shared pages counted once (proc(5))."""
    import psutil

    def watch(pid: int) -> None:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            held = 0
            try:
                for process in (root, *root.children(recursive=True)):
                    held += process.memory_full_info().pss
            except psutil.Error:  # one of them has just ended
                continue
            samples.append((time.time(), held))
            time.sleep(0.25)

    return watch


def memory() -> list[dict[str, Any]]:
    """Compare the peak memory of the chain over a smaller and a larger corpus: it must not grow with the rows."""
    peaks: list[dict[str, float]] = []
    for records in MEMORY_RECORDS:
        samples: list[tuple[float, int]] = []
        with chain({"path": str(corpus(records) / "corpus.jsonl")}, _watch(samples)) as done:
            steps = done["steps"]
        peak = dict.fromkeys((step["name"] for step in steps), 0.0)
        for when, held in samples:
            name = next((step["name"] for step in reversed(steps) if step["began"] <= when), "start")
            peak[name] = max(peak[name], held / 2**30)
        peaks.append(peak)
    small, large = peaks[0], peaks[-1]
    growth = max(large.values()) / max(small.values())
    allowed = {"median": 1.3 / growth, "low": 1.3 / growth, "high": 1.3 / growth}
    sizes = f"{MEMORY_RECORDS[-1]:,} rows, against {MEMORY_RECORDS[0]:,}"
    peak_of = {"ours": max(large.values()), "peer": max(small.values())}
    whole = row(f"peak memory, {sizes}: 1.3 / growth", unit="GiB", ratio=allowed, goal=1.0, **peak_of)
    return [whole] + [row(f"  {name}", large[name], "GiB", peer=small[name]) for name in large if large[name] and small[name]]


if __name__ == "__main__":
    if sys.argv[1] == "chain":
        run_chain(Path(sys.argv[2]))
    else:
        print(our_step(sys.argv[1], Path(sys.argv[2])))
