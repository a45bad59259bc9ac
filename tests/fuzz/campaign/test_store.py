"""The folder of a campaign: what was found survives everything."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emulator.errors import UsageError
from fuzz import files
from fuzz.campaign.store import Store, Totals, slug
from fuzz.target import Target
from oracle.finding import finding

TARGET = Target("mainline")



def add(store: Store, cause: str) -> bool:
    one = finding("rmap", "stale", "a page was not found", 3, cause=cause)
    return store.add_finding(one, cause.encode(), 5, 0, 1.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "out")
    store.open(TARGET)
    return store


def test_one_folder_a_signature(store: Store) -> None:
    """A flaw found a thousand times is one finding, with the workload that showed it first."""
    assert add(store, "a")
    assert add(store, "b")
    assert not add(store, "a")
    buckets = store.buckets()
    assert [bucket.signature for bucket in buckets] == ["rmap/stale:a", "rmap/stale:b"]
    assert buckets[0].workload.read_bytes() == b"a"
    assert (buckets[0].steps, buckets[0].step, buckets[0].minimized) == (5, 3, False)


def test_slugs_are_readable_and_unique() -> None:
    """Signatures that differ in punctuation alone must not share a folder."""
    assert slug("undo/frozen-page: GUP").startswith("undo-frozen-page-gup-")
    assert slug("undo/a:b") != slug("undo/a/b")
    assert len(slug("x" * 500)) < 100
    assert "/" not in slug("../../etc")


def test_totals_add_up_over_workers(store: Store) -> None:
    """The numbers on the screen: sums, the union of features, counts for each signature."""
    store.save_totals(0, Totals(execs=10, steps=100, findings={"s": 2}, fingerprint=7, features_at=5.0), b"\x03")
    more = Totals(execs=5, steps=50, findings={"s": 1, "t": 1}, fingerprint=7, traced={"a": 2, "b": 1})
    store.save_totals(1, more, b"\x06\x01")
    store.save_totals(2, Totals(traced={"b": 3}), b"")
    totals, features = store.all_totals()
    assert (totals.execs, totals.steps, totals.findings) == (15, 150, {"s": 3, "t": 1})
    assert totals.traced == {"a": 2, "b": 4}
    assert features == 4


def test_features_of_other_code_do_not_count(store: Store) -> None:
    """After the code under test changed, the numbers of its features mean something else."""
    store.save_totals(0, Totals(fingerprint=7, features_at=1.0), b"\xff")
    store.save_totals(1, Totals(fingerprint=8, features_at=2.0), b"\x01")
    assert store.all_totals()[1] == 1


def test_opening_again_keeps_and_sweeps(store: Store, tmp_path: Path) -> None:
    """A second start finds everything, less what a killed process left half-written."""
    add(store, "a")
    whole, torn = b"whole", b"torn"
    for data, content in ((whole, whole), (torn, b"to")):
        (store.corpus / hashlib.sha1(data).hexdigest()).write_bytes(content)
    (store.corpus / "mine.msgpack").write_bytes(b"named by a user")
    (store.findings / ".tmp-1-x").mkdir()
    (store.findings / ".tmp-1-x" / "raw.msgpack").write_bytes(b"")
    (store.out / ".tmp-1-status.json").write_bytes(b"{")
    code = f"""
from pathlib import Path
from fuzz.campaign.store import Store
from fuzz.target import Target
store = Store(Path({str(store.out)!r}))
store._lock = lambda: None
store.open(Target("mainline"))
print([bucket.signature for bucket in store.buckets()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['rmap/stale:a']"
    assert sorted(path.name for path in store.corpus.iterdir()) == sorted(
        [hashlib.sha1(whole).hexdigest(), "mine.msgpack"]
    )
    assert not list(store.out.rglob(".tmp-*"))


def test_one_campaign_a_folder(store: Store) -> None:
    """Two supervisors in one folder would overwrite each other's totals."""
    with pytest.raises(UsageError, match="another campaign is running in this folder"):
        Store(store.out).open(TARGET)


def test_a_folder_belongs_to_its_target(tmp_path: Path) -> None:
    """Findings of two designs must not mix."""
    (tmp_path / "campaign.json").write_text(json.dumps({"target": Target("relocate-anon")._asdict()}))
    with pytest.raises(UsageError, match="belongs to a campaign with --design relocate-anon; choose another --out"):
        Store(tmp_path).open(TARGET)


@pytest.mark.parametrize("text", ["", "[1]", '{"execs": "many"}', '{"other": 1}'])
def test_damaged_totals_are_zeros(store: Store, text: str) -> None:
    """A file of another version, or a damaged one, costs the numbers and not the campaign."""
    (store.workers / "0.json").write_text(text)
    assert store.totals(0) == Totals()
    assert store.all_totals()[0].execs == 0


def test_a_damaged_finding_is_left_out(store: Store) -> None:
    """One bad folder must not hide the others."""
    add(store, "a")
    add(store, "b")
    (store.findings / slug("rmap/stale:a") / "finding.json").write_text("{")
    assert [bucket.signature for bucket in store.buckets()] == ["rmap/stale:b"]


def test_a_finding_that_is_being_written_is_not_seen(store: Store) -> None:
    """Its folder is renamed a moment later: whoever had opened it would find nothing there."""
    add(store, "a")
    folder = next(store.findings.iterdir())
    folder.rename(folder.with_name(f"{files.TEMPORARY}1-{folder.name}"))
    assert store.buckets() == []


def test_inputs_are_named_as_the_engine_names_them(store: Store) -> None:
    """Else the engine would keep each seed twice."""
    store.add_input(b"seed")
    store.add_input(b"seed")
    assert os.listdir(store.corpus) == [hashlib.sha1(b"seed").hexdigest()]
    assert store.corpus_size() == 1
