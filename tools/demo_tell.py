"""How the story of a pair is told: its order, what comes after it, and that nothing is left of it.

Ctrl-C, SIGTERM (which is what ``colo stop`` sends) and SIGHUP end it at any moment; whatever was started
ends first, and a second Ctrl-C cannot cut that short, because nodes outlive a supervisor that is cut
short.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.demo_guest import ROOT, DemoFailed
from tools.demo_lines import Steps
from tools.demo_pair import LOOK_S, NAME, REDIS, SETTLE_S, Plan, Story

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def tell(story: Story, keep: bool) -> bool:
    """The whole story; whether all was right."""
    seconds = story.plan.seconds
    await story.form()
    await story.call_witness()
    await story.count(seconds, "counted")
    await story.kill("primary")
    await story.count(seconds / 2, "counted again")
    await story.kill("secondary")
    if keep:
        await stay(story)
    else:
        await story.count(seconds / 4, "after all")
        for policy in ("lockstep", "colo"):
            await story.change_policy(policy)
            await story.count(seconds / 4, policy)
    return await story.judge()


async def stay(story: Story) -> None:
    """Leave it running, and show what becomes of it, until somebody says so."""
    for line in invitation(story):
        story.steps.say(line)
    task = asyncio.current_task()
    assert task is not None
    try:
        while True:
            await watch(story)
    except asyncio.CancelledError:
        task.uncancel()  # it is the way to go on: to the verdict


async def watch(story: Story) -> None:
    """One event of the pair, or a moment without."""
    story.traces.trim()
    try:
        said = await story.next(LOOK_S)
    except TimeoutError:
        await story.show_live()
        return
    facts = said.facts
    match said.event:
        case "colo-exit":
            if not facts["running"]:
                return  # the one that lost
            story.tell_parting(facts)
            await asyncio.sleep(SETTLE_S)
            story.steps.note(story.witness.sentence(await story.witness.phase("kept")))
        case "protected":
            story.tell_secondary("secondary", facts, "protected again")
        case "guest-ended":
            raise DemoFailed(f"pair {NAME}: the guest ended ({facts.get('reason')})")


def invitation(story: Story) -> list[str]:
    runtime = os.environ.get("COLO_RUNTIME")
    colo = colo_words(Path("/"))  # whatever folder the other terminal is in
    if runtime is not None:
        colo = f"COLO_RUNTIME={Path(runtime).absolute()} {colo}"
    lines = ["it goes on; in another terminal (and watch what is said here):"]
    if story.port is not None:
        missing = "" if shutil.which("redis-cli") else "        (apt install redis-tools)"
        lines.append(f"  redis-cli -p {story.port}{missing}")
    lines += [f"  {colo} {words}" for words in (f"status {NAME}", f"kill primary {NAME}")]
    return [*lines, f"  {colo} stop {NAME}         or Ctrl-C here"]


async def act(plan: Plan, keep: bool, steps: Steps, found: dict[str, Any]) -> bool:
    """Tell it, and leave nothing behind; ``found`` is filled on the way."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    with tempfile.TemporaryDirectory(prefix="colo-demo-") as traces:
        story = Story(plan, steps, Path(traces))
        found |= {"facts": story.facts, "port": story.port}
        closing = False

        def interrupt() -> None:
            if not closing:
                task.cancel()

        for number in SIGNALS:
            loop.add_signal_handler(number, interrupt)
        try:
            return await tell(story, keep)
        finally:
            closing = True
            steps.clear()
            await story.close()


def following(network: str, port: int | None) -> str:
    """What can be typed when nothing is left running."""
    colo, demo = colo_words(), shown(ROOT / "tools/demo")
    up = f"redis --publish {port}{'' if port == REDIS.port else f':{REDIS.port}'}"
    if network == "hub":
        up = "counter --network hub"
    return f"next: {demo} --keep · {colo} up {up} · {demo} --guest linux"


def following_guest(name: str) -> str:
    """The same after one machine."""
    colo = colo_words()
    return f"next: {colo} run {name} · {colo} guest list · {shown(ROOT / 'tools/demo')}"


def shown(path: Path, here: Path | None = None) -> str:
    """A program as it is typed ``here``, which is where this one was started."""
    here = (here or Path(os.environ.get("COLO_DEMO_FROM", "."))).absolute()
    inside = path.is_relative_to(here) and here != Path("/")
    return str(path.relative_to(here)) if inside else str(path)


def colo_words(here: Path | None = None) -> str:
    """What stands for ``colo`` in a command line."""
    program = Path(sys.executable).with_name("colo")
    found = shutil.which("colo")
    return "colo" if found is not None and Path(found).samefile(program) else shown(program, here)
