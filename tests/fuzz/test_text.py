"""The text form: lossless, aligned, and helpful when somebody mistypes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.errors import UsageError
from emulator.workload import OPS, SCHEDULE_MAX, STEPS_MAX, Domain, Op, Step, Switch, Workload
from fuzz.workload.domains import OP_DOMAINS
from fuzz.workload.symbols import parse_value, show_value
from fuzz.workload.text import TEXT_MAX, from_text, show_op, to_text
from tests.fuzz.strategies import encodable, generated, quick, seeds

GOLDEN = """\
world small8
mmap     addr=4 len=8 prot=rw flags=private|fixed
mmap     addr=12 len=2 prot=r flags=shared|fixed|noreserve file=file1 off=3
write    addr=4 at=0
fork     child=1
p1: read     addr=4
p1: swap_readahead addr=4
mremap   addr=4 old_len=8 new_len=8 flags=maymove|fixed|relocate|must_relocate|0x20 new_addr=0 (fail_nth 3)
together
  mremap   addr=4 old_len=4 new_len=4 flags=maymove
  p1: gup_fast addr=5 flags=pin|write pin=0
  schedule 0 until relocate.folio_relocated x2, 1 until end, 0 until any
end
madvise  addr=0 len=8 advice=pageout
mprotect addr=0 len=1 prot=none
gup_slow addr=0 flags=none pin=1
unpin    pin=0
p1: exit
"""

WORKLOAD = Workload(
    "small8",
    (
        Step((Op("mmap", 0, (4, 8, 3, 0x12, 0, 0)),)),
        Step((Op("mmap", 0, (12, 2, 1, 0x4011, 2, 3)),)),
        Step((Op("write", 0, (4, 0)),)),
        Step((Op("fork", 0, (1,)),)),
        Step((Op("read", 1, (4,)),)),
        Step((Op("swap_readahead", 1, (4,)),)),
        Step((Op("mremap", 0, (4, 8, 8, 1 | 2 | 8 | 16 | 32, 0), 3),)),
        Step(
            (Op("mremap", 0, (4, 4, 4, 1, 0)), Op("gup_fast", 1, (5, 3, 0))),
            (Switch(0, "relocate.folio_relocated", 2), Switch(1, "end", 1), Switch(0, "", 1)),
        ),
        Step((Op("madvise", 0, (0, 8, 21)),)),
        Step((Op("mprotect", 0, (0, 1, 0)),)),
        Step((Op("gup_slow", 0, (0, 0, 1)),)),
        Step((Op("unpin", 0, (0,)),)),
        Step((Op("exit", 1, ()),)),
    ),
)


def test_golden() -> None:
    """The layout of the text is stable: people commit and diff it."""
    assert to_text(WORKLOAD) == GOLDEN
    assert from_text(GOLDEN) == WORKLOAD


@quick
@given(encodable())
def test_round_trip(workload: Workload) -> None:
    """Nothing that the wire carries is lost in the text."""
    assert from_text(to_text(workload)) == workload


@quick
@given(seeds)
def test_generated_round_trip(seed: int) -> None:
    """The same for what campaigns make; and lines stay readable in a terminal."""
    workload = generated(seed)
    text = to_text(workload)
    assert from_text(text) == workload
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("kind", sorted(OPS))
def test_every_value_has_a_name_that_reads_back(kind: str) -> None:
    """Flags, protections, advice and files: every allowed value, by its symbol."""
    for (_, domain), values in zip(OPS[kind].args, OP_DOMAINS["small8"][kind].values, strict=True):
        shown = {value: show_value(domain, value) for value in values}
        assert {value: parse_value(domain, text) for value, text in shown.items()} == {v: v for v in values}
        if domain in (Domain.ADVICE, Domain.FILE, Domain.PROT, Domain.MAP_FLAGS, Domain.GUP_FLAGS):
            assert not any(text[0].isdigit() for text in shown.values())


def test_hand_written() -> None:
    """What people type need not look as tools write it: spacing, comments, order, numbers, CRLF."""
    text = (
        "# why this is here\r\n\r\n"
        "world   small8   # a comment\r\n"
        "\tmmap len=0x8  addr=4 flags=fixed|private prot=wr off=0 file=anon # p0\n"
        "p1 :read addr=4\n"
        "p1:read addr=4(fail_nth 2)\n"
        "mremap addr=1 old_len=1 new_len=1 flags=1|0x2|relocate new_addr=9\n"
        "madvise addr=0 len=1 advice=21\n"
        "together\nschedule 1 until end\nread addr=1\nread addr=2\nschedule 0 until any x3\nend"
    )
    assert from_text(text) == Workload(
        "small8",
        (
            Step((Op("mmap", 0, (4, 8, 3, 0x12, 0, 0)),)),
            Step((Op("read", 1, (4,)),)),
            Step((Op("read", 1, (4,), 2),)),
            Step((Op("mremap", 0, (1, 1, 1, 11, 9)),)),
            Step((Op("madvise", 0, (0, 1, 21)),)),
            Step((Op("read", 0, (1,)), Op("read", 0, (2,))), (Switch(1, "end", 1), Switch(0, "", 3))),
        ),
    )


def test_long_schedules_wrap() -> None:
    """The longest schedule is shown in several lines and is still one schedule."""
    switches = tuple([Switch(n % 2, "relocate.folio_relocated", n + 1) for n in range(SCHEDULE_MAX)])
    workload = Workload("small4", (Step((Op("read", 0, (1,)), Op("read", 0, (2,))), switches),))
    text = to_text(workload)
    assert text.count("schedule") > 1
    assert from_text(text) == workload


W = "world small8\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", 'line 1: there is no "world" line; begin with "world small8"'),
        ("# only this\n", 'line 2: there is no "world" line'),
        ("read addr=4\n", "line 1: a workload begins with its world"),
        ("world big\n", "line 1: unknown world 'big'; there are small8, small4, x86-64"),
        (W + W, "line 2: the world is already known"),
        (W + "\nreed addr=4", "line 3: unknown operation 'reed'; there are mmap munmap"),
        (W + "read", "line 2: read: addr= is missing"),
        (W + "read addr", "line 2: read: 'addr' is not like name=value"),
        (W + "read addr=4 at=1", "line 2: read: there is no argument 'at'; it takes addr"),
        (W + "exit addr=4", "line 2: exit: there is no argument 'addr'; it takes none"),
        (W + "read addr=4 addr=5", "line 2: read: addr is given twice"),
        (W + "read addr=four", "line 2: read: addr: 'four' is no number"),
        (W + "read addr=-1", "line 2: read: addr: '-1' is no number"),
        (W + "read addr=1_0", "line 2: read: addr: '1_0' is no number"),
        (W + "read addr=٤", "line 2: read: addr: '\\u0664' is no number"),
        (W + "read addr=9999999999999", "line 2: read: addr: '9999999999999' is no number"),
        (W + "read addr=192", "line 2: read: addr '192' is outside 0..191"),
        (W + "munmap addr=1 len=193", "line 2: munmap: len '193' is outside 0..192"),
        (W + "p4: read addr=1", "line 2: process p4 is outside 0..3"),
        (W + "read addr=1 (fail_nth 256)", "line 2: read: fail_nth 256 is outside 0..255"),
        (W + "read addr=1 (fail 2)", "line 2: 'read addr=1 (fail 2)' is not like"),
        (W + "mprotect addr=1 len=1 prot=rr", "line 2: mprotect: prot: 'rr' is no protection"),
        (W + "mprotect addr=1 len=1 prot=", "line 2: mprotect: prot: '' is no protection"),
        (W + "madvise addr=1 len=1 advice=freeze", "there are normal random sequential willneed dontneed"),
        (W + "madvise addr=1 len=1 advice=7", "line 2: madvise: advice '7' is not one of 0, 1, 2, 3"),
        (W + "gup_fast addr=1 flags=read pin=0", "'read' is not a flag; there are pin write longterm"),
        (W + "gup_fast addr=1 flags= pin=0", "line 2: gup_fast: flags: '' is not a flag"),
        (W + "mmap addr=1 len=1 prot=r flags=0x20", "line 2: mmap: flags '0x20' is not made of the bits"),
        (W + "mremap addr=1 old_len=1 new_len=1 flags=256", "line 2: mremap: flags '256' is outside 0..255"),
        (W + "together\nread addr=1\nend", "line 4: a collision has 2 to 3 ops, this has 1"),
        (W + "together\nread addr=1\nread addr=1\n", 'line 5: the "together" of line 2 has no "end"'),
        (W + "together\ntogether\n", 'line 3: "together" within the "together" of line 2'),
        (W + "end", 'line 2: "end" without "together"'),
        (W + "schedule 0 until end", 'line 2: "schedule" belongs between "together" and "end"'),
        (W + "together\nschedule\n", "line 3: schedule: '' is not like"),
        (W + "together\nschedule 0 till end\n", "line 3: schedule: '0 till end' is not like"),
        (W + "together\nschedule 0 until end,\n", "line 3: schedule: '' is not like"),
        (W + "together\nschedule 0 until pte\n", "line 3: schedule: 'pte' is no name of a preemption point"),
        (W + "together\nschedule 0 until a.b x0\n", "line 3: schedule: x0 is outside 1..999"),
        (
            W + "together\nread addr=1\nread addr=1\nschedule 2 until end\nend",
            "line 6: the schedule speaks of op 2, but the ops are 0 to 1",
        ),
        (
            W + "together\nread addr=1\nread addr=1\nschedule " + ", ".join(["0 until end"] * 9) + "\nend",
            "line 6: a schedule has at most 8 switches, this has 9",
        ),
        (W + "read addr=1\n" * (STEPS_MAX + 1), f"line {STEPS_MAX + 2}: more than {STEPS_MAX} steps"),
        ("#" * (TEXT_MAX + 1), "characters are too many for a workload"),
    ],
)
def test_mistakes(text: str, complaint: str) -> None:
    """Every mistake is told in one line that names the line of the text."""
    with pytest.raises(UsageError) as refused:
        from_text(text)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


WORDS = st.sampled_from(["world", "small8", "read", "mmap", "addr=4", "len=1", "together", "end"]) | (
    st.sampled_from(["schedule", "0", "until", "any", "x1", "(fail_nth 1)", "p1:", "flags=", "prot=rwx"])
    | st.sampled_from(["\n", " ", "#", "|", ",", "="])
)


@quick
@given(st.text() | st.lists(WORDS, max_size=30).map("".join))
def test_any_text(text: str) -> None:
    """No text at all raises anything but UsageError, and what is accepted keeps its meaning."""
    for whole in (text, W + text):
        try:
            workload = from_text(whole)
        except UsageError:
            continue
        assert from_text(to_text(workload)) == workload


def test_one_op() -> None:
    """Reports show single ops in the same form."""
    assert show_op(Op("munmap", 2, (8, 1), 4)) == "p2: munmap   addr=8 len=1 (fail_nth 4)"
    assert show_op(Op("exit", 0, ())) == "exit"
