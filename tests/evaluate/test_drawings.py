import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import MadeUp

from bitlm.evaluate.curves import Series, line_chart, number, thin, ticks
from bitlm.evaluate.lineage_svg import lineage_svg
from bitlm.steps import STAGES

finite = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-3)


@given(finite, finite)
def test_ticks_are_round_even_and_enclose(a: float, b: float) -> None:
    low, high = sorted((a, b))
    found = ticks(low, high)
    step = found[1] - found[0]
    slack = 1e-6 * max(abs(low), abs(high), 1e-3)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 8
    assert all(later - earlier == pytest.approx(step) for earlier, later in pairwise(found))
    assert float(f"{step:.0e}"[0]) in (1, 2, 5)


@pytest.mark.parametrize(
    ("value", "text"), [(12000.0, "12,000"), (0.25, "0.25"), (5, "5"), (0.30000000000000004, "0.3"), (-2.5, "-2.5")]
)
def test_numbers_have_no_trailing_zeros(value: float, text: str) -> None:
    assert number(value) == text


def test_thinning_keeps_the_mean_and_the_order() -> None:
    points = [(float(x), float(x * x)) for x in range(1, 1001)]
    found = thin(points, 100)
    assert len(found) == 100
    assert found[0] == (5.5, 38.5)
    assert found == sorted(found)
    assert thin(points[:7], 100) == points[:7]


def test_points_stand_where_the_axes_say() -> None:
    svg = ElementTree.fromstring(
        line_chart([Series("a <b>", [(0, 1), (50, 3), (100, 2)], 1)], title="<t>", x_label="step", y_label="nats")
    )
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in svg.iter("circle")]
    labels = {
        text.text: (float(text.get("x")), float(text.get("y")))
        for text in svg.iter("text")
        if text.get("class") == "tick"
    }
    assert dots[0][0] == labels["0"][0]
    assert dots[2][0] == labels["100"][0]
    assert dots[1][0] == pytest.approx((dots[0][0] + dots[2][0]) / 2, abs=0.1)
    assert [y + 4 for _, y in dots] == [pytest.approx(labels[text][1], abs=0.2) for text in ("1", "3", "2")]
    assert svg.find("title").text == "<t>"


def test_an_empty_chart_is_no_chart() -> None:
    assert line_chart([Series("a", [], 0)], title="", x_label="", y_label="") == ""


def test_lineage_shows_every_artifact_once_inputs_above_users(made_up: MadeUp) -> None:
    svg = ElementTree.fromstring(lineage_svg(made_up.subjects.ancestry, list(STAGES)))
    boxes = {group.find("title").text: group.find("rect") for group in svg.iter("g")}
    assert set(boxes) == {record.id for record in made_up.subjects.ancestry}
    for record in made_up.subjects.ancestry:
        for entry in record.inputs.values():
            assert float(boxes[entry.id].get("y")) < float(boxes[record.id].get("y"))
    _, _, width, height = map(float, svg.get("viewBox").split())
    spans = sorted(
        (float(b.get("y")), float(b.get("x")), float(b.get("x")) + float(b.get("width"))) for b in boxes.values()
    )
    assert all(left >= 0 and right <= width and top < height for top, left, right in spans)
    for (top, _, right), (other, left, _) in pairwise(spans):
        assert top != other or right < left  # boxes of a layer do not overlap


def test_lineage_lines_lead_from_every_input_to_its_users(made_up: MadeUp) -> None:
    """Follows the drawn lines downwards from every box: exactly the artifact's users are reached."""
    svg = ElementTree.fromstring(lineage_svg(made_up.subjects.ancestry, list(STAGES)))
    below: dict[tuple[float, float], set[tuple[float, float]]] = {}
    for path in svg.iter("path"):
        numbers = [float(found) for found in re.findall(r"[\d.]+", path.get("d"))]
        start, end = (
            (numbers[0], numbers[1]),
            (numbers[-2], numbers[-1]) if "C" in path.get("d") else (numbers[0], numbers[1] + numbers[2]),
        )
        below.setdefault(start, set()).add(end)
    boxes = {group.find("title").text: group.find("rect") for group in svg.iter("g")}
    tops, bottoms = {}, {}
    for name, box in boxes.items():
        x, y, width, height = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        tops[round(x + width / 2, 1), y] = name
        bottoms[name] = (round(x + width / 2, 1), y + height)
    users: dict[str, set[str]] = {record.id: set() for record in made_up.subjects.ancestry}
    for record in made_up.subjects.ancestry:
        for entry in record.inputs.values():
            users[entry.id].add(record.id)
    for name, bottom in bottoms.items():
        reached, front = set(), [near(bottom, below)]
        while front:
            for end in below.get(front.pop(), ()):
                arrived = near(end, tops)
                if arrived in tops:
                    reached.add(tops[arrived])
                else:
                    front.append(near(end, below))
        assert reached == users[name]


def test_lineage_lines_go_round_boxes(made_up: MadeUp) -> None:
    svg = ElementTree.fromstring(lineage_svg(made_up.subjects.ancestry, list(STAGES)))
    lanes = [re.fullmatch(r"M([\d.]+) (\d+)v(\d+)", path.get("d")) for path in svg.iter("path")]
    lanes = [(float(lane[1]), float(lane[2])) for lane in lanes if lane]
    assert lanes
    for box in svg.iter("rect"):
        left, top, width = (float(box.get(key)) for key in ("x", "y", "width"))
        assert not [lane for lane in lanes if lane[1] == top and left <= lane[0] <= left + width]


def near(point: tuple[float, float], known: dict) -> tuple[float, float]:
    """The known point that is this one up to rounding."""
    return next((p for p in known if abs(p[0] - point[0]) < 0.3 and abs(p[1] - point[1]) < 0.3), point)
