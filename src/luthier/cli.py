"""The project's `kedro` commands: Kedro's own, with a user's mistake told in a sentence instead of a traceback."""

from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import CONTEXT_SETTINGS

from luthier.errors import UserError


class Run(click.Command):
    """`kedro run`, whose expected errors are messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the pipeline; exit 1 with a message for a mistake of the user's."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from None


@click.group(context_settings=CONTEXT_SETTINGS, name=__package__)
def cli() -> None:
    """Commands of the project."""


run = Run(name="run", callback=kedro_run.callback, params=kedro_run.params, help=kedro_run.help)
cli.add_command(run)
