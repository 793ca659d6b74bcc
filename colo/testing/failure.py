"""What is shown of a test that failed, and the files that lie beside it.

The text has what is needed to see what happened and to make it happen again: seed, faults, the last lines of
logs and consoles, where the files are, and the command.  It is a section of pytest's report, so that it goes
wherever reports go: the terminal, a worker's controller, JUnit XML.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colo.faults.model import Trial
    from colo.faults.shrink import Shrunk
    from colo.testing.asked import Asked
    from colo.testing.subjects import Witness

TITLE = "colo"
NAME_MAX = 120
"""Characters of a directory's name, which file systems limit to 255 bytes."""


@dataclass
class Run:
    """One run of one test."""

    nodeid: str
    asked: Asked
    trial: Trial
    directory: Path
    """Where its files go if it fails; made then."""
    witnesses: list[Witness] = field(default_factory=list)

    @property
    def replay(self) -> str:
        """What to type to run this once more."""
        return f"pytest {shlex.quote(self.nodeid)} --colo-seed {self.trial.seed} --colo-runs 1"


def explain(run: Run) -> str:
    """The text about a run that has just failed; writes the files.

    What the host refuses (a full disk) or a machine cannot tell any more takes the place of the text: the
    failure itself is shown in any case.
    """
    from colo.errors import ColoError
    from vmm.errors import VmmError

    try:
        return _explained(run)
    except (OSError, ColoError, VmmError) as exc:
        return f"seed {run.trial.seed}; nothing more could be written: {exc}\nagain: {run.replay}"


def _explained(run: Run) -> str:
    from colo.faults.text import to_toml

    lines = [f"seed {run.trial.seed}" + (f", guest {run.asked.guest}" if run.asked.guest else "")]
    files = _write(run, to_toml(run.trial))
    if run.trial.faults:
        lines += _titled(f"faults: {len(run.trial.faults)}", to_toml(run.trial).splitlines()[2:])
    for witness in run.witnesses:
        for title, told in witness.tail():
            lines += _titled(title, told)
    lines += [f"files in {run.directory}: {', '.join(files)}", f"again: {run.replay}"]
    return "\n".join(lines)


def explain_shrunk(run: Run, shrunk: Shrunk) -> str:
    """The smallest trial that fails in the same way; kept as a file, too."""
    from colo.faults.text import to_toml

    text = to_toml(shrunk.trial)
    (run.directory / "smallest.toml").write_text(text)
    minimal = "no smaller one does" if shrunk.minimal else "there may be a smaller one"
    count = len(shrunk.trial.faults)
    title = f"{count} of {len(run.trial.faults)} faults fail in the same way, {minimal} ({shrunk.runs} runs)"
    return "\n".join(_titled(title, text.splitlines()[2:]))


def directory_name(nodeid: str) -> str:
    """A test's own name for its directory."""
    return re.sub(r"[^\w.-]+", "-", nodeid).strip("-")[-NAME_MAX:]


def _write(run: Run, plan: str) -> list[str]:
    run.directory.mkdir(parents=True, exist_ok=True)
    (run.directory / "trial.toml").write_text(plan)
    (run.directory / "replay.txt").write_text(run.replay + "\n")
    for witness in run.witnesses:
        witness.write(run.directory)
    return sorted(each.name for each in run.directory.iterdir())


def _titled(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {line}".rstrip() for line in lines)]
