"""A profile as Markdown, for the comment of a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeattn.profiling.figures import TITLES, Row, age_rows, latency_rows, notes
from edgeattn.profiling.report import Report


def markdown_of(report: Report, budget: Sequence[str]) -> str:
    """The figures as tables, the budget's lines before them, what they rest on after them."""
    return "\n".join(_lines(report, budget)) + "\n"


def _lines(report: Report, budget: Sequence[str]) -> Iterator[str]:
    yield f"### {report.bundle}: {TITLES[report.mode]}"
    yield ""
    for line in budget:
        yield f"- {'✅' if line.startswith('budget passed') else '❌' if line.startswith('budget failed') else '❔'} {line}"
    if budget:
        yield ""
    heads = [result.name for result in report.results]
    yield from table(heads, latency_rows(report))
    if ages := age_rows(report):
        yield from ("", "Age of a frame, ms:", "")
        yield from table(heads, ages)
    yield from ("", "<details><summary>what these rest on</summary>", "")
    yield from (f"- {_escaped(note)}" for note in notes(report))
    yield from ("", "</details>")


def table(heads: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """A table of GitHub's Markdown."""
    yield f"| | {' | '.join(map(_escaped, heads))} |"
    yield f"|---|{'---:|' * len(heads)}"
    for row in rows:
        yield f"| {row.label.strip()} | {' | '.join(map(_escaped, row.cells))} |"


def _escaped(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("<", "&lt;")
