"""Every family as a Hugging Face directory with weights of a realistic scale."""

import pytest

from configs.schema import resolve_model
from parity_tests.models import MODELS, random_weights, tokenizer_for
from scratchgpt.hf_directory import write_hf_directory


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """Hugging Face directory of each of the models, by name."""
    root = tmp_path_factory.mktemp("exports")
    for name in MODELS:
        model = resolve_model(MODELS[name])
        write_hf_directory(root / name, model, random_weights(model).__getitem__, tokenizer_for(model), "# card\n")
    return {name: root / name for name in MODELS}
