"""Growth of waits with the users of one app, beside a single user's in the same run; every reply is compared with a direct computation.

``python benchmarks/users.py [--figure FILE.svg] [--json]``. The users are those of `tests/load`, run on the machine that serves, and take
their share of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from growth import Curves, draw

USERS = (1, 5, 10, 20)
LOAD = Path(__file__).parents[1] / "tests" / "load"
WAITS = {"fader": "a setting of a fader", "ask": "a question's first word", "answer": "both answers"}


def visit(users: int, minutes: float, model: str) -> dict[str, Any]:
    """Return the report of one visit: replies, refusals, waits in ms, the server's memory.

    Raises:
        RuntimeError: a reply was wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        counts = {"--users": users, "--browsers": 0, "--programs": users // 5, "--minutes": minutes}
        options = [str(part) for pair in counts.items() for part in pair]
        done = subprocess.run(
            [sys.executable, str(LOAD), *options, "--model", model, "--out", str(out)], stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise RuntimeError(f"{users} users received wrong replies, or the app did not start; see above")
        return json.loads(out.read_text(encoding="utf-8"))


def curves_of(reports: list[dict[str, Any]]) -> Curves:
    """Return the median of each wait by users, over a single user's."""
    users = [float(report["users"]) for report in reports]
    medians = {name: [report["latencies"][wait]["p50 ms"] for report in reports] for wait, name in WAITS.items()}
    return {name: (users, [each / times[0] for each in times]) for name, times in medians.items()}


def table(reports: list[dict[str, Any]]) -> str:
    """Return all waits in Markdown."""
    lines = [
        f"| wait, median / 95 % within | {' | '.join(str(report['users']) for report in reports)} |",
        "|---|" + "---:|" * len(reports),
    ]
    rows = {
        name: [
            f"{report['latencies'][wait]['p50 ms']:,} / {report['latencies'][wait]['p95 ms']:,} ms"
            for report in reports
        ]
        for wait, name in WAITS.items()
    }
    rows["replies compared, all right"] = [f"{report['right']:,}" for report in reports]
    rows["refused"] = [str(sum(report["refused"].values())) for report in reports]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="Of each number of users.")] = 2,
    model: Annotated[str, typer.Option(help="demo-large or demo-small.")] = "demo-large",
    figure: Annotated[Path | None, typer.Option(help="Draw into this SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure, and print a table in Markdown, or JSON."""
    reports = [visit(users, minutes, model) for users in USERS]
    print(json.dumps(reports, indent=1) if as_json else table(reports))
    if figure:
        draw({"users": curves_of(reports)}, figure, "times a single user's median", width=700)


if __name__ == "__main__":
    typer.run(main)
