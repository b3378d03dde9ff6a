"""`python -m edgeattn`."""

from edgeattn.cli import command

command()
