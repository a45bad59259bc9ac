"""The kernel's ``mm/``: one module for each kernel file that it models, with the kernel's names.

Modules here import each other as modules (``from emulator.mm import rmap``) and call
``rmap.anon_vma_clone(...)``: a kernel image (``emulator.image``) loads a private copy of all of them for each
design, and a design replaces a function by setting it on its module. A name imported from a module
(``from emulator.mm.rmap import anon_vma_clone``) would escape the replacement; a test forbids it.
"""
