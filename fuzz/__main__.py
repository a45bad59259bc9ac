"""``python -m fuzz``: the command ``vmafuzz``."""

from fuzz.cli import main

main()
