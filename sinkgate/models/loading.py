"""Model loading by name, Hub id or folder, or from (model, processor)."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import peft_utils
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME as ADAPTER

from sinkgate.attention.patch import can_be_gated
from sinkgate.errors import UnsupportedModelError
from sinkgate.models.checks import BITS, check_config, check_memory, check_model, check_weights
from sinkgate.models.load_errors import first_sentence, in_words
from sinkgate.models.vlm import VLM

DEMO = Path(__file__).parents[1] / "demo" / "weights"
#: Models inside the package, by name: the demo model, and a larger one with the L-sinks of a pretrained LLM.
BUILT_IN = {"demo": DEMO, "demo-large": DEMO.with_name("weights-large")}
ALIASES = {"demo-small": "demo"}  # further names of built-in models
DTYPES = ("float32", "bfloat16", "float16", "float64")
#: Short names: Hub id (``id``) and a remark (``note``). The ids are fixed; the caller chooses the revision.
KNOWN_MODELS: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("known_models.json").read_text(encoding="utf-8")
)

DeviceMap = str | dict[str, int | str | torch.device]


def load(
    source: str | Path | tuple[Any, Any] = "demo",
    *,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantize: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    check: bool = True,
) -> VLM:
    """Load a vision-language model.

    Args:
        source: ``"demo"`` (also ``"demo-small"``) or ``"demo-large"``, parts of this package; a name of ``sinkgate models`` such as ``"llava-1.5-7b"``; a Hub id; a
            folder as ``save_pretrained`` or ``hf download`` writes it; or (model, processor), taken as they are.
        device: where to put the model; None or ``"auto"`` takes an accelerator (CUDA, MPS, XPU, ...) where there is one, else the CPU.
        device_map: spread it over several devices, CPU memory and disk: ``"auto"`` or a map of modules, as
            ``from_pretrained`` takes it. Gates follow each layer to its device.
        dtype: float32, bfloat16, float16 or float64; the checkpoint's own (demo: float32) where None. Warns where a CPU has to emulate it.
        revision: branch, tag or commit on the Hub; its main branch where None. Name a commit to get the same weights for good:
            known names fix the Hub id only. Refused for a demo model and for a folder, which have none.
        attn_implementation: sdpa, eager, flash_attention_2, flash_attention_3, flex_attention or a kernel of the Hub; sdpa where the
            architecture has it, else eager, where None. Only sdpa and eager take rules that need logits or probabilities.
        quantize: ``"4bit"`` (nf4) or ``"8bit"`` weights by bitsandbytes, the encoder's too; everything but the output layer.
        trust_remote_code: run code that comes with the checkpoint.
        local_files_only: do not ask the Hub; as with HF_HUB_OFFLINE=1.
        check: run a small prompt to see that attention is recorded and gated (see ``check_model``).

    Images need no torchvision where transformers has a Pillow image processor; the processor then takes no videos.

    Raises:
        UnsupportedModelError: there is no such model, it cannot be loaded or gated, or a check failed; the message says what to do.
    """
    if not isinstance(cast(object, source), str | Path | tuple) or (
        isinstance(source, tuple) and (len(source) != 2 or not hasattr(source[0], "config"))
    ):
        raise UnsupportedModelError(f"got {_kind(source)}, expected a name, a folder or (model, processor)")
    if isinstance(source, tuple):
        if any((device, device_map, dtype, revision, attn_implementation, quantize)):
            raise UnsupportedModelError(
                "a (model, processor) is taken as it is; leave the other options out, or load by name or folder"
            )
        model, processor = source
        name = model.config._name_or_path or type(model).__name__
        name = Path(name).name if Path(name).exists() else name
        check_config(model.config, name)
    else:
        source = ALIASES.get(source, source) if isinstance(source, str) else source
        location, name = _find(source)
        if revision is not None and Path(location).is_dir():
            origin = "part of this package" if source in BUILT_IN else "a folder"
            raise UnsupportedModelError(
                f"revision is {revision!r}, and {source} is {origin}, which has none; leave it out, or load by a Hub id"
            )
        if attn_implementation is not None and not can_be_gated(attn_implementation):
            raise UnsupportedModelError(
                f"attn_implementation is {attn_implementation!r}; expected sdpa, eager, flash_attention_2, flash_attention_3, "
                "flex_attention, or a kernel of the Hub such as kernels-community/flash-attn2"
            )
        wanted = _dtype(dtype or ("float32" if isinstance(source, str) and source in BUILT_IN else None))
        spread = _spread(device, device_map)
        files: dict[str, Any] = {
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "local_files_only": local_files_only,
        }
        with in_words(f"{name} cannot be loaded", location):
            try:
                config: Any = cast(Any, AutoConfig).from_pretrained(location, **files)
            except (OSError, ValueError):
                _refuse_adapter(location, name, files)
                raise
        check_config(config, name)
        quantization = _quantization(quantize, wanted or config.dtype)
        with in_words(f"the processor of {name} cannot be loaded", location, "save the model's own beside its weights"):
            processor = _processor(location, config, files)
        with in_words(f"{name} cannot be loaded", location):
            if isinstance(spread, torch.device):
                check_memory(config, name, device=spread, location=location, dtype=wanted, quantize=quantize)
                spread = {"": spread}
            if (Path(location) / ADAPTER).exists() and find_spec("peft") is None:
                raise UnsupportedModelError(f"{name} holds a PEFT adapter beside its weights: run `pip install peft`")
            try:
                loaded: Any = cast(Any, AutoModelForImageTextToText).from_pretrained(
                    location,
                    dtype=wanted or "auto",
                    device_map=spread,
                    quantization_config=quantization,
                    attn_implementation=attn_implementation,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # `check_weights` refuses them, by name
                    **files,
                )
            except OSError:
                _refuse_adapter(location, name, files)
                raise
            model, report = loaded
            check_weights(report, name)
            model.config._commit_hash = _commit(location, revision)  # transformers 5 no longer does
    vlm = VLM(model, processor, name)
    if vlm.device.type == "meta":
        raise UnsupportedModelError(
            f"the device map of {name} offloads its first module, and inputs go where that is; keep the first one on a device"
        )
    if without_instructions(vlm.model.dtype, vlm.device):
        warnings.warn(
            f"{name} is in {str(vlm.model.dtype).removeprefix('torch.')}, for which this CPU has no instructions: "
            "dtype='float32' is several times faster and takes twice the memory",
            stacklevel=2,
        )
    if check:
        check_model(vlm)
    return vlm


def without_instructions(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device multiplies matrices of a 16-bit dtype by emulation, as CPUs without AVX-512 do."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    supported: Any = torch.ops.mkldnn
    if dtype == torch.bfloat16:
        return not supported._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and not supported._is_mkldnn_fp16_supported()


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where a device has instructions for it, else float32."""
    return torch.float32 if without_instructions(torch.bfloat16, device) else torch.bfloat16


