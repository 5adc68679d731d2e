"""Write text with a trained model, in JAX.

python -m jaxgpt.generate --checkpoint=WORKDIR|HF_DIR --prompt=TEXT [--max_new_tokens=N] [--temperature=T] [--top_k=K]
                          [--top_p=P] [--num_samples=N] [--seed=N] [--instruct]
"""

from absl import flags

from scratchgpt import cli as command

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "workdir or Hugging Face directory; empty: newest runs/*/export")
_PROMPT = flags.DEFINE_string("prompt", "\n", "text to continue")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "tokens to write at most")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy")
_TOP_K = flags.DEFINE_integer("top_k", 0, "sample from the k likeliest tokens; 0: from all")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "sample from the likeliest tokens with this total probability")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "continuations to write")
_INSTRUCT = flags.DEFINE_bool("instruct", False, "take the prompt as an instruction, and write the answers alone")
_SEED = flags.DEFINE_integer("seed", 0, "of the random choices", 0, 2**32 - 1)


def main() -> None:
    """Print the prompt with each continuation, or each answer to it."""
    from jaxgpt.runtime import start_jax
    from scratchgpt.labels import check_writes_text
    from scratchgpt.sampling_flags import check_sampling

    check_sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MAX_NEW_TOKENS.value, _NUM_SAMPLES.value)
    start_jax()
    from jaxgpt.decoding import generate
    from jaxgpt.loading import load_model

    loaded, prompt = load_model(_CHECKPOINT.value), _PROMPT.value
    tokenizer = loaded.tokenizer
    check_writes_text(loaded.model, _CHECKPOINT.value or "the newest export under runs/")
    if _INSTRUCT.value:
        from data_prep.chat import ChatFormat, Message

        chat = ChatFormat(tokenizer)
        ids, stop_ids, shown = chat.prompt([Message("user", prompt)]), chat.stop_ids, ""
    else:
        ids, stop_ids = list(tokenizer.encode(prompt)) or [tokenizer.end_of_text_id], {tokenizer.end_of_text_id}
        shown = prompt
    continuations = generate(
        loaded.graphdef,
        loaded.params,
        loaded.model,
        ids,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        stop_ids=stop_ids,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        num_samples=_NUM_SAMPLES.value,
        seed=_SEED.value,
    )
    print("\n---\n".join(shown + tokenizer.decode(continuation) for continuation in continuations))


if __name__ == "__main__":
    command.run(main, __doc__)
