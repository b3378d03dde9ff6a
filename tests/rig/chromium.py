"""The browser of the rig, as `.ci/run` asks for it before anything is installed."""

from __future__ import annotations

import shutil

PACKAGES = ("chromium",)


def missing() -> str | None:
    """What to install before the browser works; None: nothing."""
    return None if shutil.which("chromium") else f"no browser; apt-get install --no-install-recommends {PACKAGES[0]}"
