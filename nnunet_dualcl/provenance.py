"""Where a result comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path


def source_commit() -> str:
    """Commit of the source tree that this runs from, shortened, or "unknown" for an installed package."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
