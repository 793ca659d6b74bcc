"""Numbers that native callbacks and plain Python share, importable without numba."""

CPUID_ANY_SUBLEAF = -1
CPUID_ROW_WORDS = 6
PHYSICAL_BITS = 40
"""MAXPHYADDR: 1 TiB."""
