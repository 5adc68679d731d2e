"""``--init_from``: a run that starts from a Hugging Face directory takes its model and tokenizer from there."""

from configs.schema import Config, check_lora, validate
from data_prep.chat import add_chat_tokens
from data_prep.tokenizers import load_tokenizer
from scratchgpt.errors import UserError
from scratchgpt.hf_directory import open_hf_directory
from scratchgpt.labels import check_writes_text

CONVERSATIONS = ("sft", "dpo")  # objectives whose data are conversations


def adopt_model(config: Config, directory: str) -> None:
    """Put the model of ``directory`` into ``config``, in place, with its tokenizer for the data.

    What is about training rather than the model stays as configured: dropout, the padding of the vocabulary, and the
    length of the training sequences, which is the configured model's context where ``train.sequence_length`` is 0 (the
    adopted context may be 40,960 tokens). Tuning on conversations adds the tokens that it needs to the vocabulary;
    their embeddings learn beside LoRA's adapters. A classifier may only be the start of another with as many labels.
    Raises UserError or ConfigError.
    """
    model, tokenizer = open_hf_directory(directory).model, load_tokenizer(directory)
    if config.train.objective != "classify":
        check_writes_text(model, directory)
    if tokenizer.size > model.vocab_size:
        raise UserError(f"{directory}: its tokenizer has {tokenizer.size} tokens, its model only {model.vocab_size}")
    size = add_chat_tokens(tokenizer).size if config.train.objective in CONVERSATIONS else tokenizer.size
    model.dropout = config.model.dropout
    # Some models have more rows than their tokenizer has tokens: those are padding.
    model.padded_vocab_size = max(config.model.padded_vocab_size, model.vocab_size, size)
    model.vocab_size = size
    length = config.train.sequence_length or config.model.context_length
    config.train.sequence_length = min(length, model.context_length)
    config.model = model
    config.data.tokenizer = directory
    config.lora.new_tokens = size - tokenizer.size if config.lora.rank else 0
    check_lora(config.lora, model)
    validate(config)
