"""The figures of a plan as lines, which both the terminal and the page show."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from jaxgpt.flops import Flops, flops_per_token
from jaxgpt.planning.hlo import KINDS
from jaxgpt.planning.program import Compiled, DoesNotFit, Program
from jaxgpt.planning.roofline import Bounds
from jaxgpt.planning.search import Tried, predicted
from jaxgpt.planning.topology import Topology
from scratchgpt.progress import duration


@dataclass
class Plan:
    """All that a plan says.

    Attributes:
      compiled: None where the compiler refused.
      refused: its refusal.
      bounds: None where the chip's speed is not known.
      tried: micro-batches measured; the configured one first.
      sizes: micro-batches that the batch and the mesh allow; empty: not searched.
    """

    run_file: str
    topology: Topology
    program: Program
    compiled: Compiled | None
    refused: DoesNotFit | None
    bounds: Bounds | None
    tried: list[Tried]
    sizes: list[int]


class Row(NamedTuple):
    """A line: what, how much, and what is to be said about it."""

    label: str
    value: str
    remark: str = ""


class Section(NamedTuple):
    """Lines under a title."""

    title: str
    rows: list[Row]


def gigabytes(count: float) -> str:
    """Bytes in GB of 10^9, with the digits that matter."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def seconds(time: float) -> str:
    """A step's time, in s or ms."""
    if time >= 1:
        return f"{time:.3f} s"
    return f"{time * 1e3:.1f} ms" if time >= 0.01 else f"{time * 1e3:.3g} ms"


def headline(plan: Plan) -> str:
    """What is planned for what."""
    program, topology = plan.program, plan.topology
    mesh = " x ".join(f"{name} {size}" for name, size in program.mesh.shape.items())
    kind = topology.chip.name if topology.chip else topology.devices[0].device_kind
    told = f"{plan.run_file} for {topology.name}: {program.mesh.size} x {kind}, mesh {mesh}, {program.steps.dtype}"
    return f"ESTIMATE, not compiled: {told}" if topology.is_estimate else told


def verdict(plan: Plan) -> str:
    """Whether it fits, in one sentence."""
    usable = plan.topology.usable_bytes
    if plan.refused:
        needed, available = plan.refused.needed, plan.refused.available or usable
        told = f"at least {gigabytes(needed)}" if needed else "more"
        return f"does not fit: the compiler refuses the step, which needs {told} of the {gigabytes(available)} there is"
    peak = plan.compiled.memory.peak
    if not usable:
        return f"needs {gigabytes(peak)} of each device, whose memory is not known"
    if peak > usable:
        return f"does not fit: needs {gigabytes(peak)} of the {gigabytes(usable)} that a device has for it"
    return f"fits: {gigabytes(peak)} of the {gigabytes(usable)} that a device has for it, {peak / usable:.0%}"


def sections(plan: Plan) -> list[Section]:
    """The figures, in the order in which one asks for them."""
    flops = flops_per_token(plan.program.config, plan.program.model)
    found = [_run(plan), _memory(plan), _work(plan, flops)]
    if plan.compiled:
        found.append(_messages(plan))
    if plan.bounds:
        found += [_roofline(plan.bounds), _whole_run(plan, plan.bounds)]
    if plan.sizes:
        found.append(_largest(plan))
    return found


def text(plan: Plan) -> str:
    """One screen."""
    found = sections(plan)
    width = max(len(row.label) for section in found for row in section.rows)
    lines = [headline(plan)]
    for section in found:
        lines += ["", section.title]
        lines += [f"  {row.label:<{width}}{row.value:>14}   {row.remark}".rstrip() for row in section.rows]
    return "\n".join([*lines, "", verdict(plan)])


def _run(plan: Plan) -> Section:
    program, train = plan.program, plan.program.config.train
    params = program.steps.abstract_state["params"]
    learn = sum(p.size for name, p in params.items() if program.objective.is_trained(name))
    total = sum(p.size for p in params.values())
    length = program.batch["inputs"].shape[-1]
    examples = "pairs of sequences" if train.objective == "dpo" else "sequences"
    rows = [
        Row("parameters", f"{total / 1e6:,.2f}M", "" if learn == total else f"{learn:,} numbers learn"),
        Row(
            "tokens per step",
            f"{program.tokens_per_step:,}",
            f"{train.batch_size} {examples} of {length:,}, {program.micro_batch_size} at a time:"
            f" {program.micro_batches} micro-batch{'es' if program.micro_batches > 1 else ''}; remat {train.remat},"
            f" loss_chunk {train.loss_chunk}",
        ),
    ]
    if plan.compiled and not plan.topology.is_estimate:
        rows.append(Row("compiled in", f"{plan.compiled.seconds:.0f} s", f"by {plan.topology.compiler}"))
    return Section("run", rows + [Row("note", "", remark) for remark in program.remarks])