def built_in_gates(name: str) -> Path | None:
    """Return the folder of the learned gates of a built-in model, None if there is none."""
    weights = BUILT_IN.get(ALIASES.get(name, name))
    gates = weights and weights.with_name(weights.name.replace("weights", "gates"))
    return gates if gates and gates.is_dir() else None


def _kind(value: object) -> str:
    names = [type(each).__name__ for each in (cast(tuple[Any, ...], value) if isinstance(value, tuple) else [value])]
    return f"({', '.join(names)})" if isinstance(value, tuple) else names[0]


def _find(source: str | Path) -> tuple[str, str]:
    """Return folder or Hub id of a model, and its name."""
    if isinstance(source, str) and source in BUILT_IN:
        return str(BUILT_IN[source]), source
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not any((folder / file).exists() for file in ("config.json", ADAPTER)):
            raise UnsupportedModelError(
                f"the folder {source} holds no config.json; give one that `save_pretrained` or `hf download` wrote"
            )
        return str(folder), folder.resolve().name
    if folder.exists():
        raise UnsupportedModelError(f"{source} is a file; give the folder that holds config.json and the weights")
    word = str(source)
    if isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", word):
        return word, word
    if isinstance(source, Path) or "/" in word or "\\" in word:
        raise UnsupportedModelError(f"the folder {source} does not exist")
    if word.lower() in KNOWN_MODELS:
        location = KNOWN_MODELS[word.lower()]["id"]
        return location, location
    near = get_close_matches(word.lower(), KNOWN_MODELS, n=3, cutoff=0.5)
    hint = f"near it: {', '.join(near)}" if near else "`sinkgate models` lists the known ones"
    raise UnsupportedModelError(f"no model and no folder is called {word!r}; {hint}. A Hub id reads owner/name")


