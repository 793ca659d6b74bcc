"""Campaigns: one golden run, thousands of trials forked from it, an outcome for each.  Read in this order.

====================================  ==============================================================
``scenario.py``, ``planned.py``       what every run does besides its faults; the same from a plan file
``subject.py``                        the machine on its way through it
``golden.py``, ``touched.py``         the run without faults, and what wildcards draw from it
``injection.py``, ``trial.py``        faults armed in a child; rejoining the golden run
``outcome.py``                        what a trial came to, and by which rules
``fork_server.py``, ``walker.py``     the process that forks trials; of a machine, on the golden run's way
``scenery.py``, ``scene.py``          a plan's worlds (:mod:`colo.sim`) and golden runs; one world on its way
``noticed.py``, ``world.py``          what a pair says of itself; outcomes of worlds, who forks their trials
``kinds.py``                          what differs between the two
``wire.py``, ``worker.py``            a worker process and what is said to it
``workers.py``, ``cluster.py``        workers of this host; of a Dask cluster
``results.py``, ``table.py``          a row a trial, and the table of outcomes
``campaign.py``                       all of that in a directory, begun or gone on with
``replay.py``, ``explain.py``         one trial again, and where it leaves the golden run
``world_replay.py``, ``timeline.py``  the same for a world; a run as a timeline and as packets
``exploring.py``                      trials of a world chosen by what earlier ones reached: ``colo explore``
====================================  ==============================================================

Why a fork server: a snapshot that is resumed for each trial costs the start of a process, cold RAM and every
block of guest code translated anew, before the first instruction; a child has all of it, copy-on-write.  Why
exact comparison is possible at all: the machine is deterministic, so every difference is the fault's.
"""
