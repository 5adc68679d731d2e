"""Instruction tuning on Alpaca and Dolly on a laptop's CPU, from the small base model of configs/prose_small.py:

python -m jaxgpt.train --config=configs/sft_small.py --init_from=runs/prose_small/export
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
    """The model comes from --init_from; without it, one of the same shape begins at random."""
    return Config(
        model=qwen3(n_layer=4, n_head=3, n_embd=192, context_length=256, tie_embeddings=True),
        data=DataConfig(dataset="alpaca,dolly", tokenizer="tokenizers/prose", val_fraction=0.05),
        train=TrainConfig(objective="sft", steps=500, batch_size=16, unroll_layers=True),
        optim=OptimConfig(
            optimizer="muon",
            muon_learning_rate=0.02,
            learning_rate=0.004,
            beta1=0.8,
            beta2=0.95,
            eps=1e-10,
            schedule="linear",
            decay_fraction=0.8,
            min_lr_ratio=0.0,
            weight_decay=0.5,  # few examples, seen four times: see docs/instructions.md,
        ),
        eval=EvalConfig(every=100),
        checkpoint=CheckpointConfig(every=250),
        log=LogConfig(every=20),
        sample=SampleConfig(prompt="Explain why the sky is blue.", max_new_tokens=150, top_p=0.95, num_samples=3),
    )
