"""What any step needs beside the rows, looked at before the first of them: what is wrong is told at once, not hours later."""

from collections.abc import Callable, Sequence
from functools import partial

from luthier.configuration import DataParameters, FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import resolve_base
from luthier.pipelines.data_processing.augment import load_paraphrases
from luthier.pipelines.data_processing.decontaminate import check_benchmark
from luthier.pipelines.data_processing.parameters import DataProcessingParameters
from luthier.pipelines.data_processing.previous import split_table_files
from luthier.pipelines.data_processing.tokenise import usable_tokenizer
from luthier.reading import find_files
from luthier.text.presidio import check_recognizer


def check_needs(
    data: DataParameters, model: ModelParameters, parameters: DataProcessingParameters, folders: FolderParameters
) -> None:
    """Look for every file that the parameters name, and then for the models: these may have to be fetched.

    Raises:
        UserError: with all files that are missing or cannot be used, or all such models.
    """
    files: list[Callable[[], object]] = [
        partial(find_files, source.path, folders, optional=source.optional) for source in data.all_sources().values()
    ]
    if parameters.split.previous:
        files.append(partial(split_table_files, folders.locate(parameters.split.previous)))
    files += [partial(check_benchmark, path, data.user, folders) for path in parameters.decontaminate.benchmarks]
    if parameters.augment.paraphrases and not parameters.augment.is_off:
        files.append(partial(load_paraphrases, folders.locate(parameters.augment.paraphrases)))
    _refuse(files)
    models: list[Callable[[], object]] = [lambda: usable_tokenizer(resolve_base(model, folders), parameters.tokenise)]
    if parameters.scrub and parameters.scrub.presidio:
        models.append(partial(check_recognizer, parameters.scrub.presidio))
    _refuse(models)


def _refuse(checks: Sequence[Callable[[], object]]) -> None:
    problems = [problem for check in checks if (problem := _problem(check))]
    if len(problems) > 1:
        told = "\n".join(problems).replace("\n", "\n  ")
        raise UserError(f"The data cannot be prepared; no row was read.\n  {told}")
    if problems:
        raise UserError(problems[0])


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except UserError as error:
        return str(error)
    return None
