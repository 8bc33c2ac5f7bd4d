"""The ``sinkgate`` command."""

from __future__ import annotations

import sys
from functools import cache
from io import TextIOWrapper
from typing import Any

import typer

from sinkgate.cli import answers, demo, gates, models, pictures, reports, studies
from sinkgate.cli.options import as_options
from sinkgate.errors import SinkgateError, with_remedy

cli = typer.Typer(
    help="Find attention sinks in vision-language models and gate their Keys, layer by layer.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    answers.ask,
    answers.sinks,
    models.dimensions,
    gates.train,
    gates.stack,
    gates.convert,
    gates.export_runtime,
    studies.anatomy,
    studies.probe,
    studies.sweep,
    studies.evaluate,
    pictures.export,
    pictures.survey,
    reports.compare_models,
    reports.report,
    reports.merge,
    demo.scenes,
    models.info,
    models.models,
):
    cli.command(command.__name__.replace("evaluate", "eval").replace("_", "-"))(command)
cli.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    demo.app
)


EXTRAS = {  # top-level package: the extra that installs it
    **dict.fromkeys(("pandas", "pyarrow", "scipy", "sklearn"), "studies"),
    **dict.fromkeys(("gradio", "limits", "prometheus_client", "pythonjsonlogger"), "app"),
    "plotly": "plots",
    "datasets": "train",
}


#: typer reads the parameters of all commands anew for each one that it makes.
_command = cache(typer.main.get_command)
UsageError: Any = typer.BadParameter.__base__  # of click, or of typer's own copy


def main() -> None:
    """Run the command. Invalid input, errors of files and missing extras are reported in one sentence on stderr; the exit code is 2."""
    for stream in (sys.stdout, sys.stderr):  # the code page of a redirected stream may lack a character of an answer
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(_command(cli)(sys.argv[1:] or ["--help"], standalone_mode=False))
    except UsageError as error:
        sentence = _in_words(error)
    except SinkgateError as error:
        sentence = as_options(str(error))
    except OSError as error:
        if not error.filename:  # of a connection, or of a stream
            raise
        sentence = f"{error.filename}: {with_remedy(error)}"
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        sentence = f'{package} is not installed: pip install "sinkgate[{EXTRAS[package]}]"'
    typer.echo(f"sinkgate: {sentence}", err=True)
    sys.exit(2)


def _in_words(error: Any) -> str:
    """Return what is wrong with arguments, with the value, which messages of pydantic leave out, and the command that lists the options."""
    message = error.format_message().rstrip(".")
    if hasattr(error.__cause__, "errors") and (value := repr(error.__cause__.errors()[0]["input"])) not in message:
        message += f"; got {value}"
    return f"{message}; see `{error.ctx.command_path} --help`" if error.ctx else message
