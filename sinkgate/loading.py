"""Loading a model, and proving on a small prompt that it is read rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sinkgate.errors import UnsupportedModelError
from sinkgate.gates import Gates
from sinkgate.sinks import classify
from sinkgate.vlm import VLM, Prompt, refuse_unsupported

DEMO = Path(__file__).parent / "demo" / "weights"


def load(
    source: str | Path | tuple[Any, Any] = "demo",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    check: bool = True,
) -> VLM:
    """A vision-language model, ready to be asked and gated.

    Args:
        source: "demo", a Hub id, a folder, or (model, processor), which is taken as it is: the options from
            ``device`` to ``trust_remote_code`` are for loading.
        device: where to put it; None takes a GPU when there is one.
        dtype: as transformers takes it; None is float32 for the demo, else what the weights were saved in.
        revision: branch, tag or commit on the Hub.
        attn_implementation: "sdpa" or "eager".
        trust_remote_code: run code that comes with the weights; never unless you ask.
        check: prove on a small prompt that patches map to tokens, attention is seen and gates move the logits.

    Raises:
        UnsupportedModelError: nothing there to load, a family that is not supported, or a failed check.
    """
    if isinstance(source, tuple):
        model, processor = source
        name = model.config._name_or_path or type(model).__name__
        vlm = VLM(model, processor, Path(name).name if Path(name).exists() else name)
    else:
        place = DEMO if source == "demo" else source
        name = "demo" if source == "demo" else Path(source).name if Path(source).exists() else str(source)
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        dtype = dtype or (torch.float32 if source == "demo" else "auto")
        try:
            refuse_unsupported(AutoConfig.from_pretrained(place, **options), name)
            model = AutoModelForImageTextToText.from_pretrained(
                place, dtype=dtype, attn_implementation=attn_implementation, **options
            )
            processor = AutoProcessor.from_pretrained(place, **options)
        except UnsupportedModelError:
            raise
        except (OSError, ValueError, SafetensorError) as error:
            raise UnsupportedModelError(f"{source} cannot be loaded: {_first_sentence(error)}") from error
        vlm = VLM(_placed(model, device), processor, name)
    if check:
        check_model(vlm)
    return vlm


def check_model(vlm: VLM) -> None:
    """Prove on a small prompt that this model is read rightly.

    Raises:
        UnsupportedModelError: visual tokens are not one a patch in order, a layer's attention is not seen, its rows
            do not sum to one, or gating every visual Key does not move the logits.
    """
    prompt = vlm.prompt(_test_picture(), "What is this?")
    order = token_of_patch(vlm, prompt)
    if not torch.equal(order, torch.arange(len(prompt.visual))):
        raise UnsupportedModelError(
            f"{vlm.name}: patch i does not become visual token i alone; got {order.tolist()[:8]}..."
        )
    plain = vlm.predict(prompt)
    if len(plain.attention) != vlm.num_layers:
        raise UnsupportedModelError(f"{vlm.name}: attention seen in {len(plain.attention)} of {vlm.num_layers} layers")
    if not torch.allclose(plain.attention.sum(-1).float(), torch.ones(()), atol=1e-3):
        raise UnsupportedModelError(f"{vlm.name}: attention rows do not sum to one")
    seen = vlm.observe(prompt)
    everything = classify(seen, prompt.grid, v_sink="norm", l_sink="norm")
    halved = Gates.ones(vlm).set("v_sink", 0.5).set("rest", 0.5)
    if torch.equal(vlm.predict(prompt, halved, everything).probabilities, plain.probabilities):
        raise UnsupportedModelError(f"{vlm.name}: halving every visual Key does not move the logits")


def token_of_patch(vlm: VLM, prompt: Prompt) -> Tensor:
    """Which visual token each patch feeds, measured by gradients of the projected image.

    The gradient of sum_k r.token_k, with random r, is spread over the patches that feed any token; the same sum over
    only those k whose binary digit i is 1 gives either that gradient again or zero: digit i of the patch's token.
    Zeros and ones survive any dtype. -1: the patch feeds no token, or several.

    Shapes: -> (V,) int64.
    """
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        leaves.append(hidden.detach().requires_grad_())
        return (leaves[0], *output[1:]) if isinstance(output, tuple) else leaves[0]

    with vlm.lock, torch.enable_grad():
        # before the hooks by which transformers captures hidden states, so that those see the leaf
        hook = vlm.vision_tower.encoder.layers[vlm.feature_layer].register_forward_hook(cut, prepend=True)
        try:
            tokens = torch.cat(list(vlm.encode(prompt).pooler_output)).double()
        finally:
            hook.remove()
        weights = torch.randn(tokens.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.double)
        each = tokens @ weights.to(tokens.device)
        number = torch.arange(len(each), device=each.device)
        plain = torch.autograd.grad(each.sum(), leaves[0], retain_graph=True)[0][0].double()
        found = torch.zeros(len(plain), dtype=torch.long, device=plain.device)
        clean = plain.abs().amax(-1) > 0
        for digit in range(max(1, (len(each) - 1).bit_length())):
            chosen = (number >> digit & 1).double()
            part = torch.autograd.grad((chosen * each).sum(), leaves[0], retain_graph=True)[0][0].double()
            one = (part * plain).sum(-1) > 0.5 * plain.square().sum(-1)
            clean &= (part - one[:, None] * plain).abs().amax(-1) <= 1e-2 * plain.abs().amax(-1)
            found += one.long() << digit
    found = torch.where(clean, found, -1).cpu()
    return found[1:] if vlm.has_cls else found


def _placed(model: Any, device: str | torch.device | None) -> Any:
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch was built without it, or no such device is there
        raise UnsupportedModelError(f"the model cannot be put on {device}: {_first_sentence(error)}") from error


def _test_picture() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
