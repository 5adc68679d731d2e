"""The collectives in a compiled program, read from the text of its HLO.

XLA's own cost analysis counts the body of a loop once; here every collective is multiplied with the trip counts of the
loops around it.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation|async_wrapped)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")


class Collective(NamedTuple):
    """One collective operation of a device's program.

    Attributes:
      kind: one of KINDS.
      count: how often it runs in a step.
      bytes: of its result, once.
      group: devices that take part in it together.
    """

    kind: str
    count: int
    bytes: float
    group: int

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device must receive for it, once: no algorithm does with less.

        Of a gathered result all but the own part; a sum needs a device's part from all others and then the other
        parts (Patarasuk & Yuan 2009).
        """
        others = (self.group - 1) / self.group
        if self.kind == "reduce-scatter":
            return self.bytes * (self.group - 1)
        return self.bytes * {"all-reduce": 2 * others, "collective-permute": 1.0}.get(self.kind, others)


def collectives(text: str, devices: int) -> list[Collective]:
    """Every collective of an HLO module (``compiled.as_text()``) that runs on ``devices``.

    An asynchronous one is counted where it starts. A TPU spreads some over several fusions, in each of which the
    operation is written again under one channel: that counts once, as often as the outermost of them runs.
    """
    found: list[Collective] = []
    fused: dict[tuple[str, str], Collective] = {}
    computations = _computations(text)
    for name, runs in _runs(computations).items():
        for line in computations[name]:
            match = _COLLECTIVE.search(line)
            if not match:
                continue
            result, kind, start = match[1], match[2], bool(match[3])
            size = _result_bytes(result, kind, start)
            one = Collective(kind, runs.count, size, _group_size(line, devices, kind))
            channel = re.search(r"channel_id=(\d+)", line)
            if runs.fused and channel:
                key = (kind, channel[1])
                fused[key] = min(fused.get(key, one), one, key=lambda c: c.count)
            else:
                found.append(one)
    return [one for one in [*found, *fused.values()] if one.group > 1 and one.count]


def _computations(text: str) -> dict[str, list[str]]:
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = computations.setdefault("ENTRY" if match[1] else match[2], [])
        else:
            lines.append(line)
    return computations


class _Runs(NamedTuple):
    count: int  # times in a step
    fused: bool  # reached only as a part of fusions


def _runs(computations: dict[str, list[str]]) -> dict[str, _Runs]:
    """How often each computation that can run does, by the calls from the entry on."""
    calls: dict[str, list[tuple[str, int, bool]]] = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            if "=%" not in line and "computations={" not in line:
                continue
            if re.search(r" async-(done|update)\(", line):
                continue  # names the computation that its start has called
            is_loop = " while(" in line
            factor = _trip_count(line, computations) if is_loop else 1
            callees = _CALLED.findall(line)
            callees += [n.strip().lstrip("%") for group in _BRANCHES.findall(line) for n in group.split(",")]
            calls[name] += [(callee, factor, " fusion(" in line) for callee in callees if callee in computations]
    counts: dict[str, int] = defaultdict(int)
    direct: set[str] = set()

    def visit(name: str, count: int, fused: bool) -> None:
        counts[name] += count
        if not fused:
            direct.add(name)
        for callee, factor, is_fusion in calls[name]:
            visit(callee, count * factor, fused or is_fusion)

    visit("ENTRY", 1, False)
    return {name: _Runs(count, name not in direct) for name, count in counts.items()}


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """Of a while loop: the compiler's own word, or what its counter tells, which starts at 0; 1 if neither is there."""
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    names = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
    if not names:
        return 1
    condition, body = (_definitions(computations.get(name, [])) for name in names.groups())
    compared = re.search(r"compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", condition.get("ROOT", ""))
    if not compared:
        return 1
    index = re.search(r"index=(\d+)", condition.get(compared[1], ""))
    limit = re.search(r" constant\((\d+)\)", condition.get(compared[2], ""))
    if not index or not limit:
        return 1
    carried = re.findall(r"%([\w.\-]+)", body.get("ROOT", "").rpartition(" tuple(")[2])
    counter = body.get(carried[int(index[1])], "") if int(index[1]) < len(carried) else ""
    added = re.search(r" add\(%[\w.\-]+, %([\w.\-]+)\)", counter)
    step = re.search(r" constant\((\d+)\)", body.get(added[1], "")) if added else None
    return -(-int(limit[1]) // int(step[1])) if step else int(limit[1])


def _definitions(lines: list[str]) -> dict[str, str]:
    """Each instruction's text by its name; the last one's also under ROOT."""
    found: dict[str, str] = {}
    for line in lines:
        if match := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line):
            found[match[2]] = match[3]
            if match[1]:
                found["ROOT"] = match[3]
    return found


def _result_bytes(result: str, kind: str, start: bool) -> float:
    """Bytes of a result's shape. A start gives (operands, results, context): the results are what it is about."""
    shapes = [(_element_bytes(t) * math.prod(map(int, filter(None, s.split(","))))) for t, s in _SHAPE.findall(result)]
    if not start or kind == "all-reduce":
        return sum(shapes)
    groups = re.match(r"\(\((.*?)\), (?:\((.*?)\)|(\S+))", result)
    if groups:
        return _result_bytes(groups[2] or groups[3], kind, False)
    return shapes[1] if len(shapes) > 1 else shapes[0]


def _element_bytes(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0


def _group_size(line: str, devices: int, kind: str) -> int:
    """Devices in a group, from any of the ways in which HLO writes groups; all devices where it names none."""
    if kind == "collective-permute":
        return devices
    groups = re.search(r"replica_groups=(\S.*?)(?:, [a-z_]+=|$)", line)
    text = groups[1] if groups else ""
    if match := re.match(r"\[(\d+),(\d+)\]<=", text):
        return int(match[2])
    if match := re.match(r"mesh\[(.*?)\]\s*\{(.*?)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]) if axis in sizes)
    if match := re.match(r"\{\{([\d,]+)\}", text):
        return len(match[1].split(","))
    return devices
