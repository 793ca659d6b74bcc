"""A trial as text, and back: one line of JSON for a row of results, TOML for people and for ``colo replay``.

Fields that are as by default are left out, so that what is there is what matters::

    seed = 7

    [[fault]]
    kind = "register"
    when = { at = "instruction", count = 81234 }
    mask = 0x8000
    register = "rbx"

The TOML form is a plan's (:mod:`colo.faults.plan`): it can be copied from one to the other.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from colo.faults.document import FILE_BYTES_MAX, Document, parse, require_table
from colo.faults.errors import FaultError, PlanError, shown
from colo.faults.fields import plain
from colo.faults.model import Trial
from colo.faults.templates import exact, read_fault

HEX = frozenset({"address", "mask", "value"})
"""Fields that people read in base 16."""


def to_json(trial: Trial) -> str:
    """One line."""
    return json.dumps({"seed": trial.seed, "fault": [plain(fault) for fault in trial.faults]})


def to_toml(trial: Trial) -> str:
    """A small file."""
    text = f"seed = {trial.seed}\n"
    for fault in trial.faults:
        text += "\n[[fault]]\n"
        text += "".join(f"{name} = {_toml(value, name)}\n" for name, value in plain(fault).items())
    return text


def _toml(value: Any, name: str) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner, key)}" for key, inner in value.items()) + " }"
    if isinstance(value, str):  # TOML's escapes are JSON's, but for DEL and characters beyond 16 bits
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return hex(value) if name in HEX else repr(value)


def from_json(text: str) -> Trial:
    """The trial that :func:`to_json` wrote; anything else raises :class:`PlanError`."""
    if len(text) > FILE_BYTES_MAX:
        raise PlanError("trial", (), f"{len(text)} characters", f"at most {FILE_BYTES_MAX}")
    try:
        found = msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError("trial", (), f"no JSON ({error})", "a trial as to_json writes it") from None
    return trial_of(Document("trial", require_table(Document("trial", {}), (), found)))


def from_toml(text: str, name: str = "trial.toml") -> Trial:
    """The trial that :func:`to_toml` wrote, or that somebody edited."""
    return trial_of(parse(text, name))


def trial_of(document: Document) -> Trial:
    """The trial in a document; errors point to its lines."""
    for key in document.data:
        if key not in ("seed", "fault"):
            raise document.unknown((key,), ("seed", "fault"))
    faults = document.data.get("fault", [])
    if not isinstance(faults, list):
        raise document.error(("fault",), shown(faults), "a list of faults")
    templates = [read_fault(document, ("fault", number), found) for number, found in enumerate(faults)]
    made = tuple(exact(document, template) for template in templates)
    try:
        return Trial(seed=document.data.get("seed", 0), faults=made)
    except FaultError as error:
        raise document.at(error, ()) from None
