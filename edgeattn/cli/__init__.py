"""The `edgeattn` command: one module a verb; a verb imports its half when it is called."""

from __future__ import annotations

import contextlib
import os
import sys

import typer

import edgeattn
from edgeattn.cli.attentions import attentions
from edgeattn.cli.common import INTERRUPTED
from edgeattn.cli.compare import compare
from edgeattn.cli.compile import compile_
from edgeattn.cli.demo import demo
from edgeattn.cli.doctor import doctor
from edgeattn.cli.export import export
from edgeattn.cli.importing import import_
from edgeattn.cli.info import info
from edgeattn.cli.lint import lint
from edgeattn.cli.make import make
from edgeattn.cli.profile import profile
from edgeattn.cli.quantize import quantize
from edgeattn.cli.run import RunCommand, run
from edgeattn.cli.sensitivity import sensitivity
from edgeattn.cli.service import ServiceCommand, service
from edgeattn.cli.train import train
from edgeattn.cli.verify import verify
from edgeattn.errors import EdgeAttnError
from edgeattn.timing.memory import leave_out_converter

app = typer.Typer(
    name="edgeattn",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Small vision models with attention: pictures in, a checked int8 model live on your box out.",
    epilog="Exit codes: 0 done, 1 a gate failed, 2 wrong usage or bad input, 3 no verdict.",
)
for verb in (
    demo,
    make,
    train,
    export,
    quantize,
    sensitivity,
    verify,
    run,
    profile,
    compare,
    attentions,
    lint,
    info,
    doctor,
):
    app.command(cls=RunCommand if verb is run else None)(verb)
app.command(cls=ServiceCommand)(service)
app.command(name="compile")(compile_)
app.command(name="import")(import_)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeattn {edgeattn.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run a verb; errors that we raise on purpose are one line and exit code 2."""
    try:
        app()
    except EdgeAttnError as error:
        print(f"edgeattn: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer's for Ctrl-C, of which it says nothing
            print("edgeattn: stopped", file=sys.stderr)
        raise
    except BrokenPipeError:  # `edgeattn ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def command() -> None:
    """Run a verb as a process of its own, which ends at once where a camera's driver might hold it up."""
    leave_out_converter()
    try:
        main()
    except SystemExit as end:
        if "edgeattn.camera.capture" not in sys.modules or isinstance(end.code, str):
            raise
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code or 0)  # a thread inside OpenCV's `read` would abort the process, or keep it for seconds
