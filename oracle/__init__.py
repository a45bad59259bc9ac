"""The oracles: each says whether what the machine did keeps one kind of promise.

Every oracle is independent of the code that it judges. It reads the machine's data (VMAs, page tables, folios,
swap slots, TLBs, and the hardware's log of page-table stores) and never calls a kernel image. What it finds is
a value, a ``Finding``; an exception that leaves an oracle is a mistake of ours.

``Judge`` (``oracle.judge``) runs a workload with all of them:

================== =========================================================================================
``specification``  a per-page model without VMAs, anon_vmas or page tables: results, contents, permissions
``collision``      the result of a collision equals some serial order of its operations
``differential``   the same workload on a reference design, in step
``undo``           a relocation that fails leaves what the plain move leaves
``rmap``           the places that a reverse-map walk finds are the places that map the folio
``lifetime``       reference, map, pin and swap counts recounted; use after free; leaks
``ksm``            what the same-page scanner remembers, and the contents of the pages that it merged
``structure``      VMA trees, page tables against VMAs, exclusive pages
``accounting``     total_vm and its parts, committed pages, recounted
``tlb``            no translation outlives the flush that was due
================== =========================================================================================
"""
