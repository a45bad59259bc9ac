"""What a campaign begins with: the project's seed workloads, and new ones from the generator."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

from emulator.errors import UsageError
from fuzz import files
from fuzz.workload import wire
from fuzz.workload.generate import Generator

GENERATED: Final = 48

# Beside the packages in a checkout; a plain installation has none, and begins with the generated ones.
FOLDER: Final = Path(__file__).resolve().parents[2] / "corpus" / "seeds"


def seed_inputs(seed: int, mremap_flags: int = 0) -> list[bytes]:
    """Canonical bytes, each once. Raises ``UsageError`` that names a seed file which is no workload."""
    inputs = []
    for path in sorted(FOLDER.rglob("*.msgpack")):
        try:
            inputs.append(wire.encode(wire.decode(files.read_bytes(path, wire.SIZE_MAX))))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
    generator = Generator(Random(seed), mremap_flags_extra=mremap_flags)
    inputs += [wire.encode(generator.generate()) for _ in range(GENERATED)]
    return list(dict.fromkeys(inputs))
