"""The default job: a character-level model of the complete works of Shakespeare, on a laptop's CPU."""

from configs.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    nanochat,
)


def get_config() -> Config:
    """A model of the nanochat family with Muon."""
    return Config(
        model=nanochat(n_layer=4, n_head=4, n_embd=192, context_length=128),
        data=DataConfig(dataset="shakespeare", tokenizer="char", val_fraction=0.05),
        train=TrainConfig(steps=1500, batch_size=32),
        optim=OptimConfig(
            optimizer="muon",
            muon_learning_rate=0.02,
            learning_rate=0.004,
            embedding_learning_rate=0.02,
            beta1=0.8,
            beta2=0.95,
            eps=1e-10,
            schedule="linear",
            min_lr_ratio=0.0,
            weight_decay=0.0,
        ),
        eval=EvalConfig(every=500),
        checkpoint=CheckpointConfig(every=250),
        sample=SampleConfig(prompt="\n", max_new_tokens=2000),
    )
