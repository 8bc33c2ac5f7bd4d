"""All benchmarks: ``python tests/benchmarks [--json] [--only attention] [--only app]``. Ratios against a peer in the same run."""

from __future__ import annotations

import json
import platform
from datetime import date
from typing import Annotated, Any

import app_latency
import attention_cost
import torch
import transformers
import typer

SUITES = {"attention": attention_cost.measure, "app": app_latency.measure}


def main(
    only: Annotated[list[str] | None, typer.Option(help="attention, app; all if left out.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Times that each variant of the attention benchmark runs.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure, and print a table or JSON."""
    rows: list[dict[str, Any]] = []
    for name in only or SUITES:
        rows += SUITES[name](rounds=rounds)
    if as_json:
        machine = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        print(json.dumps({**machine, "rows": rows}, indent=1))
        return
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        aim = f"   aim {row['aim']}" if row.get("aim") else ""
        print(f"{row['what']:<{width}}  {row['value']:>9.3f} {row['unit']:<4}{aim}   {row.get('detail', '')}")


if __name__ == "__main__":
    typer.run(main)
