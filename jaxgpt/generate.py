"""Write text with a trained model, in JAX.

python -m jaxgpt.generate --checkpoint=WORKDIR|HF_DIR --prompt=TEXT|--prompts=FILE [--max_new_tokens=N]
                          [--temperature=T] [--top_k=K] [--top_p=P] [--num_samples=N] [--seed=N] [--instruct]
"""

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "workdir or Hugging Face directory; empty: newest runs/*/export")
_PROMPT = flags.DEFINE_string("prompt", "\n", "text to continue")
_PROMPTS = flags.DEFINE_string("prompts", "", "file with a prompt a line, instead of --prompt; blank lines are skipped")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "tokens to write at most")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy")
_TOP_K = flags.DEFINE_integer("top_k", 0, "sample from the k likeliest tokens; 0: from all")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "sample from the likeliest tokens with this total probability")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "continuations of each prompt to write")
_INSTRUCT = flags.DEFINE_bool("instruct", False, "take the prompt as an instruction, and write the answers alone")
_SEED = flags.DEFINE_integer("seed", 0, "of the random choices", 0, 2**32 - 1)


def main() -> None:
    """Print the prompt with each continuation, or each answer to it."""
    from jaxgpt.runtime import start_jax
    from scratchgpt.labels import check_writes_text
    from scratchgpt.sampling_flags import check_prompt, check_sampling, errors_of, read_prompts, rows_at_once

    check_sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MAX_NEW_TOKENS.value, _NUM_SAMPLES.value)
    if _PROMPTS.value and _PROMPT.present:
        raise UserError("--prompt and --prompts: give one of them")
    prompts = read_prompts(_PROMPTS.value) if _PROMPTS.value else {"": _PROMPT.value}
    start_jax()
    from jaxgpt.decoding import generate_batch
    from jaxgpt.loading import load_model

    loaded = load_model(_CHECKPOINT.value)
    tokenizer = loaded.tokenizer
    check_writes_text(loaded.model, _CHECKPOINT.value or "the newest export under runs/")
    if _INSTRUCT.value:
        from data_prep.chat import ChatFormat, Message

        chat = ChatFormat(tokenizer)
        stop_ids = chat.stop_ids
    else:
        stop_ids = {tokenizer.end_of_text_id}
    ids: list[list[int]] = []
    for place, prompt in prompts.items():
        with errors_of(place):
            if _INSTRUCT.value:
                begin = chat.prompt([Message("user", prompt)])
            else:
                begin = list(tokenizer.encode(prompt)) or [tokenizer.end_of_text_id]
            check_prompt(begin, loaded.model)
            ids += [begin] * _NUM_SAMPLES.value
    continuations, rows = [], rows_at_once(loaded.model)
    for i in range(0, len(ids), rows):
        continuations += generate_batch(
            loaded.graphdef,
            loaded.params,
            loaded.model,
            ids[i : i + rows],
            max_new_tokens=_MAX_NEW_TOKENS.value,
            stop_ids=stop_ids,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
            seed=(_SEED.value + i) % 2**32,  # other choices for other texts
        )
    shown = ["" if _INSTRUCT.value else prompt for prompt in prompts.values() for _ in range(_NUM_SAMPLES.value)]
    pairs = zip(shown, continuations, strict=True)
    print("\n---\n".join(prompt + tokenizer.decode(continuation) for prompt, continuation in pairs))


if __name__ == "__main__":
    command.run(main, __doc__)
