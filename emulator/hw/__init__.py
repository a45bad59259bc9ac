"""The hardware: page-table entries and tables, TLBs, physical frames, the swap device."""
