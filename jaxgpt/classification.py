"""Classification: the label of a text, from scores read at its last token (Radford et al. 2018)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_prep.label_data import LabelData, padded
from data_prep.training_data import Batch
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.model import GPT
from jaxgpt.objective import Objective, Sums
from jaxgpt.params import Params, from_canonical, merge_model
from scratchgpt.errors import UserError
from scratchgpt.hf_directory import open_hf_directory
from scratchgpt.hf_layout import parameter_shapes
from scratchgpt.labels import ranked


class Classification(Objective):
    """Cross-entropy of the labels; the mean is over texts. Trains the whole model or only the scores' weights."""

    data: LabelData

    def loss_sums(self, model: GPT, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """The loss of one micro batch [sequences, tokens], and ``confusion`` [true label, predicted label] in texts.

        Every token gets scores; weights are 1 at the last token of each text and 0 elsewhere.
        """
        x_BxTxD, _ = model.hidden(batch["inputs"], dropout_key=dropout_key, segments_BxT=batch["segments"])
        scores_BxTxN = model.scores(x_BxTxD)
        n = scores_BxTxN.shape[-1]
        true_BxTxN = jax.nn.one_hot(batch["targets"], n) * batch["weights"][..., None]
        predicted_BxTxN = jax.nn.one_hot(jnp.argmax(scores_BxTxN, axis=-1), n)
        confusion_NxN = jnp.einsum("BTN,BTM->NM", true_BxTxN, predicted_BxTxN)
        loss, weight = cross_entropy_sums(scores_BxTxN, batch["targets"], batch["weights"])
        return Sums(loss, weight, {"confusion": confusion_NxN})

    def figures(self, sums: Sums) -> dict[str, float]:
        """Mean ``loss``, ``accuracy``, ``macro_f1`` and, with two labels, ``f1`` of the second."""
        confusion = np.asarray(sums.metrics["confusion"], np.float64)
        f1 = f1_scores(confusion)
        found = {"loss": float(sums.loss / sums.weight), "accuracy": float(np.trace(confusion) / confusion.sum())}
        if len(f1) == 2:
            found["f1"] = float(f1[1])
        return found | {"macro_f1": float(np.nanmean(f1))}

    def is_trained(self, name: str) -> bool:
        return name == "score" or (self.config.classify.trained == "all" and super().is_trained(name))

    def starting_parameters(self, directory: str) -> dict[str, np.ndarray]:
        """Those of a language model without its head, or of a classifier of the same labels. Raises UserError."""
        stored = open_hf_directory(directory)
        if stored.labels and stored.labels != self.data.labels:
            raise UserError(
                f"{directory} tells apart {', '.join(stored.labels[:5])}, the data {', '.join(self.data.labels[:5])}:"
                " start from a language model, or give the rows the same labels"
            )
        wanted = parameter_shapes(self.model)
        return from_canonical(self.model, ((name, array) for name, array in stored.parameters() if name in wanted))

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        return self.data.split_batches("test", batch_size)

    def samples(self, graphdef: nnx.GraphDef, params: Params, max_new_tokens: int) -> list[str]:
        """Test texts with their label, the label that the model gives them, and the probabilities."""
        shown = self.data.texts["test"][: self.config.sample.num_samples]
        inputs, last = padded([example.ids for example in shown])

        @jax.jit
        def scores(params: Params) -> jax.Array:
            model = merge_model(graphdef, params)
            return model.scores(model.hidden(inputs)[0])

        probabilities = np.asarray(jax.nn.softmax(scores(params)[np.arange(len(shown)), last]))
        labels = self.data.labels
        told = zip(shown, probabilities.tolist(), strict=True)
        return [f"[{labels[x.label]}] predicted: {ranked(labels, p)}\n{x.text}" for x, p in told]


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """F1 of each label, 2 TP / (2 TP + FP + FN), from counts [true, predicted]; NaN for one that does not occur."""
    hits, occurrences = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.divide(2 * hits, occurrences, out=np.full(len(hits), np.nan), where=occurrences > 0)
