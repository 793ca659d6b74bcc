"""Lock-step replication by an input log, without I/O.

A deterministic machine is a function of its start state and of what it was given when (:mod:`vmm.record`).
The primary's door writes down every input with its virtual time (:mod:`colo.lockstep.writer`); the
secondary's door gives its guest the same at the same times (:mod:`colo.lockstep.reader`) and lets it run
no further than the primary is known to have come, the *frontier*.

**What may be said before the commit, and why it is safe.**  An output of the primary may go when the
secondary holds the log up to it: every input that came before it, and a frontier that is not before it
(the output rule of Scales, Nelson and Venkitachalam, "The Design of a Practical System for Fault-Tolerant
Virtual Machines", SIGOPS OSR 44(4), 2010, section 2.2).  Let the primary die then.  The survivor follows
the log to its end before it listens to anybody; until the frontier it was given what the primary was
given, so it says what the primary said, at the same virtual times.  Inputs alone would not do: a survivor
that went live at the last of them might be given something new *before* the virtual time of an output
that the world has heard.

**Held by the secondary** means: nothing that happens to the primary can take it back.  What a Unix socket
took lies in the other end's queue and outlives its sender.  Over TCP it is what was acknowledged.

**The fence.**  A survivor shuts the log for its sender before it reads it to the end.  From then on no
word of the primary is taken, or acknowledged, so a primary that still lives cannot say anything that the
survivor has not seen.
"""
