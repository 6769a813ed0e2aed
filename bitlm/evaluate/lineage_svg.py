"""The lineage of a set of artifacts as inline SVG: stages from top to bottom, one box for each artifact.

An edge that passes over a stage runs through a lane of its own there, and all such edges of one artifact share the lane
(Sugiyama's layered drawing with bundled edges), so that lines go round boxes instead of behind them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from bitlm.artifacts.record import Record

BOX_HEIGHT, LAYER_GAP, NODE_GAP, LANE_WIDTH, MARGIN = 40, 34, 14, 8, 8
CHARACTER_WIDTH = 6.7
SWEEPS = 4


@dataclass
class _Spot:
    """A box of the drawing (``record`` is set), or the place where a lane crosses a layer."""

    key: str
    width: float
    record: Record | None = None
    parents: list["_Spot"] = field(default_factory=list)
    x: float = 0.0


def lineage_svg(records: Sequence[Record], stages: Sequence[str]) -> Markup:
    """``records``: every artifact to show, inputs before their users. Inputs that are not among them are left out.
    ``stages``: names of the stages from top to bottom.
    """
    layers = _layers(records, _depths(records, stages))
    for _ in range(SWEEPS):
        _arrange(layers)
    width = max(_width(layer) for layer in layers) + 2 * MARGIN
    _place(layers, width)
    height = len(layers) * (BOX_HEIGHT + LAYER_GAP) - LAYER_GAP + 2 * MARGIN
    size = f'viewBox="0 0 {width:.0f} {height}" style="max-width:{width:.0f}px"'
    placed = [(spot, depth) for depth, layer in enumerate(layers) for spot in layer]
    parts = [f'<svg class="lineage" {size} role="img" aria-label="Lineage">']
    parts += [_edge(parent, spot, depth) for spot, depth in placed for parent in spot.parents]
    parts += [_crossing(spot, depth) for spot, depth in placed if spot.record is None]
    parts += [_box(spot, depth) for spot, depth in placed if spot.record is not None]
    return Markup("\n".join([*parts, "</svg>"]))


def _depths(records: Sequence[Record], stages: Sequence[str]) -> dict[str, int]:
    """The layer of each artifact: that of its stage, but below all of its inputs. Empty layers are removed."""
    depths: dict[str, int] = {}
    for record in records:
        parents = [depths[entry.id] + 1 for entry in record.inputs.values() if entry.id in depths]
        depths[record.id] = max([stages.index(record.stage) if record.stage in stages else 0, *parents])
    used = sorted(set(depths.values()))
    return {key: used.index(depth) for key, depth in depths.items()}


def _layers(records: Sequence[Record], depths: Mapping[str, int]) -> list[list[_Spot]]:
    layers: list[list[_Spot]] = [[] for _ in range(max(depths.values()) + 1)]
    spots: dict[tuple[str, int], _Spot] = {}

    def passing(artifact: str, depth: int) -> _Spot:
        """Where the line of an artifact crosses a layer below it, or its box in its own layer."""
        if (artifact, depth) not in spots:
            above = passing(artifact, depth - 1)
            spots[artifact, depth] = _Spot(f"{artifact}|{depth}", LANE_WIDTH, parents=[above])
            layers[depth].append(spots[artifact, depth])
        return spots[artifact, depth]

    for record in records:
        depth = depths[record.id]
        width = 20 + CHARACTER_WIDTH * max(len(_name(record)), len(record.stage))
        spots[record.id, depth] = _Spot(record.id, width, record)
        layers[depth].append(spots[record.id, depth])
    for record in records:
        depth = depths[record.id]
        inputs = dict.fromkeys(entry.id for entry in record.inputs.values() if entry.id in depths)
        spots[record.id, depth].parents += [passing(artifact, depth - 1) for artifact in inputs]
    return layers


def _arrange(layers: list[list[_Spot]]) -> None:
    """One barycentre sweep down and one up: each spot moves to the mean position of its neighbours."""
    children: dict[str, list[_Spot]] = {}
    for layer in layers:
        for spot in layer:
            for parent in spot.parents:
                children.setdefault(parent.key, []).append(spot)
    for layer in layers[1:]:
        _sort(layer, {spot.key: spot.parents for spot in layer}, layers)
    for layer in reversed(layers[:-1]):
        _sort(layer, {spot.key: children.get(spot.key, []) for spot in layer}, layers)


def _sort(layer: list[_Spot], neighbours: Mapping[str, Sequence[_Spot]], layers: list[list[_Spot]]) -> None:
    place = {spot.key: (index + 0.5) / len(row) for row in layers for index, spot in enumerate(row)}

    def centre(spot: _Spot) -> float:
        near = neighbours[spot.key]
        return sum(place[other.key] for other in near) / len(near) if near else place[spot.key]

    layer.sort(key=centre)


def _width(layer: Sequence[_Spot]) -> float:
    return sum(spot.width for spot in layer) + NODE_GAP * (len(layer) - 1)


def _place(layers: Sequence[Sequence[_Spot]], width: float) -> None:
    for layer in layers:
        left = (width - _width(layer)) / 2
        for spot in layer:
            spot.x = left + spot.width / 2
            left += spot.width + NODE_GAP


def _top(depth: int) -> int:
    return MARGIN + depth * (BOX_HEIGHT + LAYER_GAP)


def _edge(parent: _Spot, spot: _Spot, depth: int) -> str:
    start, end = _top(depth - 1) + BOX_HEIGHT, _top(depth)
    bend = f"{parent.x:.1f} {(start + end) / 2} {spot.x:.1f} {(start + end) / 2}"
    return f'<path class="edge" d="M{parent.x:.1f} {start}C{bend} {spot.x:.1f} {end}"/>'


def _crossing(spot: _Spot, depth: int) -> str:
    return f'<path class="edge" d="M{spot.x:.1f} {_top(depth)}v{BOX_HEIGHT}"/>'


def _box(spot: _Spot, depth: int) -> str:
    assert spot.record is not None
    left, top = spot.x - spot.width / 2, _top(depth)
    centre = f'x="{spot.x:.1f}" text-anchor="middle"'
    return (
        f'<g class="node"><title>{escape(spot.record.id)}</title>'
        f'<rect x="{left:.1f}" y="{top}" width="{spot.width:.1f}" height="{BOX_HEIGHT}" rx="5"/>'
        f'<text class="stage" {centre} y="{top + 15}">{escape(spot.record.stage)}</text>'
        f'<text class="name" {centre} y="{top + 31}">{escape(_name(spot.record))}</text></g>'
    )


def _name(record: Record) -> str:
    return record.id.partition("/")[2]
