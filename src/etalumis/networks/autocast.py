"""Precision of products: autograd functions that choose their own, and whether bf16 pays on this processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_DEVICES = ("cpu", "cuda")


def autocast_dtype(like: Tensor) -> torch.dtype:
    """The precision of matrix products here: autocast's where it is on, else that of a tensor."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def has_bf16_products() -> bool:
    """Whether the processor has instructions for them; without, a convolution in bf16 is some hundred times slower."""
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def without_autocast(function: type[torch.autograd.Function]) -> dict[str, Any]:
    """By device type, the function with autocast off in its forward and its backward pass.

    Autocast would cast whole pages of a bank where a few rows are needed.
    """
    return {device: _for_device(function, device) for device in _DEVICES}


def _for_device(function: type[torch.autograd.Function], device: str) -> type[torch.autograd.Function]:
    forward: Any = torch.amp.custom_fwd(function.forward, device_type=device, cast_inputs=torch.float32)
    backward: Any = torch.amp.custom_bwd(function.backward, device_type=device)
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"{function.__name__}_{device}", (torch.autograd.Function,), members)
