"""Real text and vocabularies for the data tests; a test that needs what is not at hand skips and says why."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from data_prep.tokenizers import Tokenizer, gpt2_tokenizer
from scratchgpt.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

settings.register_profile("data", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("data")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the development data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def gpt2() -> Tokenizer:
    if (SHARED / "tiktoken_cache").is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    try:
        return gpt2_tokenizer()
    except UserError as e:
        pytest.skip(f"GPT-2's vocabulary is not at hand: {e}")


@pytest.fixture
def lines() -> list[str]:
    """What the code under test logs."""
    return []
