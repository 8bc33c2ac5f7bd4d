"""A server without sinkgate: run in a process of its own by test_runtime.py with folders of exported gates, models and inputs.

Importing sinkgate raises here. Each folder holds ``inputs.pt``, ``model.txt`` (the folder of the model) and the exported files; the tokens
and the logits of the first step are written to its ``outputs.pt``.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

sys.modules["sinkgate"] = None  # type: ignore[assignment]  # importing it raises


def serve(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("sink_runtime", folder / "sink_runtime.py")
    runtime = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runtime)
    model = AutoModelForImageTextToText.from_pretrained((folder / "model.txt").read_text(), dtype=torch.float32).eval()
    inputs, length = torch.load(folder / "inputs.pt"), 6

    def generate(**options):
        return model.generate(
            **inputs,
            max_new_tokens=length,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )

    plain = generate()
    gates = runtime.apply_gates(model)
    gated, beams = generate(), generate(num_beams=2)
    gates.remove()
    prompt = inputs["input_ids"].shape[1]
    outputs = {"tokens": gated.sequences[:, prompt:], "logits": torch.stack(gated.logits, 1)}
    outputs |= {"beams": beams.sequences[:, prompt:], "plain": torch.stack(plain.logits, 1)}
    outputs["again"] = torch.stack(generate().logits, 1)
    torch.save(outputs, folder / "outputs.pt")


if __name__ == "__main__":
    try:
        import sinkgate  # noqa: F401
    except ImportError:
        for name in sys.argv[1:]:
            serve(Path(name))
    else:
        sys.exit("sinkgate was imported")
