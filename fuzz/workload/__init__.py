"""Workloads as data: wire form, text form, generator, mutator, repair.

All of it is driven by ``emulator.workload.OPS``; ``domains`` says what values each argument may take.
"""
