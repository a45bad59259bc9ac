"""The same workloads and recordings under several designs, and what each gains, costs and breaks."""
