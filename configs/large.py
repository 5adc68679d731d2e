"""1.06B parameters on FineWeb-Edu, for A100, H100 or TPU: SwiGLU, RoPE, bfloat16 over float32 parameters, remat.

21B tokens (about 20 a parameter), half a million a step. Memory, shared by all devices through fsdp: 12.7 GB of
parameters and AdamW moments, and 4.2 GB of gradients. Compiled for 16 TPU v5e (`python -m jaxgpt.plan
--config=configs/large.py --topology=v5e:4x4`) a step takes 12.8 of a chip's 16.9 GB and at least 1.03 s, with an MFU of
at most 99 %; for 8 A100 the plan estimates 21 GB each. Time and loss have not been measured
yet.
"""

from configs.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    llama,
)


def get_config() -> Config:
    """24 layers, 12 heads, 1536 wide, MLP 6144, context 1024; parameters sharded over all devices."""
    config = Config(
        model=llama(
            n_layer=24,
            n_head=12,
            n_embd=1536,
            mlp_dim=6144,
            context_length=1024,
            vocab_size=50257,
            padded_vocab_size=50304,
        ),
        data=DataConfig(dataset="fineweb_edu", tokenizer="gpt2", val_fraction=0.0005),
        train=TrainConfig(
            steps=40_000, batch_size=512, micro_batch_size=128, dtype="bfloat16", remat="dots", loss_chunk=2048
        ),
        optim=OptimConfig(learning_rate=6e-4, min_lr_ratio=0.1, warmup_steps=2000, beta2=0.95, weight_decay=0.1),
        eval=EvalConfig(every=1000, max_tokens=10_000_000),
        checkpoint=CheckpointConfig(every=1000),
        sample=SampleConfig(prompt="The most important thing to know about", max_new_tokens=200),
    )
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
