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


@pytest.fixture(scope="session")
def tiktokens_gpt2(gpt2):
    """tiktoken's own encoding, from its cache or its download."""
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as e:  # whatever the network answers
        pytest.skip(f"tiktoken cannot fetch its files: {type(e).__name__}")


@pytest.fixture
def lines() -> list[str]:
    """What the code under test logs."""
    return []
