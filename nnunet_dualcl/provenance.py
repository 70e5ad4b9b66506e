"""Where a result comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path


def source_commit() -> str:
    """Commit of the source tree that this runs from, shortened, or "unknown" for an installed package."""
    package = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "--short", "HEAD"],
            cwd=package,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git on this machine
        return "unknown"
    lines = done.stdout.split("\n")
    # a virtual environment inside the user's own repository is not our source tree
    ours = done.returncode == 0 and Path(lines[0]).resolve() == package.parent
    return lines[1] if ours else "unknown"
