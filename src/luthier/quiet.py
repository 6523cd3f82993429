"""Keep libraries from talking over our own progress: only what a user could act on is shown."""


def quiet_trackers() -> None:
    """Set MLflow and kedro-mlflow back to warnings: both set themselves to INFO when they are imported."""
    import logging
    import os

    # a bar for each file of a few bytes
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "kedro_mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of transformers and the hub; errors stay."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import warnings

    # peft 0.21 asks transformers 5.23 for an attribute that is to be renamed: nothing that a user could mend
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
