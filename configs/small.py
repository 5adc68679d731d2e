"""The default job: a character-level model of the complete works of Shakespeare, on a laptop's CPU.

0.81M parameters, 2.2M characters seen. On two slow CPU cores: under 5 minutes, 0.75 GB of memory, validation loss 1.51.
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
    nanochat,
)


def get_config() -> Config:
    """The nanochat family with Muon: the fastest recipe in steps that we know at this size."""
    return Config(
        model=nanochat(n_layer=4, n_head=4, n_embd=128, context_length=128),
        data=DataConfig(dataset="shakespeare", tokenizer="char", val_fraction=0.03),
        train=TrainConfig(steps=1050, batch_size=16, unroll_layers=True),
        optim=OptimConfig(
            optimizer="muon",
            muon_learning_rate=0.02,  # the matrices inside the blocks
            learning_rate=0.004,  # AdamW: the head
            embedding_learning_rate=0.02,
            beta1=0.8,
            beta2=0.95,
            eps=1e-10,
            schedule="linear",
            decay_fraction=0.6,
            min_lr_ratio=0.0,
            weight_decay=0.0,
        ),
        eval=EvalConfig(every=350),
        checkpoint=CheckpointConfig(every=350),
        log=LogConfig(every=25),
        sample=SampleConfig(prompt="\n", max_new_tokens=2000, top_p=0.95),
    )
