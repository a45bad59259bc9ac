"""The wire form: canonical, lossless, and safe to feed with anything."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emulator.errors import UsageError
from emulator.workload import OPS, STEPS_MAX, Op, Step, Switch, Workload
from fuzz.workload import wire
from fuzz.workload.wire import MAGIC, SIZE_MAX, VERSION, decode, encode, upgrade
from tests.fuzz.strategies import encodable, generated, quick, seeds

MMAP = [1, 0, 4, 8, 3, 18, 0, 0]
READ = [8, 0, 4]


def packed(
    *steps: Any, geometry: object = "small8", version: object = VERSION, magic: object = MAGIC
) -> bytes:
    data: bytes = msgpack.packb([magic, version, geometry, list(steps)])
    return data


@quick
@given(encodable())
def test_round_trip(workload: Workload) -> None:
    """A corpus file gives back exactly the workload that was written."""
    assert decode(encode(workload)) == workload


@quick
@given(seeds)
def test_generated_workloads_fit(seed: int) -> None:
    """What a campaign makes is within the limits of the format."""
    data = encode(generated(seed))
    assert len(data) <= SIZE_MAX
    assert encode(decode(data)) == data


def test_golden_bytes() -> None:
    """The format does not change unnoticed: old corpora must stay readable."""
    workload = Workload(
        "small8",
        (
            Step((Op("mmap", 0, (4, 8, 3, 18, 0, 0)),)),
            Step((Op("mremap", 1, (4, 8, 8, 11, 64), 3),)),
            Step(
                (Op("read", 0, (4,)), Op("gup_fast", 2, (5, 3, 0))),
                (Switch(1, "gup_fast.pte_read", 2), Switch(0, "end", 1)),
            ),
        ),
    )
    document = [
        "vmafuzz",
        1,
        "small8",
        [
            [1, 0, 4, 8, 3, 18, 0, 0],
            [3, 1, 4, 8, 8, 11, 64, 3],
            [[[8, 0, 4], [11, 2, 5, 3, 0]], [[1, "gup_fast.pte_read", 2], [0, "end", 1]]],
        ],
    ]
    assert encode(workload) == msgpack.packb(document)
    assert encode(workload).hex() == (
        "94a7766d6166757a7a01a6736d616c6c3893"  # 4 parts: vmafuzz 1 small8, 3 steps
        "980100040803120000"  # mmap
        "9803010408080b4003"  # mremap, fail_nth 3
        "9292"  # a collision of 2 ops
        "93080004950b02050300"  # read, gup_fast
        "929301b16775705f666173742e7074655f7265616402"  # 1 until gup_fast.pte_read x2
        "9300a3656e6401"  # 0 until end
    )


def test_codes_are_stable() -> None:
    """A code on the wire means one operation for ever; new operations get new codes."""
    assert {kind: spec.code for kind, spec in OPS.items()}.items() >= {
        "mmap": 1,
        "munmap": 2,
        "mremap": 3,
        "mprotect": 4,
        "madvise": 5,
        "fork": 6,
        "exit": 7,
        "read": 8,
        "write": 9,
        "exec": 10,
        "gup_fast": 11,
        "gup_slow": 12,
        "unpin": 13,
        "pin_write": 14,
        "reclaim": 15,
        "swap_readahead": 16,
        "migrate": 17,
    }.items()
    assert len({spec.code for spec in OPS.values()}) == len(OPS)


def test_other_spellings_become_canonical() -> None:
    """Wide integers and a written-out fail_nth of 0 decode, and encode to the one canonical spelling."""
    wide_four = bytes([0xCD, 0x00, 0x04])
    data = packed([8, 0, 77, 0]).replace(bytes([77]), wide_four)
    workload = decode(data)
    assert workload == Workload("small8", (Step((Op("read", 0, (4,)),)),))
    assert encode(workload) == packed(READ)
    assert len(encode(workload)) < len(data)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (packed(READ, READ, READ, [1, 0, 4, 900, 3, 18, 0, 0]), "step 3: mmap: len 900 is outside 0..192"),
        (packed([8, 4, 4]), "step 0: read: process 4 is outside 0..3"),
        (packed([8, 0, True]), "step 0: read: addr is no integer but True"),
        (packed([8, 0, 4.0]), "step 0: read: addr is no integer but 4.0"),
        (packed([8, 0, [1]]), "step 0: read: addr is no integer but a list"),
        (packed([8, 0, -1]), "step 0: read: addr -1 is outside 0..191"),
        (packed([8, 0, 2**63]), "step 0: read: addr 9223372036854775808 is outside 0..191"),
        (packed([5, 0, 4, 1, 7]), "step 0: madvise: advice 7 is not one of 0, 1, 2, 3"),
        (packed([1, 0, 4, 8, 3, 32, 0, 0]), "step 0: mmap: flags 32 is not made of the bits 0x12e11b"),
        (packed([6, 0, 0]), "step 0: fork: child 0 is outside 1..3"),
        (packed([8, 0, 4, 256]), "step 0: read: fail_nth 256 is outside 0..255"),
        (packed([8, 0, 4, "1"]), "step 0: read: fail_nth '1' is outside 0..255"),
        (packed([8, 0]), "step 0: read: 1 arguments after code and process, this has 0"),
        (packed([8]), "step 0: read: 1 arguments after code and process, this has 0"),
        (packed([8, 0, 4, 0, 0]), "step 0: read: 1 arguments after code and process, this has 3"),
        (packed([99, 0]), "step 0: unknown operation 99"),
        (packed(["mmap", 0]), "step 0: unknown operation 'mmap'"),
        (packed([]), "step 0: a step is an op or a collision, not a list"),
        (packed(7), "step 0: a step is an op or a collision, not 7"),
        (packed(READ, [[READ], []]), "step 1: a collision has 2 to 3 ops, this has 1"),
        (packed([[READ] * 4, []]), "step 0: a collision has 2 to 3 ops, this has 4"),
        (packed([[READ, READ]]), "step 0: a collision is a list of ops and a list of schedule entries"),
        (packed([[READ, READ], 3]), "step 0: a collision is a list of ops and a list of schedule entries"),
        (packed([[READ, [8, 0, 500]], []]), "step 0: op 1: read: addr 500 is outside 0..191"),
        (packed([[READ, 5], []]), "step 0: op 1: not an operation: 5"),
        (
            packed([[READ, READ], [[2, "a.b", 1]]]),
            "step 0: schedule: there is no op 2 in this collision of 2",
        ),
        (packed([[READ, READ], [[0, "A b", 1]]]), "step 0: schedule: 'A b' is no name of a preemption point"),
        (packed([[READ, READ], [[0, "a.b", 0]]]), "step 0: schedule: nth 0 is outside 1..999"),
        (packed([[READ, READ], [[0, "a.b"]]]), "step 0: a schedule entry is [op, point, nth], not a list"),
        (packed([[READ, READ], [[0, "a.b", 1]] * 9]), "step 0: schedule: 9 switches are too many"),
        (packed(*[READ] * (STEPS_MAX + 1)), "65 steps are too many, 64 is the most"),
        (packed(READ, geometry="big"), "unknown geometry 'big'; there are small8, small4, x86-64"),
        (packed(READ, geometry=["small8"]), "unknown geometry a list"),
        (packed(READ, magic="elf"), 'not a workload: it does not begin with "vmafuzz"'),
        (packed(READ, version=2), "version 2 is newer than this vmafuzz, which reads up to 1"),
        (packed(READ, version=0), "version 0 is unknown"),
        (packed(READ, version="1"), "the version is no number but '1'"),
        (packed(READ, version=True), "the version is no number but True"),
        (packed(READ) + b"\x00", "unpack(b) received extra data"),
        (packed(READ)[:-1], "incomplete input"),
        (b"", "incomplete input"),
        (b"\xc1", "malformed"),
        (b"\x91" * 2000, "nested too deeply"),
        (b"\xdd\xff\xff\xff\xff", "4294967295 exceeds max_array_len"),
        (b"\xdb\xff\xff\xff\xff", "incomplete input"),
        (b"\xc6\xff\xff\xff\xff", "incomplete input"),
        (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\xd8\x05" + b"\0" * 16, "exceeds max_ext_len"),
        (b"\xdc\x01\x00" * 20_000, "not the msgpack of a workload"),
        (b"\x80", "not a workload"),
        (b"\x91\xa7vmafuzz", "not a workload"),
        (msgpack.packb([MAGIC, 1]), "a workload has 4 parts (magic, version, geometry, steps), not 2"),
        (msgpack.packb([MAGIC, 1, "small8", 3]), "the steps are no list but 3"),
        (msgpack.packb([MAGIC, 1, "small8", [], 0]), "a workload has 4 parts"),
        (b"\xa2\xff\xfe", "not the msgpack of a workload"),
        (b"\x00" * (SIZE_MAX + 1), "65537 bytes are too many for a workload, 65536 is the most"),
    ],
)
def test_bad_bytes(data: bytes, complaint: str) -> None:
    """Whatever is wrong with a file, one short line says what and where, at once."""
    begin = time.process_time()
    with pytest.raises(UsageError) as refused:
        decode(data)
    assert time.process_time() - begin < 1
    message = str(refused.value)
    assert complaint in message
    assert "\n" not in message
    assert len(message) < 200


def _accepts(data: bytes) -> bool:
    try:
        workload = decode(data)
    except UsageError:
        return False
    assert decode(encode(workload)) == workload
    return True


@quick
@given(st.binary(max_size=200))
@example(b"\x94\xa7vmafuzz\x01\xa6small8\x90")
def test_any_bytes(data: bytes) -> None:
    """No bytes at all raise anything but UsageError, and what is accepted is canonical afterwards."""
    _accepts(data)


def test_damaged_files() -> None:
    """Real files with flipped, lost and doubled bytes: refused or accepted as another workload, no crash."""
    rng = Random(2)
    accepted = refused = 0
    for seed in range(30):
        good = encode(generated(seed))
        for _ in range(60):
            data = bytearray(good)
            place = rng.randrange(len(data))
            change = rng.randrange(5)
            if change < 2:
                data[place] ^= 1 << rng.randrange(3)
            elif change == 2:
                data[place] = rng.randrange(256)
            elif change == 3:
                del data[place]
            else:
                data.insert(place, data[place])
            if _accepts(bytes(data)):
                accepted += 1
            else:
                refused += 1
    assert accepted > 100  # the test reaches both
    assert refused > 100


def test_upgrade_goes_through_every_version() -> None:
    """A file of an old version becomes a current one, one version at a time."""

    def names_to_codes(document: tuple[Any, ...]) -> tuple[Any, ...]:
        steps = tuple([(OPS[step[0]].code, *step[1:]) for step in document[3]])
        return (*document[:3], steps)

    def world_to_geometry(document: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*document[:2], {"tiny": "small4"}[document[2]], document[3])

    old = (MAGIC, -1, "tiny", (("read", 0, 4),))
    new = upgrade(old, {-1: world_to_geometry, 0: names_to_codes}, 1)
    assert new[2:] == ("small4", ((8, 0, 4),))
    with pytest.raises(UsageError, match="version -2 is unknown; the oldest that can be read is -1"):
        upgrade((MAGIC, -2), {-1: world_to_geometry, 0: names_to_codes}, 1)


def test_decode_upgrades(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading itself applies the table, so an old corpus needs no conversion."""
    monkeypatch.setitem(wire.UPGRADES, 0, lambda document: (*document[:2], "small4", document[2]))
    data = msgpack.packb([MAGIC, 0, [READ]])
    assert decode(data) == Workload("small4", (Step((Op("read", 0, (4,)),)),))


def test_decoding_is_fast() -> None:
    """Sixteen steps decode in well under a tenth of what running them costs."""
    data = encode(generated(1, steps=16))
    rounds = 200
    best = min(_seconds(data, rounds) for _ in range(5)) / rounds
    assert best < 300e-6  # 40 us on an idle machine; room for a loaded one


def _seconds(data: bytes, rounds: int) -> float:
    begin = time.process_time()
    for _ in range(rounds):
        decode(data)
    return time.process_time() - begin
