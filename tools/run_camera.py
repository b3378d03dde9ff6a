"""Run a bundle live on a camera, stream, video or folder: the verb `edgeattn run` as a script of a clone."""

from __future__ import annotations

import sys

import typer

from edgeattn.cli.run import run
from edgeattn.errors import EdgeAttnError

if __name__ == "__main__":
    try:
        typer.run(run)
    except EdgeAttnError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
