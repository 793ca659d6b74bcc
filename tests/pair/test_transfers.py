"""Bulk data, to the guest and from it at once, while both nodes die in turn: no byte is lost or changed."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.network.support import needs_root
from tests.pair.crowd import forget
from tests.pair.service import POLICIES, Service, by_policy
from tests.pair.transfers import Download, Upload

pytestmark = needs_root

SEED = 6
SIZE = 1_500_000
PART = 300_000


@by_policy
def test_every_byte_arrives(serve: Callable[[str], Service], policy: str) -> None:
    choice = random.Random(SEED)
    service = serve("kv")
    primary, secondary = service.pair(*POLICIES[policy])
    socks = service.connect(), service.connect()
    both = Download(socks[0], SIZE), Upload(socks[1], SIZE)
    try:
        for each in both:
            each.start()
        for _ in range(2):
            for each in both:
                each.moved(choice.randrange(PART))
            primary.kill()
            for each in both:
                each.moved(PART)
            primary, secondary = secondary, service.protect_again(secondary, *POLICIES[policy])
        secondary.kill()
        for each in both:
            each.moved(PART)
        for each in both:
            each.finish()
            assert each.whole
    finally:
        for each in both:
            each.close()
        for sock in socks:
            forget(sock)
