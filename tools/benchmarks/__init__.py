"""What ``tools/bench`` measures: this machine beside QEMU's TCG, in one run, on one host.

One module a section: boot, cpu, net, blk, costs, snapshot.  Each has a ``measure(run: Run)`` that starts
both emulators in turn (ours, QEMU, ours, QEMU ...), so that what else the host does meets both, and
fills :class:`measure.Measure` objects.  ``emulator`` starts either one as a process with its serial
console on a pipe and is the only place that knows their command lines; ``ours`` is what runs in our
process.
"""
