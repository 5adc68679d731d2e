"""Instruction tuning on Alpaca and Dolly (67,000 examples, loss on the answers only), from a base model:

    python -m jaxgpt.train --config=configs/sft_alpaca_dolly.py --init_from=HF_DIR

Two epochs of about 450 steps each with 512 tokens a sequence. Made for a GPU, from a base such as configs/gpt2_124m.py
trains, or GPT-2 itself; time and loss have not been measured yet.
"""

from configs.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)


def get_config() -> Config:
    """The model comes from --init_from."""
    return Config(
        model=ModelConfig(context_length=1024),
        data=DataConfig(dataset="alpaca,dolly", tokenizer="gpt2", val_fraction=0.02),
        train=TrainConfig(objective="sft", steps=900, batch_size=32, micro_batch_size=8, sequence_length=512),
        optim=OptimConfig(
            learning_rate=2e-5, schedule="cosine", warmup_steps=30, min_lr_ratio=0.0, beta2=0.999, weight_decay=0.0
        ),
        eval=EvalConfig(every=100),
        checkpoint=CheckpointConfig(every=300),
        sample=SampleConfig(prompt="Explain why the sky is blue.", max_new_tokens=200, top_p=0.95),
    )
