"""Parts of a report's page: headline figures and tables."""

from html import escape

Card = tuple[str, str]  # a headline figure, and what it is


def table(head: list[str], rows: list[list[str]], ours: int = -1) -> str:
    """The HTML of a table, which scrolls where the page is narrower; the row `ours` stands out."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(
        f"<tr{' class=ours' if i == ours else ''}>{line}</tr>" for i, line in enumerate(lines)
    )
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="scroll"><table><tr>{header}</tr>{body}</table></div>'
