"""What this machine can compute in."""


def resolve_precision(asked: str) -> str:
    """Return `bf16` or `fp32`: what `auto` means on this machine's GPU or CPU."""
    import torch

    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"
