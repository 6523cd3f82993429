"""Keep libraries from talking over our own progress: only their errors are shown."""


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of transformers and the hub; errors stay."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
