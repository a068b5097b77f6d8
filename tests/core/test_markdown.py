"""Tables in Markdown."""

from core.markdown import markdown_table


def test_cells_are_written_as_they_are() -> None:
    table = markdown_table(["class", "share"], [("cat", "1e-3"), ("dog", "10.50%")])
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert head == ["class", "share"] and rows == [["cat", "1e-3"], ["dog", "10.50%"]]


def test_a_table_without_rows_has_its_columns() -> None:
    assert markdown_table(["a", "b"], []).splitlines()[0].split() == ["|", "a", "|", "b", "|"]
