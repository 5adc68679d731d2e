"""nanoGPT's CPU shape on tiny Shakespeare, by a faster recipe: the nanochat family and Muon.

0.8M parameters. benchmarks/time_to_quality.py runs it beside nanoGPT's own recipe, whose loss it reaches in 160 of
its steps (--config.train.steps=160); docs/recipes.md says what each choice is worth.
"""

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
    """4 layers, 4 heads, 128 wide, context 64."""
    return Config(
        model=nanochat(n_layer=4, n_head=4, n_embd=128, context_length=64, rope_theta=100.0),
        data=DataConfig(dataset="tinyshakespeare", tokenizer="char", val_fraction=0.1),
        train=TrainConfig(steps=1000, batch_size=16, unroll_layers=True),
        optim=OptimConfig(
            optimizer="muon",
            muon_learning_rate=0.04,
            muon_momentum=0.85,  # few steps: a longer memory is of gradients that no longer hold
            learning_rate=0.01,  # AdamW: the head
            embedding_learning_rate=0.1,
            beta1=0.8,
            beta2=0.95,
            eps=1e-10,
            schedule="linear",
            decay_fraction=0.8,
            min_lr_ratio=0.0,
            weight_decay=0.0,
        ),
        eval=EvalConfig(every=0, batch_size=96),
        checkpoint=CheckpointConfig(every=500),
        sample=SampleConfig(prompt="\n", max_new_tokens=500),
    )
