"""16.3M parameters on 400M tokens of FineWeb-Edu: GPT-2 BPE, 32,768 tokens a step by gradient accumulation.

Memory: 0.2 GB of parameters and AdamW moments; `python -m jaxgpt.plan` estimates 2.0 GB in all on one GPU, 0.8 of them
the logits of 2,048 positions and their gradient. The shards take 0.8 GB of disk. Made for a GPU; time and loss have not
been measured yet.
"""

from configs.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    gpt2,
)


def get_config() -> Config:
    """4 layers, 8 heads, 256 wide; positions for 1024 tokens, trained at 512."""
    return Config(
        model=gpt2(
            n_layer=4, n_head=8, n_embd=256, context_length=1024, vocab_size=50257, padded_vocab_size=50304, bias=False
        ),
        data=DataConfig(dataset="fineweb_edu", tokenizer="gpt2", val_fraction=0.005, max_tokens=410_000_000),
        # 64 sequences of 512 tokens, 16 at a time
        train=TrainConfig(steps=12_207, batch_size=64, micro_batch_size=16, sequence_length=512, loss_chunk=2048),
        optim=OptimConfig(learning_rate=6e-4, min_lr_ratio=0.1, warmup_steps=469, beta2=0.95, weight_decay=0.1),
        eval=EvalConfig(every=1000, max_tokens=1_000_000),
        checkpoint=CheckpointConfig(every=5000),
        sample=SampleConfig(prompt="The most important thing to know about", max_new_tokens=200),
    )
