"""Runs a workload with all oracles and says what was found.

After each step the oracles are asked in order of specificity: undo, rmap, TLB, lifetime, structure, accounting,
specification or collision, differential. The first that finds the state broken ends the run: what another would
say about the same step, and what would happen afterwards, is consequence. Complaints of the kernel (WARN_ON) and
wrong accounts do not end it. A ``KernelBug`` does, and is a finding of the oracle "kernel".

What one step touched is judged after it, everything at the end of the workload, or after each step if
``thorough``.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

from emulator.errors import KernelBug
from emulator.geometry import PAGE_SHIFT
from emulator.machine import Machine
from emulator.workload import Step, Workload, token
from oracle.accounting import AccountingOracle
from oracle.collision import CollisionOracle
from oracle.comparison import VisibleOracle
from oracle.differential import DifferentialOracle, Fate, added_flags, for_reference
from oracle.digest import digest
from oracle.finding import Finding, distinct, finding
from oracle.kernel import cause_of, kernel_bug, oops_place, subjects_of
from oracle.ksm import KsmOracle
from oracle.lifetime import LifetimeOracle
from oracle.observation import Observer
from oracle.rmap import RmapOracle
from oracle.specification.failure import left_in_part, settle, stopped_half_way
from oracle.specification.mremap import met_seal
from oracle.specification.page import FAILURES, Limits, Refusal
from oracle.specification.state import Specification
from oracle.specification.uffd_calls import CALLS as USERFAULTFD
from oracle.specification.uffd_follow import leave_open
from oracle.structure import StructureOracle
from oracle.tlb import TlbOracle
from oracle.undo import UndoOracle
from oracle.visible import UNKNOWN

if TYPE_CHECKING:
    from emulator.image import KernelImage
    from emulator.profile import Profile
    from emulator.workload import Op, Outcome, Workload


_PLAIN_ACCESSES = frozenset(("read", "write", "fill", "exec"))


class Verdict(NamedTuple):
    """What a run of a workload showed.

    ``digest`` is a hexadecimal hash of all outcomes and the final visible state: the same for the same workload
    and design in every process. ``steps_run`` counts steps begun. ``notes`` say what was not judged, and why.
    """

    findings: tuple[Finding, ...]
    digest: str
    outcomes: tuple[tuple[Outcome, ...], ...]
    steps_run: int
    machine: Machine
    notes: tuple[str, ...] = ()


class Judge:
    """Judges workloads on one kernel image, beside a reference image if one is given. Keeps nothing between runs."""

    def __init__(
        self,
        image: KernelImage,
        reference_image: KernelImage | None = None,
        *,
        thorough: bool = False,
        profile: Profile | str = "6.18",
    ) -> None:
        self.image = image
        self._reference_image = reference_image
        self._thorough = thorough
        self._profile = profile

    def run(self, workload: Workload) -> Verdict:
        """Run the workload from a fresh machine.

        An exception other than KernelBug is a mistake of ours and goes through, unless it comes out of the kernel
        code and the reference, in the same steps, gets by without it: then the design has broken the kernel.
        """
        machine = Machine(self.image, workload.geometry, self._profile)
        reference = None
        if self._reference_image is not None:
            reference = Machine(self._reference_image, workload.geometry, self._profile)
        run = _Run(machine, reference, self._thorough)
        try:
            verdict = run.whole(workload)
            if run.unexplained is not None:
                verdict = self._one_after_the_other(workload, verdict, run.unexplained)
            return verdict
        except Exception as error:
            place = oops_place(error)
            if not place or not self._reference_survives(workload, len(run.outcomes)):
                raise
            return run.oops(error, place)

    def _one_after_the_other(self, workload: Workload, verdict: Verdict, collision: Finding) -> Verdict:
        """A collision that no order explains, where some order by itself breaks the specification: that is the finding.

        So a flaw that wants nobody beside it has one signature, whoever runs beside. What other oracles say of another
        order is not what happened here, and would hide what did.
        """
        index = collision.step
        ops = workload.steps[index].ops
        alone = Judge(self.image, profile=self._profile)
        for order in permutations(range(len(ops))):
            steps = (*workload.steps[:index], *(Step((ops[number],)) for number in order))
            try:
                found = alone.run(Workload(workload.geometry, steps)).findings
            except Exception as error:
                if not oops_place(error):
                    raise
                continue  # what the kernel code stumbles over in this order only is not what happened
            culprits = [f for f in found if f.oracle == "specification" and f.step >= index]
            if culprits:
                first = culprits[0]
                detail = f"{first.detail} (when the operations run one after the other)"
                plain = first._replace(step=index, op=order[first.step - index], detail=detail)
                findings = [plain if f is collision else f for f in verdict.findings]
                return verdict._replace(findings=tuple(distinct(findings)))
        return verdict

    def _reference_survives(self, workload: Workload, last: int) -> bool:
        """Do the steps up to number ``last`` run on the reference?"""
        if self._reference_image is None:
            return False
        machine = Machine(self._reference_image, workload.geometry, self._profile)
        added = added_flags(self.image.design, self._reference_image.design)
        try:
            for step in workload.steps[: last + 1]:
                ops = [op._replace(args=for_reference(op, added).args) for op in step.ops]
                machine.run_step(Step(tuple(ops), step.schedule))
        except Exception:
            return False
        return True


def limits_of(machine: Machine) -> Limits:
    """What bounds the machine's processes, for a specification of them."""
    geometry = machine.geometry
    return Limits(
        top=geometry.task_size - geometry.arena_start >> PAGE_SHIFT,
        total=geometry.task_size >> PAGE_SHIFT,
        mremap_flags=machine.image.design.mremap_flags,
        profile=machine.profile,
        stack_guard_gap=machine.stack_guard_gap,
        heap=geometry.heap_page,
        huge=geometry.hpage_pmd_nr,
    )


