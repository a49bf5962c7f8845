"""The calibration's picture of error against cost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fpsgen.report.calibration import frontier as picture
from tests.tools.calibration_records import frontier


def labels(points: list[dict[str, Any]]) -> tuple[list[Any], Any]:
    """What the frontier's labels cover, in pixels, and the figure."""
    figure = Figure(figsize=(8.8, 5.2), dpi=192)
    canvas = FigureCanvasAgg(figure)
    picture.draw(figure, points)
    canvas.draw()
    return [text for text in figure.axes[0].texts if text.get_text()], canvas.get_renderer()


@pytest.mark.parametrize("points", [14, 64])
def test_labels_of_the_frontier_do_not_overlap(points: int) -> None:
    given = frontier(points)
    given += [
        entry | {"name": f"{entry['name']}-{n}"} for n in range(9) for entry in given if entry["kind"] == "preset"
    ]
    texts, renderer = labels(given)
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert len({text.get_text() for text in texts}) == len(texts)
    assert any(text.get_text().startswith("c2") for text in texts), "the chosen one has its name"
    assert 4 < len(texts) <= 8
    assert not [1 for n, box in enumerate(boxes) for other in boxes[:n] if box.overlaps(other)]


def test_the_chosen_one_without_a_name_is_called_chosen() -> None:
    given = [point | {"name": ""} for point in frontier(14)]
    texts, _ = labels(given)
    assert [text.get_text() for text in texts] == ["chosen, 31.8 dB"]


def test_the_line_joins_only_what_nothing_cheaper_beats() -> None:
    assert picture._unbeaten([(0.5, 2.0), (0.1, 9.0), (0.6, 3.0), (0.9, 1.0)]) == [(0.1, 9.0), (0.5, 2.0), (0.9, 1.0)]


def test_the_chosen_one_has_its_name_even_in_a_crowd() -> None:
    given = frontier(14)
    chosen = next(point for point in given if point["chosen"])
    for x, y in itertools.product(range(20), range(40)):
        given.append(given[0] | {"cost": x / 20, "error": 10 ** (-5 + y * 3 / 40)})
    chosen["name"] = "$\\frac$"
    texts, _ = labels(given)
    assert texts[0].get_text().startswith("$\\frac$")
