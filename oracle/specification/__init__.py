"""The serial model that every outcome is held to: what a process may see, page by page (``state.py`` says how).

One module for each group of calls; none of them knows VMAs, anon_vmas or page tables, or reads the machine.
"""