class _Run:
    """One workload on one machine."""

    def __init__(self, machine: Machine, reference: Machine | None, thorough: bool) -> None:
        self.machine = machine
        self.thorough = thorough
        self.observer = observer = Observer(machine)
        self.undo = UndoOracle(observer)
        self.rmap = RmapOracle(observer)
        self.tlb = TlbOracle(observer)
        self.lifetime = LifetimeOracle(observer)
        self.structure = StructureOracle(observer)
        self.ksm = KsmOracle(observer)
        self.accounting = AccountingOracle(observer)
        self.visible = VisibleOracle(observer)
        self.collision = CollisionOracle(self.visible)
        self.differential = None if reference is None else DifferentialOracle(machine, reference)
        self.spec = Specification(limits_of(machine))
        self.relocates = bool(machine.image.design.replaces)  # the code as it is cannot relocate anything
        self.findings: list[Finding] = []
        self.unexplained: Finding | None = None  # a collision that no serial order explains
        self.outcomes: list[tuple[Outcome, ...]] = []

    def whole(self, workload: Workload) -> Verdict:
        if not any(op.kind in USERFAULTFD for step in workload.steps for op in step.ops):
            self.spec.userfaults.clear()
        steps_run = 0
        ended = False
        for index, step in enumerate(workload.steps):
            steps_run += 1
            ended = self._step(step, index)
            if ended:
                break
        if not ended and not self.thorough:
            self._everything(max(0, steps_run - 1))
        return self._verdict(steps_run)

    def oops(self, error: Exception, place: str) -> Verdict:
        """The kernel code raised ``error`` in the step after the last outcome."""
        index = len(self.outcomes)
        name = type(error).__name__
        detail = f"the kernel code cannot go on: {name} in {place} ({error})"
        self.findings.append(finding("kernel", "oops", detail, index, cause=f"{name} in {place}"))
        return self._verdict(index + 1)

    def _verdict(self, steps_run: int) -> Verdict:
        detached = self.differential.detached if self.differential is not None else ""
        return Verdict(
            tuple(distinct(self.findings)),
            digest(self.machine, self.outcomes, self.visible.view),
            tuple(self.outcomes),
            steps_run,
            self.machine,
            (f"the reference was left out from {detached}",) if detached else (),
        )

    # ---- one step

    def _step(self, step: Step, index: int) -> bool:
        """Run and judge one step; True when it ended the run."""
        machine = self.machine
        if self.relocates:
            self.undo.before(step)
        try:
            outcomes = machine.run_step(step)
        except KernelBug as bug:
            self._take_warnings(index)
            self.findings.append(kernel_bug(bug, index))
            return True
        self.outcomes.append(tuple(outcomes))
        if machine.sched.warnings:
            self._take_warnings(index)
        plain = len(step.ops) == 1 and step.ops[0].kind in _PLAIN_ACCESSES
        if plain and not machine.store_log and not outcomes[0].ret and not outcomes[0].injected:
            found = self._cached_access(step.ops[0], index, outcomes[0])
            self.findings.extend(found)
            return bool(found) or (self.thorough and self._everything(index))
        self.observer.observe(step.ops)
        found = self._state(step, index, outcomes)
        if not found:
            if self.observer.spans or machine.committed != self.accounting.expected:
                self.findings.extend(self.accounting.check(index, step.ops, outcomes))
            found = self._meaning(step, index, outcomes)
        if not found and self.thorough:
            return self._everything(index)
        self.findings.extend(found)
        return bool(found)

    def _cached_access(self, op: Op, index: int, outcome: Outcome) -> list[Finding]:
        """A successful access that stored to no page table: nothing but the contents of its page can have changed.

        (One that fails may have made its VMA faulted before it did.)
        """
        refusal = self.spec.apply(op, outcome, token(index, 0))
        if refusal is not None:
            return [_refused(refusal, index)]
        table = {op.proc: {op.args[0]: UNKNOWN}}
        found = self.visible.compare(self.spec, index, table, (op,)) if op.kind in ("write", "fill") else []
        if not found and self.differential is not None:
            found = self.differential.check(Step((op,)), index, [outcome], (0,), {0: Fate.DONE})
        return found

    def _state(self, step: Step, index: int, outcomes: list[Outcome]) -> list[Finding]:
        """The oracles that look at the machine's state: the findings of the first that has any."""
        injected = False
        for outcome in outcomes:
            injected = injected or outcome.injected
        observer = self.observer
        found = self.undo.check(step, index, injected) if self.relocates else []
        if not (observer.leaves or observer.changed or observer.gone or observer.ranges or observer.stray):
            return found or self.lifetime.check(index, step.ops)  # pins and caches at most
        return (
            found
            or self.rmap.check(index, injected)
            or self.tlb.check(index)
            or self.lifetime.check(index, step.ops)
            or self.structure.check(index)
            or self.ksm.check(index)
        )

    def _meaning(self, step: Step, index: int, outcomes: list[Outcome]) -> list[Finding]:
        """The oracles that look at what the operations mean to a process."""
        fate: dict[int, Fate] = {}
        choices = self.spec.choices
        if len(step.ops) == 1:
            order: tuple[int, ...] = (0,)
            op, outcome = step.ops[0], outcomes[0]
            if left_in_part(self.spec, op, outcome):
                refusal = self._after_failure(step, index, outcome, fate)
            else:
                refusal = self.spec.apply(op, outcome, token(index, 0))
            if refusal is not None:
                return [_refused(refusal, index)]
            wild = bool(self.spec.wild)
            if wild:
                self.visible.settle_wild_writes(self.spec)
            table = self.visible.touched(step.ops, outcomes)
            found = self.visible.compare(self.spec, index, table, step.ops)
        else:
            table = self.visible.touched(step.ops, outcomes)
            completed = self.machine.completed
            refused = [stopped_half_way(self.spec, op, o.ret) for op, o in zip(step.ops, outcomes, strict=True)]
            explained = self.collision.explain(self.spec, step, index, outcomes, completed, table)
            if isinstance(explained, Finding):
                self.unexplained = explained
                return [explained]
            fate.update((number, Fate.OTHER) for number, was in enumerate(refused) if was)
            order, wild, self.spec, apart = explained
            found = []
            if apart and self.differential is not None:
                self.differential.detach(index, apart)
            for op in step.ops:
                leave_open(self.spec, op)
        if not found and self.differential is not None:
            if self.spec.choices != choices:
                self.differential.detach(index, "the kernel has thrown away what MADV_FREE let it")
            if wild:
                self.differential.detach(index, "what was written through a mere reference may show differently")
            found = self.differential.check(step, index, outcomes, order, fate)
            if self.spec.frees:
                self.differential.look_for_dropped(index, self.spec)
        return found

    def _after_failure(
        self, step: Step, index: int, outcome: Outcome, fate: dict[int, Fate]
    ) -> Refusal | None:
        """The one op of the step may be done in part: take over what the machine shows, if it is allowed."""
        op = step.ops[0]
        spec = self.spec
        before = spec.copy()
        refused = stopped_half_way(spec, op, outcome.ret)
        view = self.visible.view
        refusal = settle(spec, op, outcome, token(index, 0), lambda *page: view.shows(before, *page))
        if refusal is None:
            if refused:
                fate[0] = Fate.OTHER
            if outcome.ret in FAILURES or refused:
                done = before
            else:
                done = before.copy()
                if done.apply(op, outcome, token(index, 0)) is not None:
                    done = before  # allowed after a failure only
            known = spec.userfaults.get(op.proc)
            opened = known is not None and known.maybe_open  # a userfaultfd, before the failure
            if done.procs == spec.procs and done.settings == spec.settings and not opened:
                met = met_seal(before, op, outcome.ret) is not None  # nothing moved, but VMAs may have been cut
                fate[0] = Fate.UNDONE if done is before and not met else Fate.DONE
        return refusal

    def _everything(self, index: int) -> bool:
        """Judge the whole machine; True when something is wrong."""
        self.observer.observe_everything()
        self.findings.extend(self.accounting.check(index, (), []))
        found = (
            self.rmap.check_all(index, False)
            or self.tlb.check_all(index)
            or self.lifetime.check_all(index)
            or self.structure.check(index)
            or self.ksm.check(index)
        )
        if not found:
            table = self.visible.everything(self.spec)
            found = self.visible.compare(self.spec, index, table, ())
            if not found and self.differential is not None:
                found = self.differential.check_pages(index, self.spec, table)
        self.findings.extend(found)
        return bool(found)

    def _take_warnings(self, index: int) -> None:
        for rule, detail, subject in self.machine.sched.warnings:
            cause = cause_of(rule, detail, subject)
            self.findings.append(
                finding(
                    "kernel", rule, detail, index, cause=cause, subjects=subjects_of(subject), ends_run=False
                )
            )


def _refused(refusal: Refusal, index: int) -> Finding:
    return finding("specification", refusal.rule, refusal.detail, index, cause=refusal.cause)
