"""What pictures that compare runs show, and how much room they give to it."""

from typing import Any

import numpy as np

from analysis import charts
from analysis.figures import COLOURS

LONG = "sgd, network lenet5-bn, learning rate 0.0125, batch size 128, denoise gaussian, normalize zca-half"


def points(axes: Any) -> list[tuple[str, list[float], list[float]]]:
    """Label, places and values of each line."""
    return [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]


def test_labels_take_a_quarter_of_the_width_at_most() -> None:
    for name in ("sgd", LONG, "x" * 90):
        drawn = [charts.plot_rows({name: charts.Row([1, 2, 3], (0.5, 3.5), 2.5)}, "accuracy, %", "title")]
        drawn.append(charts.plot_heat_map(np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]), [name], list("abcdef"), "title"))
        for figure in drawn:
            figure.draw_without_rendering()
            left = figure.axes[0].get_window_extent().x0
            assert left < 0.27 * figure.bbox.width  # with the ticks


def test_a_row_shows_its_runs_their_mean_its_interval_and_the_reports_figure() -> None:
    rows = {"a": charts.Row([1, 3], (0, 4), 2.5), "b": charts.Row([5])}
    figure = charts.plot_rows(rows, "difference", "title", zero=True)
    drawn = {(label, y[0]): x for label, x, y in points(figure.axes[0])}
    assert drawn["one pair of runs", 0] == [1, 3] and drawn["mean", 0] == [2] and drawn[charts.INTERVAL, 0] == [0, 4]
    assert drawn["the report", 0] == [2.5] and drawn["one pair of runs", 1] == [5] and ("mean", 1) not in drawn
    assert [0, 0] in drawn.values()
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["one pair of runs", "mean", charts.INTERVAL, "the report"]


def test_groups_have_the_same_colour_in_all_panels_and_a_single_point_is_seen() -> None:
    panels: Any = {"one": {"a": [{1: 70}], "b": [{1: 60, 2: 64}, {1: 62, 2: 66}]}, "two": {"b": [{1: 50, 2: 51}]}}
    figure = charts.plot_lines(panels, ("epoch", "accuracy, %"), "title")
    first, second = ({str(line.get_label()): line for line in axes.get_lines()} for axes in figure.axes)
    assert first["a"].get_marker() == "o" and first["b"].get_marker() == ""
    assert ("b", [1, 2], [61, 65]) in points(figure.axes[0])
    assert first["a"].get_color() == COLOURS[0] and first["b"].get_color() == second["b"].get_color() == COLOURS[1]


def test_runs_at_different_places_are_averaged_where_they_are() -> None:
    runs = [{0.1: 70.0}, {0.1: 72.0}, {0.2: 60.0}]
    figure = charts.plot_lines({"": {"sgd": runs}}, ("learning rate", "accuracy, %"), "title", log=True)
    assert ("sgd", [0.1, 0.2], [71, 60]) in points(figure.axes[0])
    assert figure.axes[0].get_xscale() == "log"


def test_a_heat_map_leaves_out_what_was_not_run() -> None:
    figure = charts.plot_heat_map(np.array([[70.0, np.nan], [60.0, 65.0]]), ["a", "b"], ["c", "d"], "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["70.0", "60.0", "65.0"]
