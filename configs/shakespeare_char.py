"""10.65M parameters on tiny Shakespeare, characters: nanoGPT's well-known recipe (its validation loss there: 1.4697).

Minutes on a GPU, many hours on a CPU.
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
    """6 layers, 6 heads, 384 wide, context 256, batch 64, dropout 0.2."""
    return Config(
        model=gpt2(n_layer=6, n_head=6, n_embd=384, context_length=256, bias=False, dropout=0.2),
        data=DataConfig(dataset="tinyshakespeare", tokenizer="char", val_fraction=0.1),
        train=TrainConfig(steps=5000, batch_size=64),
        optim=OptimConfig(learning_rate=1e-3, min_lr_ratio=0.1, warmup_steps=100, beta2=0.99, weight_decay=0.1),
        eval=EvalConfig(every=250),
        checkpoint=CheckpointConfig(every=500),
        sample=SampleConfig(prompt="\n", max_new_tokens=2000),
    )
