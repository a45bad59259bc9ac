"""What real programs do: recording them, reading recordings made elsewhere, replaying them in the machine."""
