"""A run of training in a process of its own, to be killed or launched twice: ``worker.py OUT OPTIONS``."""

import functools
import json
import os
import sys
import time
from pathlib import Path

import test_gate_training as tests
from tiny import tiny_llava

import sinkgate as sg


@functools.wraps(tests.few_v_sinks)
def slowly(vlm, prompt):
    time.sleep(float(os.environ.get("SLOW", "0")) / 4)
    return tests.few_v_sinks(vlm, prompt)


if __name__ == "__main__":
    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    vlm = sg.load(tiny_llava("siglip"))
    lsg = tests.fresh(vlm)
    tests.run(vlm, lsg, out, find=slowly, budget=0, **options)
    if int(os.environ.get("RANK", "0")) == 0:
        lsg.save_pretrained(out / "gates")
