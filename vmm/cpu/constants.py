"""Numbers that native callbacks and plain Python share, importable without numba."""

CPUID_ANY_SUBLEAF = -1
CPUID_ROW_WORDS = 6
PHYSICAL_BITS = 40
"""MAXPHYADDR: 1 TiB."""

BLOCK_ROW_BITS = 13
BLOCK_ROWS, BLOCK_ROW_SIZE = 1 << BLOCK_ROW_BITS, 32
"""The table of blocks (vmm.cpu.block_table)."""

JUMP_LINE_BITS = 12
JUMP_LINES, JUMP_LINE_SIZE, JUMP_ROW_SIZE = 1 << JUMP_LINE_BITS, 64, 32
JUMP_PAGES_SIZE = 512
FIRST_GENERATION = 1 << 32
"""The jump cache, the bytes that note its pages, and what a generation adds to a key (vmm.cpu.jump_cache)."""

TLB_NOTES_MAX = 510
TLB_NOTES_SIZE = 8 * (2 + TLB_NOTES_MAX)
"""What is noted of one TLB (vmm.cpu.tlb_flush)."""
