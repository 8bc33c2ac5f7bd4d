"""Many users on one app: ``python tests/load --users 20 --minutes 10``, or an hour with few for what grows.

Prints latencies, replies that were not the user's own, refusals, and the server's memory, threads and files over time.
The users run on the machine that serves, and take their share of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[1] / "browser"),
    str(Path(__file__).parents[2]),
]

from app_process import running_app
from load_clients import Notes, PageClient, Person, Program, demo, errands


def main() -> int:
    parser = argparse.ArgumentParser(description="Visit the app with many, and compare all that comes back.")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--browsers", type=int, default=2, help="of them with a browser and a mouse")
    parser.add_argument(
        "--programs", type=int, default=3, help="of them with gradio_client; the others speak as a page does"
    )
    parser.add_argument("--model", default="demo-large", choices=("demo-small", "demo-large"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--errands", type=int, default=6, help="different scenes, questions and gates of a user")
    parser.add_argument("--every", type=float, default=10, help="seconds between two looks at the server")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    options = parser.parse_args()
    vlm = demo(options.model)
    planned = [errands(vlm, number, options.errands) for number in range(options.users)]
    notes, stop = Notes(), threading.Event()
    with running_app("--model", options.model) as app:
        server = psutil.Process(app.process.pid)
        kinds = [Person] * options.browsers + [Program] * options.programs
        kinds += [PageClient] * (options.users - len(kinds))
        crowd = [
            kind(app.address, plan, notes, stop, number, options.model)
            for number, (kind, plan) in enumerate(zip(kinds, planned, strict=True))
        ]
        for user in crowd:
            user.start()
        looks, began = [], time.monotonic()
        while (now := time.monotonic() - began) < 60 * options.minutes:
            stop.wait(min(options.every, 60 * options.minutes - now))
            with server.oneshot():
                looks.append(
                    {
                        "second": round(time.monotonic() - began),
                        "MiB": round(server.memory_info().rss / 2**20, 1),
                        "threads": server.num_threads(),
                        "files": server.num_fds(),
                    }
                )
            sys.stderr.write(
                f"{looks[-1]} right {notes.right} wrong {len(notes.wrong)} refused {sum(notes.refused.values())}\n"
            )
        stop.set()
        for user in crowd:
            user.join(90)
    latencies = {
        name: {
            "count": len(seconds),
            **{f"p{share} ms": round(1000 * float(np.percentile(seconds, share))) for share in (50, 95, 99)},
        }
        for name, seconds in sorted(notes.seconds.items())
    }
    result = {
        "model": options.model,
        "users": options.users,
        "minutes": options.minutes,
        "right": notes.right,
        "wrong": notes.wrong,
        "refused": dict(notes.refused),
        "latencies": latencies,
        "server": looks,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    sys.stdout.write(json.dumps({**result, "server": [looks[0], looks[len(looks) // 2], looks[-1]]}, indent=1) + "\n")
    return bool(notes.wrong)


if __name__ == "__main__":
    sys.exit(main())
