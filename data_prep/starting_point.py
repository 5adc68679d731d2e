"""``--init_from``: a run that starts from a Hugging Face directory takes its model and tokenizer from there."""

from configs.schema import Config, validate
from data_prep.tokenizers import load_tokenizer
from scratchgpt.hf_directory import open_hf_directory


def adopt_model(config: Config, directory: str) -> None:
    """Put the model of ``directory`` into ``config``, in place, with its tokenizer for the data.

    What is about training rather than the model stays as configured: dropout and the padding of the vocabulary.
    Raises UserError or ConfigError.
    """
    model = open_hf_directory(directory).model
    model.dropout = config.model.dropout
    # Some models have more rows than their tokenizer has tokens: those are padding.
    model.padded_vocab_size = max(config.model.padded_vocab_size, model.vocab_size)
    model.vocab_size = load_tokenizer(directory).size
    config.model = model
    config.data.tokenizer = directory
    validate(config)
