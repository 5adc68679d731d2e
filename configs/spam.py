"""Spam or ham: fine-tune a model trained here on the SMS Spam Collection (Almeida et al. 2011), on a CPU in minutes.

    python -m jaxgpt.train --config=configs/spam.py --init_from=runs/prose_small/export

The model section counts only without --init_from, to see what pre-training is worth: it is that of prose_small.py. A
copy of the data set on disk, with or without a line of column names: --config.data.source=FILE.tsv
"""

from configs.schema import (
    CheckpointConfig,
    ClassifyConfig,
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
    """One and a half epochs of 3,600 texts, some 35 in a step; a fifth of all texts measures the finished model."""
    return Config(
        model=qwen3(n_layer=4, n_head=3, n_embd=192, context_length=256, tie_embeddings=True),
        data=DataConfig(dataset="sms_spam", text_column="sms", tokenizer="tokenizers/prose", val_fraction=0.1),
        train=TrainConfig(objective="classify", steps=150, batch_size=4),
        classify=ClassifyConfig(label_column="label", trained="all", test_fraction=0.2),
        optim=OptimConfig(
            learning_rate=1e-3,
            head_learning_rate=5e-3,
            beta2=0.98,
            warmup_steps=15,
            min_lr_ratio=0.0,
            weight_decay=0.01,
        ),
        eval=EvalConfig(every=50, batch_size=8),
        checkpoint=CheckpointConfig(every=150),
        log=LogConfig(every=25),
        sample=SampleConfig(num_samples=10),
    )
