"""The designs of the field, and how a user's own is found (entry point group ``vmafuzz.designs``, or a file)."""