def _commit(location: str, revision: str | None) -> str | None:
    """Return the commit of a model of the Hub that was just loaded; None for a folder."""
    config = None if Path(location).is_dir() else try_to_load_from_cache(location, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _refuse_adapter(location: str, name: str, files: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError where the files are a PEFT adapter without the weights of its base model."""
    options = {option: files[option] for option in ("revision", "local_files_only")}
    if (config := cast(Any, peft_utils).find_adapter_config_file(location, **options)) is None:
        return
    base = json.loads(Path(config).read_text(encoding="utf-8")).get("base_model_name_or_path") or "its base model"
    raise UnsupportedModelError(
        f"{name} is a PEFT adapter for {base}, without a model of its own: load {base} with transformers, merge with "
        "`PeftModel.from_pretrained(model, adapter).merge_and_unload()`, then save model and processor to a folder and load "
        "that, or hand in (model, processor)"
    )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return None
    if name not in DTYPES:
        raise UnsupportedModelError(f"no dtype is called {name!r}; expected one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def _spread(device: str | torch.device | None, device_map: DeviceMap | None) -> torch.device | DeviceMap:
    """Return the one device of a model, or the map over several."""
    if device is not None and device_map is not None:
        raise UnsupportedModelError("device and device_map are both given; give one of them")
    if device_map is not None:
        return device_map
    try:
        one = best_device() if device in (None, "auto") else torch.device(device)
        torch.empty(0, device=one)
    except (RuntimeError, AssertionError) as error:  # torch was built without it, or no such device is there
        raise UnsupportedModelError(
            f"the model cannot be put on {device or 'the accelerator'}: {first_sentence(error)}"
        ) from error
    return one


def best_device() -> torch.device:
    """Return the accelerator that torch can use here (CUDA, MPS, XPU, ...), else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _quantization(quantize: str | None, dtype: torch.dtype | None) -> BitsAndBytesConfig | None:
    if quantize is None:
        return None
    if quantize not in BITS:
        raise UnsupportedModelError(f"quantize is {quantize!r}; expected {' or '.join(BITS)}")
    if find_spec("bitsandbytes") is None:
        raise UnsupportedModelError("quantization needs bitsandbytes: run `pip install -U bitsandbytes`")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _processor(location: str, config: Any, files: dict[str, Any]) -> Any:
    """Load the model's processor, without its video part where that lacks torchvision and images do not need it."""
    try:
        return cast(Any, AutoProcessor).from_pretrained(location, **files)
    except (ImportError, ValueError) as error:
        kind: Any = PROCESSOR_MAPPING.get(cast(Any, type(config)), None)
        if "torchvision" not in str(error).lower() or kind is None or not _can_leave_out_videos(kind):
            raise
        parts = [part for part in kind.get_attributes() if part != "video_processor"]
        image_only = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _cls: parts)})
        return image_only.from_pretrained(location, **files)


def _can_leave_out_videos(kind: Any) -> bool:
    video = inspect.signature(kind.__init__).parameters.get("video_processor")
    return video is not None and video.default is None and kind.get_attributes()[-1] == "video_processor"
