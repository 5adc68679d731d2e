"""Speed, utilisation and the shares of a run's time."""

import re

import jax
import pytest

from configs.schema import Config, llama
from jaxgpt.chips import CHIPS
from jaxgpt.flops import flops_per_token
from jaxgpt.throughput import Goodput, Throughput, flops_share


class Device:
    """What :func:`flops_share` asks of a device that is not at hand."""

    def __init__(self, kind: str) -> None:
        self.device_kind = kind


def test_speed_and_utilisation_are_those_of_the_window():
    now = [100.0]
    throughput = Throughput(1000, 2e-5, clock=lambda: now[0])
    throughput.step()
    now[0] = 102.0
    throughput.restart()
    for _ in range(3):
        throughput.step()
    now[0] = 103.5
    assert throughput.figures() == pytest.approx({"tokens_per_second": 2000.0, "mfu": 0.04})


def test_utilisation_needs_devices_whose_peak_is_known():
    model = llama(n_layer=1, n_head=1, n_embd=8, vocab_size=16)
    config = Config(model=model)
    assert flops_share(config, model, jax.devices("cpu")) is None
    assert "mfu" not in Throughput(1000, None).figures()
    share = flops_share(config, model, [Device("NVIDIA H100 80GB HBM3")] * 4)
    assert share == pytest.approx(flops_per_token(config, model).model / (4 * CHIPS["h100"].peak_flops))


def test_the_shares_of_time_add_up():
    goodput = Goodput()
    assert goodput.told() == ""
    with goodput.spending("data"):
        pass
    goodput.seconds.update(step=90.0, evaluation=6.0, saving=4.0, data=0.0)
    assert goodput.told() == "1m40s (step 90%, compilation 0%, data 0%, evaluation 6%, saving 4%)"
    assert sum(map(int, re.findall(r"(\d+)%", goodput.told()))) == 100
