"""Where networks run."""

from __future__ import annotations

from understudy.errors import ConfigError


def resolve_device(device: str) -> str:
    """Return "cpu" or "cuda" for what `runtime.device` asks; "auto" is the GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for that PyTorch cannot use, or the word is none of these.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"runtime.device (UNDERSTUDY_DEVICE) is {device!r}; choose auto, cpu or cuda.")
    usable = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if usable else "cpu"
    if device == "cuda" and not usable:
        why = "the driver shows none" if torch.version.cuda else "it is built without CUDA"
        raise ConfigError(
            f"runtime.device (UNDERSTUDY_DEVICE) is cuda, but PyTorch {torch.__version__} can use no GPU here: {why}. "
            "Set runtime.device to auto or cpu, or run where a GPU and a PyTorch with CUDA are."
        )
    return device
