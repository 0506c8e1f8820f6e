"""The measurements under results/ as one page. Each file says what was measured, where, when, on which commit, how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NEEDED = ("title", "machine", "date", "commit", "commands", "columns", "rows")
INTRODUCTION = """# Results

Every table is made of a file under `results/`, with its machine, date, commit and command. The machines' cores and
memory are shared with others: the same thing takes up to a third longer from one quarter of an hour to the next, so
ratios within a table say more than numbers of two tables. What is not here was not measured. A commit of 29 or 30
November 2026 that is not in the log is a state on the way to the ten commits of 30 November that end with "Package,
workflows and checks", which brought that work to main together.
"""


def load(path: Path) -> dict[str, Any]:
    """One result. Raises `ValueError` when something is missing, or a row has another width than the columns."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = [name for name in NEEDED if name not in result]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}")
    if any(len(row) != len(result["columns"]) for row in result["rows"]):
        raise ValueError(f"{path.name}: a row has another number of cells than there are columns")
    return result


def page(folder: Path) -> str:
    """All results, in the order of their files' names."""
    return "\n".join([INTRODUCTION, *(table(load(path)) for path in sorted(folder.glob("*.json")))])


def table(result: dict[str, Any]) -> str:
    """One result as a section."""
    head = [f"## {result['title']}", "", *([result["about"], ""] if result.get("about") else [])]
    marks = ["---" if _is_text(result["rows"], column) else "---:" for column in range(len(result["columns"]))]
    body = [_row(result["columns"]), _row(marks), *(_row(row) for row in result["rows"])]
    origin = f"{result['machine']}; {result['date']}; commit {result['commit']}."
    commands = ["", *(f"    {command}" for command in result["commands"]), ""]
    return "\n".join([*head, *body, "", origin, *commands, *([result["notes"], ""] if result.get("notes") else [])])


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:,.3f}".rstrip("0").rstrip(".") if abs(cell) < 10 else f"{cell:,.1f}".rstrip("0").rstrip(".")
    return f"{cell:,}" if isinstance(cell, int) else str(cell if cell is not None else "")


def _is_text(rows: list[list[Any]], column: int) -> bool:
    return column == 0 or any(
        isinstance(row[column], str) and not row[column].lstrip("+-")[:1].isdigit() for row in rows
    )
