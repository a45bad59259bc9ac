"""Makes workloads, runs campaigns, records, minimises, reports."""
