import json
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[1] / "browser"))  # page_user.py: how browsers are started
TASKS = ["count", "a<b"]


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory):
    """Eight questions of two tasks; "V 0, rest 1" gains 0 and 2 in layer 1 and loses 4 there, "V 1, rest 0" loses 1 in layer 0."""
    folder = tmp_path_factory.mktemp("sweep")
    about = {
        "format": "sinkgate-study",
        "version": 1,
        "study": "sweep",
        "finished": "now",
        "units": 1,
        "started": "now",
    }
    about |= {key: {} for key in ("settings", "model", "data", "made_with")}
    (folder / "study.json").write_text(json.dumps(about))
    items = pd.DataFrame(
        {
            "sample": range(8),
            "task": [TASKS[n % 2] for n in range(8)],
            "id": [f"id-{n}" for n in range(8)],
            "answer": "2",
        }
    )
    right = {n: n in (1, 4, 5) for n in range(8)}
    cells = {
        (-1, 1.0, 1.0): {},
        (0, 0.0, 1.0): {},
        (0, 1.0, 0.0): {1: False},
        (1, 0.0, 1.0): {0: True, 2: True, 4: False},
        (1, 1.0, 0.0): {},
    }
    answers = [
        {
            "sample": n,
            "layer": layer,
            "v_sink": v_sink,
            "l_sink": rest,
            "ordinary": rest,
            "right": turned.get(n, right[n]),
            "loss": 1.0,
        }
        for (layer, v_sink, rest), turned in cells.items()
        for n in range(8)
    ]
    items.to_parquet(folder / "items.parquet")
    scales = {"v_sink": "float32", "l_sink": "float32", "ordinary": "float32", "layer": "int16"}
    pd.DataFrame(answers).astype(scales).to_parquet(folder / "answers.parquet")
    return folder
