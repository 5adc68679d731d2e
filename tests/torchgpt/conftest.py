"""Models as Hugging Face directories: every family at a realistic scale, and two to talk to."""

import pytest
from chat_models import save_endless, save_trained

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


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Hugging Face directory of a model that knows the answers of ``chat_models.ANSWERS`` by heart."""
    return save_trained(tmp_path_factory.mktemp("chat") / "trained")


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    """Hugging Face directory of a model that never stops at temperature 0."""
    return save_endless(tmp_path_factory.mktemp("chat") / "endless")
