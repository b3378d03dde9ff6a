"""Measure the latency of a bundle's artefacts on this machine: the verb `edgeattn profile` as a script of a clone."""

from __future__ import annotations

import sys

import typer

from edgeattn.cli.profile import profile
from edgeattn.errors import EdgeAttnError

if __name__ == "__main__":
    try:
        typer.run(profile)
    except EdgeAttnError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
