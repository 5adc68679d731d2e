"""Room for new tokens in a trained model."""

from collections.abc import Iterable, Iterator

import numpy as np


def grow_vocabulary(parameters: Iterable[tuple[str, np.ndarray]], size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Canonical ``parameters`` with at least ``size`` rows of embedding and head.

    A new row is the mean of the old ones: to the trained model its token is as likely as an average one, and reading it
    disturbs nothing (J. Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021).
    """
    for name, array in parameters:
        if name in ("token_embedding.weight", "head.weight") and len(array) < size:
            mean = array.mean(axis=0, dtype=np.float64).astype(array.dtype)
            array = np.concatenate([array, np.tile(mean, (size - len(array), 1))])
        yield name, array
