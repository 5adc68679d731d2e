"""A ladder for a scaling law on a CPU: characters of Shakespeare, sizes from one dial, depth, at 32 wide a layer.

`python -m jaxgpt.scaling --config=configs/scaling_small.py`; docs/scaling_laws.md says what came of it. The
shape below, small.py's, is the place on the dial that the others are measured from.
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
    """small.py's recipe, at a batch small enough that the shortest runs have steps to learn in."""
    return Config(
        model=nanochat(n_layer=4, n_head=4, n_embd=128, context_length=128),
        # The last 3 % that small.py validates on begin with The Winter's Tale, a play set with lines deep in spaces:
        # what a model knows of those comes in one leap, which no law describes. The last 10 % begin like the rest.
        data=DataConfig(dataset="shakespeare", tokenizer="char", val_fraction=0.1, dir="data/shakespeare-char-tenth"),
        train=TrainConfig(steps=300, batch_size=8, unroll_layers=True),
        optim=OptimConfig(
            optimizer="muon",
            muon_learning_rate=0.04,  # the same at every width, as are the two below
            learning_rate=0.008,  # AdamW: the head
            embedding_learning_rate=0.04,
            beta1=0.8,
            beta2=0.95,
            eps=1e-10,
            schedule="linear",
            decay_fraction=0.6,
            min_lr_ratio=0.0,
            weight_decay=0.0,
        ),
        eval=EvalConfig(every=0, max_tokens=65_536, batch_size=64),
        checkpoint=CheckpointConfig(every=200, keep=1),
        log=LogConfig(every=100),
        sample=SampleConfig(prompt="\n", max_new_tokens=100),
    )
