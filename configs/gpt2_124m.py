"""GPT-2 124M on 10B tokens of FineWeb-Edu: half a million tokens a step, 19,073 steps.

Memory: 1.5 GB of parameters and AdamW moments. Compiled for 4 TPU v5e (`python -m jaxgpt.plan
--config=configs/gpt2_124m.py --topology=v5e:2x2`) a step takes 5.8 of a chip's 16.9 GB; for one GPU the plan estimates
10.5 GB. The shards take 20 GB of disk. Made for A100, H100 or TPU; time and loss have not been measured yet.
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
    """12 layers, 12 heads, 768 wide, context 1024."""
    return Config(
        model=gpt2(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257, padded_vocab_size=50304),
        data=DataConfig(dataset="fineweb_edu", tokenizer="gpt2", val_fraction=0.001),
        train=TrainConfig(steps=19_073, batch_size=512, micro_batch_size=32, remat="dots", loss_chunk=2048),
        optim=OptimConfig(learning_rate=6e-4, min_lr_ratio=0.1, warmup_steps=715, beta2=0.95, weight_decay=0.1),
        eval=EvalConfig(every=1000, max_tokens=10_000_000),
        checkpoint=CheckpointConfig(every=1000),
        sample=SampleConfig(prompt="The most important thing to know about", max_new_tokens=200),
    )
