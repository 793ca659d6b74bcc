"""What ``tools/bench`` measures: this machine beside QEMU's TCG, in one run, on one host.

One module a section: boot, cpu, net, blk, costs, snapshot.  Each has a ``measure(run: Run)`` that starts
both emulators in turn (ours, QEMU, ours, QEMU ...), so that what else the host does meets both, and
fills :class:`measure.Measure` objects.  ``emulator`` starts either one as a process with its serial
console on a pipe and is the only place that knows their command lines; ``ours`` is what runs in our
process.

The sections checkpoint, ram, failover and setup are about protected guests.  They start ``colo up``
(``protected``), take what it says and the traces of its nodes, and fill :class:`figures.Figure` objects,
beside what QEMU's own COLO once showed (``qemu_colo``); ``redis_client`` is their client.
"""
