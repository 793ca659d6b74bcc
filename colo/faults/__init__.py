"""Faults as values: what can go wrong, plans of it, the trials of a plan, and the search for the smallest.

Read in this order.  Nothing here runs a machine, but for what is said to.

====================  ==========================================================================
``model.py``          kinds of faults, trials, outcomes; ``triggers.py`` when and how long;
                      ``bases.py`` what kinds have in common; ``delay.py`` distributions of delays
``fields.py``         what a field may hold, declared once; ``errors.py`` how wrong values are said
``text.py``           a trial as JSON or TOML, and back
``plan.py``           a plan; ``document.py``, ``toml_lines.py``, ``yaml_lines.py`` its file with lines;
                      ``choices.py`` ranges, lists, distributions; ``templates.py`` a fault with choices
``golden.py``         what is known of the run without faults; ``wildcards.py`` what ``"*"`` stands for
``expand.py``         a plan made into trials, drawn; ``grid.py`` every combination
``shrink.py``         the smallest trial that still fails
``coverage.py``       what has been seen of (state, message, fault); ``explore.py`` trials led by it
``strategies.py``     all of this for Hypothesis
====================  ==========================================================================
"""
