"""Hugging Face directories to torchgpt models and back, one tensor at a time."""

from pathlib import Path

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from data_prep.tokenizers import Tokenizer
from scratchgpt.hf_directory import open_hf_directory, write_hf_directory
from torchgpt.model import GPT


class _LeftUninitialized(TorchFunctionMode):
    """Random starting values are not drawn: on the meta device that imports PyTorch's compiler, for seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def load_model(directory: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> GPT:
    """The model of ``directory``, ready for inference. Memory peaks near the weights' own size.

    Raises UserError with one sentence for whatever is wrong with the directory.
    """
    stored = open_hf_directory(directory)
    with torch.device("meta"), _LeftUninitialized():
        model = GPT(stored.model)
    weights = {name: torch.from_numpy(array).to(device, dtype) for name, array in stored.parameters()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def save_model(model: GPT, tokenizer: Tokenizer, directory: Path | str, card: str = "") -> None:
    """Write ``model`` and ``tokenizer`` as a Hugging Face directory, whole or not at all."""
    parameters = dict(model.named_parameters())

    def get(name: str) -> np.ndarray:
        return parameters[name].detach().to("cpu", torch.float32).numpy()

    write_hf_directory(directory, model.config, get, tokenizer, card)
