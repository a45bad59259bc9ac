"""The machine: MMU, physical memory, VMAs, reverse map, tasks.

This package knows nothing of oracles or fuzzing; see ARCHITECTURE.md for the direction of imports.
"""
