"""What a package of a model is, refusing everything else, and loading it.

A package is a flat folder made by `artefacts.staged`: weights in safetensors, everything else text. `check_package` reads every
byte once, by file descriptors that follow no link, and judges those very bytes. It trusts nothing that an attacker could have
written along with the rest, the manifest included: names and kinds of files are checked against a list, headers against the
format, tensors against the architecture. What only an outside fact can show (other weights of the right shape) is shown by
`expected`, the root hash that the registry keeps, or by a signature.
"""

from pathlib import Path

from luthier.packages.check import check_package
from luthier.packages.load import PackagedModel, facts_of, load_package, prompt_settings_of

__all__ = ["PackagedModel", "check_package", "facts_of", "load_package", "prompt_settings_of"]


def _load_pyfunc(path: str) -> PackagedModel:
    """Load a package for `mlflow.pyfunc.load_model`, which finds this function by the package's `MLmodel`."""
    import torch

    from luthier.machine import resolve_precision

    dtype = torch.bfloat16 if resolve_precision("auto") == "bf16" else torch.float32
    model, tokenizer, settings = load_package(Path(path), dtype)
    return PackagedModel(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, settings)
