"""Preference tuning on a laptop's CPU, from a model that was tuned on instructions before (configs/sft_small.py).

python -m jaxgpt.train --config=configs/dpo_small.py --init_from=runs/sft_small/export [--config.data.source=FILE]
"""

from configs.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    DPOConfig,
    EvalConfig,
    LogConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)


def get_config() -> Config:
    """The model is that of --init_from."""
    return Config(
        data=DataConfig(dataset="ultrafeedback", val_fraction=0.1),
        train=TrainConfig(objective="dpo", steps=120, batch_size=16, sequence_length=256),
        dpo=DPOConfig(beta=0.1),
        optim=OptimConfig(
            learning_rate=3e-4,
            beta2=0.95,
            schedule="linear",
            warmup_steps=10,
            decay_fraction=0.5,
            min_lr_ratio=0.0,
            weight_decay=0.0,
        ),
        eval=EvalConfig(every=30),
        checkpoint=CheckpointConfig(every=60),
        log=LogConfig(every=10),
        sample=SampleConfig(prompt="What is the capital of France?", max_new_tokens=100),
    )
