"""Bounds of a GPU: bytes of weights over bandwidth in decode, operations over peak in prefill."""

from __future__ import annotations

from statistics import median

import torch
from models import Subject
from timing import Row, duration

#: Bytes a second and dense bfloat16 operations a second, from NVIDIA's data sheets, by the name that CUDA gives.
DEVICES = {
    "NVIDIA A100-SXM4-40GB": (1.555e12, 312e12),
    "NVIDIA A100-SXM4-80GB": (2.039e12, 312e12),
    "NVIDIA H100 80GB HBM3": (3.35e12, 989e12),
    "NVIDIA H100 PCIe": (2.0e12, 756e12),
    "NVIDIA H200": (4.8e12, 989e12),
    "NVIDIA L4": (300e9, 121e12),
    "NVIDIA L40S": (864e9, 362e12),
    "NVIDIA GeForce RTX 4090": (1.008e12, 165e12),
}
H100 = DEVICES["NVIDIA H100 80GB HBM3"]


def rows(subject: Subject, prefill: list[float], step: list[float]) -> list[Row]:
    """Return gated prefill and decode over the GPU's limit; nothing on a CPU, whose name does not give its limit."""
    if subject.vlm.device.type != "cuda":
        return []
    device = torch.cuda.get_device_name(subject.vlm.device)
    names = ("gated prefill / operations over peak", "gated decode / bytes over bandwidth")
    if device not in DEVICES:
        return [Row(name, subject.name, None, note=f"the limit of {device} is unknown to bounds.py") for name in names]
    bandwidth, peak = DEVICES[device]
    limits = operations(subject) / peak, bytes_a_token(subject) / bandwidth
    return [
        Row(name, subject.name, median(seconds) / limit, note=f"{duration(limit)} on {device}")
        for name, seconds, limit in zip(names, (prefill, step), limits, strict=True)
    ]


def operations(subject: Subject) -> float:
    """Return the operations of a prefill: two for each weight and position, and the two products of causal attention."""
    config, length = subject.model.config.get_text_config(), subject.prompt.num_keys
    weights = sum(parameter.numel() for parameter in subject.vlm.decoder.layers.parameters())
    attention = 2 * length**2 * config.hidden_size * config.num_hidden_layers  # half of the square is masked
    return 2 * weights * length + attention + 2 * config.vocab_size * config.hidden_size


def bytes_a_token(subject: Subject) -> float:
    """Return the bytes read for one token: weights of the layers and the output layer, Keys and Values of the prompt."""
    model = subject.model
    config = model.config.get_text_config()
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    parameters = [*subject.vlm.decoder.layers.parameters(), *model.get_output_embeddings().parameters()]
    weights = sum(parameter.nbytes for parameter in parameters)
    return weights + 2 * heads * subject.prompt.num_keys * config.num_hidden_layers * model.dtype.itemsize
