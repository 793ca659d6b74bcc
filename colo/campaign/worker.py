"""A worker: the program that a campaign starts once per core, here or, through Dask, elsewhere.

Ctrl-C is for the campaign, which lets its workers go by closing their input.  A worker whose campaign was
killed ends with the trial that it is at.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing

import msgspec

from colo.campaign import kinds
from colo.campaign.wire import Channel, Done, Job, Numbered, Refused
from colo.errors import ColoError
from vmm.errors import VmmError


def serve(channel: Channel) -> None:
    """A job, then trials, until nobody asks any more."""
    name = f"{os.uname().nodename}:{os.getpid()}"
    data = channel.receive()
    if data is None:
        return
    job = msgspec.msgpack.decode(data, type=Job)
    try:
        with closing(kinds.server(job.golden, job.wall_limit_s, _say)) as server:
            while (data := channel.receive()) is not None:
                wanted = msgspec.msgpack.decode(data, type=Numbered)
                report = server.run(wanted.trial, wanted.policy)
                channel.send(Done(wanted.number, report, name, wanted.policy))
    except (ColoError, VmmError) as exc:
        channel.send(Refused(str(exc)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nothing that prints may end up among the messages.
    write = os.dup(1)
    os.dup2(2, 1)
    try:
        serve(Channel(0, write))
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
