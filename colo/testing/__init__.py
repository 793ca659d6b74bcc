"""What the pytest plugin (:mod:`colo.pytest_plugin`) consists of; its docstring is the manual.

Nothing here is imported before a test asks for it: a plugin is loaded by every run of pytest on a machine
where it is installed.

=============  ==================================================================================
asked          the marker: what a test asks for, checked; seeds and faults of a run
booted         guests that are booted once for all workers of a session
subjects       the machine, pair or world of a test, and what it can tell afterwards
failure        what is shown of a test that failed, and the files beside it
again          running a test's body again, with fewer faults
=============  ==================================================================================
"""
