"""Run a model live: `edgeattn run` as a script."""

from __future__ import annotations

import sys

from edgeattn.cli import command

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    command()
