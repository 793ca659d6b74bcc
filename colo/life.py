"""What a secondary's guest does between two checkpoints; what the primary may say early follows from it."""

from __future__ import annotations

from enum import Enum


class Life(Enum):
    """Of an epoch, from its installation on."""

    WAIT = "wait"
    """It stands still."""
    FOLLOW = "follow"
    """It does what the primary's log says, when it says."""
    RUN = "run"
    """It runs by itself, with the inputs of the primary's."""
