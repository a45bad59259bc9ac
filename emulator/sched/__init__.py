"""Tasks, locks, schedules and preemption points."""
