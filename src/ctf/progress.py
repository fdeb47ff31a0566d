"""Progress bars with rate and remaining time, and durations in words."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(total: int, name: str, unit: str, initial: int = 0, hidden: bool = False) -> Any:
    """A tqdm bar on standard error; in a log file instead of a terminal it writes a line every 15 seconds at most."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 15
    # The delay keeps a bar off the screen when bad input ends the work at once.
    return tqdm(
        total=total,
        desc=name,
        unit=unit,
        initial=initial,
        disable=hidden,
        mininterval=interval,
        smoothing=0.1,
        delay=0.5,
        leave=None,  # a bar within another one goes when it is full
        # As tqdm's own, but for a number that may be a fraction: images of a batch that is under way.
        bar_format="{l_bar}{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    )


def duration(seconds: float) -> str:
    """A time in the unit that suits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 3 * 86_400 else f"{seconds / 86_400:.1f} days"
