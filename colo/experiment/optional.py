"""Libraries that an experiment can do without: asked for by name when they are needed, and not before."""

from __future__ import annotations

import importlib
from typing import Any

from vmm.errors import ConfigError

EXTRA = "pip install 'colo-vmm[experiment]'"


def load(module: str, purpose: str) -> Any:
    """The module; ConfigError says what it is wanted for and how it is installed."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ConfigError(f"{purpose} needs {module.partition('.')[0]} ({exc}): {EXTRA}") from exc
