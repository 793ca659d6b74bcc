"""Experiments: one guest, the same loads, under one policy after the other, and a table of what it cost.

==================  =====================================================================
``workloads``       what a guest can be asked, and how the answers are judged
``schedule``        what is compared, and in which order, so that drift favours nobody
``subject``         a guest to be measured: alone, or protected by a pair
``loadgen``         our own client, ``client/*.c``: compiled at first use, judges every answer
``foreign``         the clients of others: redis-benchmark, wrk
``outcome``         what a client saw, whichever it was
``measurement``     one load on one subject, with what the subject counted meanwhile
``failover``        ``kill -9`` under load: silence, and who survived
``results``         the records that come of both, and how rounds become one line
``experiment``      all of it in order
``table``           for people; ``export`` for programs; ``plot`` for both
``conditions``      the machine that it ran on
==================  =====================================================================

**The path of a load.**  Clients run in the pair's network namespace, where the guest is one bridge away
(:mod:`colo.network.links`): client, bridge, TAP, guest.  A client of a published port comes the same way
with one more process before it, the forwarder (:mod:`colo.network.forward`), whose cost is the same under
every policy and would only hide what is asked.  The unprotected guest is reached over the very same bridge.

``colo compare-policies`` is the command line of this.
"""