def _memory(plan: Plan) -> Section:
    state = plan.program.state_bytes()
    title = "memory of a device"
    if not plan.compiled:
        return Section(title, [Row("training state", gigabytes(state), "parameters and optimizer slots")])
    memory, usable = plan.compiled.memory, plan.topology.usable_bytes
    rest = memory.arguments - state
    rows = [
        Row("arguments", gigabytes(memory.arguments), f"training state {gigabytes(state)}, batch {gigabytes(rest)}"),
        Row("temporaries", gigabytes(memory.temporaries), "program included" if not memory.parts else "of these:"),
        *(Row(f"  {name}", gigabytes(size)) for name, size in memory.parts.items()),
        Row("peak", gigabytes(memory.peak), f"of {gigabytes(usable)} that a program may fill" if usable else ""),
    ]
    return Section(title, rows)


def _work(plan: Plan, flops: Flops) -> Section:
    tokens, count = plan.program.tokens_per_step, plan.program.mesh.size
    rows = [Row("model", f"{flops.model * tokens:.3e}", f"{flops.model:.3e} a token, causal attention once")]
    if flops.hardware > flops.model:
        remat = plan.program.config.train.remat
        rows.append(Row("executed", f"{flops.hardware * tokens:.3e}", f"with what remat={remat} computes again"))
    rows.append(Row("executed by a device", f"{flops.hardware * tokens / count:.3e}"))
    return Section("FLOPs of a step", rows)


def _messages(plan: Plan) -> Section:
    counts: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for one in plan.compiled.collectives:
        sums = counts[one.kind]
        sums[0] += one.count
        sums[1] += one.count * one.bytes
        sums[2] += one.count * one.wire_bytes
    rows = [
        Row(kind, gigabytes(counts[kind][1]), f"{counts[kind][0]:,.0f} times; {gigabytes(counts[kind][2])} received")
        for kind in KINDS
        if kind in counts
    ]
    return Section("collectives of a step and device", rows or [Row("none", gigabytes(0))])


def _roofline(bounds: Bounds) -> Section:
    times = {"arithmetic": bounds.compute, "memory": bounds.hbm, "network": bounds.network}
    slowest = max(times, key=times.get)
    rows = [Row(name, seconds(time), "bounds the step" if name == slowest else "") for name, time in times.items()]
    rows.append(Row("MFU", f"{bounds.mfu:.1%}", "at most, of the chip's dense bfloat16 peak"))
    return Section("roofline: a step takes at least", rows)


def _whole_run(plan: Plan, bounds: Bounds) -> Section:
    steps, count = plan.program.config.train.steps, plan.program.mesh.size
    tokens = f"{steps:,} steps, {steps * plan.program.tokens_per_step / 1e6:,.1f}M tokens"

    def row(label: str, time: float, remark: str) -> Row:
        hours = time * count / 3600
        return Row(label, duration(time), f"{hours:,.1f} device-hours; {remark}" if hours >= 0.1 else remark)

    fastest = bounds.step * steps
    return Section(
        f"the run: {tokens}",
        [row("at least", fastest, "nothing can be faster"), row("at half that speed", 2 * fastest, "a good run")],
    )


def _largest(plan: Plan) -> Section:
    fitting = [t.size for t in plan.tried if t.fits]
    best = max(fitting, default=0)
    batch = plan.program.config.train.batch_size
    rows = [Row("largest that fits", str(best) if best else "none", f"of the {batch} of a step")]
    for one in plan.tried:
        peak = gigabytes(one.peak) if one.peak else "no figure"
        rows.append(Row(f"  {one.size}", peak, "fits" if one.fits else "does not fit"))
    larger = next((n for n in plan.sizes if n > best), None)
    if larger and larger not in [t.size for t in plan.tried] and predicted(plan.tried, larger):
        rows.append(Row(f"  {larger}", gigabytes(predicted(plan.tried, larger)), "predicted, does not fit"))
    return Section("micro-batch", rows)
