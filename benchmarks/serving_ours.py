"""The contestants of ours in `serving.py`: the gateway with its worker, and the engine alone."""

import json
import statistics
import sys
import threading
import time
from pathlib import Path

from luthier.configuration import FolderParameters, ModelParameters
from luthier.machine import resolve_precision
from luthier.models import load_model, load_tokenizer, resolve_base
from luthier.text.prepare import PromptSettings

ROOT = Path(__file__).resolve().parents[1]
SLOTS, CACHE_TOKENS = 8, 8192


def base():
    folders = FolderParameters(root=str(ROOT), base_models=str(ROOT / "data/06_models/base"), shards="unused", work="unused")
    return resolve_base(ModelParameters(base="packaged:smollm2-135m-instruct"), folders)


def registry(home: Path):
    from luthier.packages import check_package
    from luthier.registry import Registry

    return Registry("luthier", f"sqlite:///{home / 'mlflow.db'}", cache=home / "cache", check=check_package)


def make(home: Path) -> None:
    """Register the base model, as an adapter that changes nothing, merged; and save it for the peer."""
    import mlflow
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.artefacts import staged
    from luthier.models import ModelDirectory
    from luthier.pipelines.deployment.package import Ingredients, make_package
    from luthier.pipelines.deployment.parameters import DeploymentParameters

    found, precision = base(), resolve_precision("auto")
    model = get_peft_model(load_model(found, torch.float32), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with staged(home / "tuned", base={"name": found.name, "identity": found.identity}, method="lora") as staging:
        model.save_pretrained(staging)
    evidence = {
        "evaluation": {"examples": 0, "models": {}},
        "gate": {"decision": "undecided", "rules": []},
        "data_report": {},
        "lineage": {},
    }
    made_of = Ingredients(found, ModelDirectory(home / "tuned"), PromptSettings(), 64, {}, **evidence)
    package = make_package(home / "package", made_of, DeploymentParameters(precision=precision))
    uri = f"sqlite:///{home / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("luthier", (home / "artefacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        registry(home).register(package.folder, run.info.run_id, gate="pass")
    registry(home).promote()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    load_model(found, dtype).save_pretrained(home / "plain")
    load_tokenizer(found).save_pretrained(home / "plain")
    print(json.dumps({"dtype": str(dtype).removeprefix("torch.")}))


def gateway(home: Path) -> None:
    """Serve, and say where."""
    from luthier.serving.fleet import Machine
    from luthier.serving.keys import read_keys
    from luthier.serving.parameters import EngineParameters, ServingParameters
    from luthier.serving.server import Place, serve

    parameters = ServingParameters(port=0, engine=EngineParameters(slots=SLOTS, cache_tokens=CACHE_TOKENS, warm=()))
    place = Place(
        registry(home),
        Machine(home / "cache", resolve_precision("auto"), base),
        read_keys({"LUTHIER_API_KEYS": "sk-benchmark-0123456789"}, "127.0.0.1"),
        f"sqlite:///{home / 'requests.db'}",
        home / "experiment.json",
        "",
    )
    serve(parameters, place, lambda address, table: print(json.dumps({"address": address}), flush=True))


def engine(home: Path) -> None:
    """Answer what stdin asks, with clients that are threads."""
    import torch

    from luthier.serving.engines.batching import BatchingEngine

    dtype = torch.bfloat16 if resolve_precision("auto") == "bf16" else torch.float32
    model, tokenizer = load_model(base(), dtype).eval(), load_tokenizer(base())
    answering = BatchingEngine(model, tokenizer, slots=SLOTS, cache_tokens=CACHE_TOKENS, waiting=64)
    answering.start()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(turn(answering, tokenizer, asked["prompts"], asked["clients"], asked["length"])), flush=True)
    answering.close()


def turn(answering, tokenizer, prompts: list[str], clients: int, length: int) -> dict[str, float]:
    from luthier.serving.engines.batching import Done, TextPiece
    from luthier.serving.engines.sampling import Sampling
    from luthier.text.chat import encode_prompt

    first: list[float] = []
    tokens: list[int] = []

    def ask(prompt: str) -> None:
        began, seen, done = time.perf_counter(), threading.Event(), threading.Event()

        def heard(event) -> None:
            if isinstance(event, TextPiece) and not seen.is_set():
                seen.set()
                first.append(time.perf_counter() - began)
            if not isinstance(event, TextPiece):
                assert isinstance(event, Done), event
                tokens.append(event.completion_tokens)
                done.set()

        ids = encode_prompt(tokenizer, [{"role": "user", "content": prompt}])
        answering.submit(ids, Sampling(max_tokens=length), heard)
        done.wait()

    def client(number: int) -> None:
        for prompt in prompts[number::clients]:
            ask(prompt)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"speed": sum(tokens) / (time.perf_counter() - began), "first": statistics.median(first)}


if __name__ == "__main__":
    {"make": make, "gateway": gateway, "engine": engine}[sys.argv[1]](Path(sys.argv[2]))
