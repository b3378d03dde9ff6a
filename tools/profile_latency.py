"""Profile a bundle: `edgeattn profile` as a script."""

from __future__ import annotations

import sys

from edgeattn.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "profile")
    main()
