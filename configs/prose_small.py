"""A small base model of English prose for a laptop CPU, to be tuned on instructions by configs/sft_small.py.

2.7M parameters, 3.3M tokens of FineWeb-Edu in a vocabulary of 4,096, which is made first:

    python -m data_prep.train_tokenizer --dataset=fineweb_edu --max_bytes=5000000 --out=tokenizers/prose
"""

from configs.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    qwen3,
)


def get_config() -> Config:
    """A family that can also classify (nanochat's cannot), with Muon for the matrices."""
    return Config(
        model=qwen3(n_layer=4, n_head=3, n_embd=192, context_length=256, tie_embeddings=True),
        data=DataConfig(dataset="fineweb_edu", tokenizer="tokenizers/prose", val_fraction=0.02, max_tokens=3_400_000),
        train=TrainConfig(steps=800, batch_size=16, unroll_layers=True),
        optim=OptimConfig(
            optimizer="muon",
            muon_learning_rate=0.02,
            learning_rate=0.004,
            beta1=0.8,
            beta2=0.95,
            eps=1e-10,
            schedule="linear",
            decay_fraction=0.6,
            min_lr_ratio=0.0,
            weight_decay=0.0,
        ),
        eval=EvalConfig(every=200, max_tokens=50_000),
        checkpoint=CheckpointConfig(every=200),
        log=LogConfig(every=20),
        sample=SampleConfig(prompt="The most important thing", max_new_tokens=200, top_p=0.95),
    )
