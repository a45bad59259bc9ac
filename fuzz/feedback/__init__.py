"""What a run tells the fuzzing engine: which code ran how often, and which states it met."""
