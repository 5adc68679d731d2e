"""Hugging Face directories to torchgpt models and back, one tensor at a time."""

from pathlib import Path

import numpy as np
import torch

from data_prep.tokenizers import Tokenizer
from scratchgpt.hf_directory import open_hf_directory, write_hf_directory
from torchgpt.model import GPT


def load_model(directory: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> GPT:
    """The model of ``directory``, ready for inference. Memory peaks near the weights' own size.

    Raises UserError with one sentence for whatever is wrong with the directory.
    """
    stored = open_hf_directory(directory)
    with torch.device("meta"):
        model = GPT(stored.model)
    model.to_empty(device=device).to(dtype)
    targets = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in stored.parameters():
            target = targets.pop(name)
            target.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))
    assert not targets, f"parameters without a value: {list(targets)}"
    return model.eval()


def save_model(model: GPT, tokenizer: Tokenizer, directory: Path | str, card: str = "") -> None:
    """Write ``model`` and ``tokenizer`` as a Hugging Face directory, whole or not at all."""
    parameters = dict(model.named_parameters())

    def get(name: str) -> np.ndarray:
        return parameters[name].detach().to("cpu", torch.float32).numpy()

    write_hf_directory(directory, model.config, get, tokenizer, card)
