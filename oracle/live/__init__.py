"""The live oracle: the same workload on the running Linux, compared with the machine step by step."""
