"""The check that a device computes what the CPU does."""

import pytest
import torch

from configs.schema import gpt2, nanochat
from scratchgpt.errors import UserError
from torchgpt.device import first_difference, self_check, tiny_outputs

CPU = torch.device("cpu")


def test_the_cpu_agrees_with_itself():
    self_check(CPU)


def test_a_device_that_cannot_run_the_model_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="use --device=cpu") as e:
        self_check(torch.device("meta"))  # computes nothing at all
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["the logits through the cache", "the gradient of blocks.1.attn.q.weight"])
@pytest.mark.parametrize("wrong", ["one value", "nan", "zeros"])
def test_a_wrong_kernel_is_named(name, wrong):
    expected = tiny_outputs(gpt2, CPU)
    found = {key: tensor.clone() for key, tensor in expected.items()}
    assert first_difference(expected, found) is None
    if wrong == "one value":
        found[name].view(-1)[3] += 0.02 * expected[name].abs().max()
    else:
        found[name].fill_(float("nan") if wrong == "nan" else 0.0)
    assert first_difference(expected, found) == name


def test_the_check_sees_every_parameter():
    outputs = tiny_outputs(nanochat, CPU)
    gradients = [t for name, t in outputs.items() if name.startswith("the gradient")]
    assert len(gradients) == 2 + 2 * 6  # embedding, head, and q, k, v, o, up, down of both blocks
    assert all(g.abs().max() > 0 for g in gradients)
