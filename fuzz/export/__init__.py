"""Workloads as programs of their own, with what to expect at each step: what to send to people who have no vmafuzz."""
