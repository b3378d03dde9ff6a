"""`python -m edgeattn`."""

from edgeattn.cli import main

main()
