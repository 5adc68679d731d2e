"""Plans: FLOPs against XLA's count, collectives against programs whose messages are known, memory against compilers."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plans import NAMES, SLICES
from configs.schema import Config, TrainConfig, gpt2, llama, nanochat, qwen3, resolve_model
from jaxgpt.chips import CHIPS, chip_of
from jaxgpt.flops import flops_per_token
from jaxgpt.loss import next_token_sums
from jaxgpt.params import abstract_model, merge_model
from jaxgpt.planning.estimate import estimate
from jaxgpt.planning.hlo import collectives
from jaxgpt.planning.program import DoesNotFit, Program
from jaxgpt.planning.request import parse
from jaxgpt.planning.search import Tried, candidates, search
from jaxgpt.runtime import cpu_thread_environment
from scratchgpt.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def plan(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jaxgpt.plan", *arguments]
    environment = os.environ | {"XLA_FLAGS": ""} | environment  # compiled as users compile, not as tests do
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


# --- FLOPs ------------------------------------------------------------------------------------------------------------


def test_flops_of_a_block_by_hand():
    model = llama(n_layer=2, n_head=2, n_kv_head=1, n_embd=8, mlp_dim=16, context_length=4, vocab_size=10)
    # q and o 8 x 8, k and v 8 x 4, three matrices 8 x 16: 576 numbers a block; the head 80
    attention = 2 * 2 * 2 * 8 * 2.5  # two products in each of two layers; queries see 1, 2, 3, 4 keys: 2.5 on average
    forward = 2 * (2 * 576 + 80) + attention
    for remat, again in {"none": 0, "dots": attention, "block": forward - 2 * 80}.items():
        config = Config(model=model, train=TrainConfig(remat=remat))
        assert flops_per_token(config, model) == pytest.approx((3 * forward, 3 * forward + again))


def test_flops_of_adapters_leave_out_the_gradients_of_fixed_matrices():
    model = llama(n_layer=1, n_head=2, n_embd=8, mlp_dim=16, context_length=4, vocab_size=10)
    config = Config(model=model)
    config.lora.rank = 2
    adapters = 2 * (4 * (8 + 8) + 3 * (8 + 16))
    attention = 2 * 8 * 5
    assert flops_per_token(config, model).model == 4 * (256 + 384 + 80) + 6 * adapters + 3 * attention


@pytest.mark.parametrize("family", [gpt2, llama, qwen3, nanochat])
def test_flops_are_those_that_xla_counts(family):
    """Of an unrolled model whose sequence is one block of queries, which a CPU computes without leaving any out."""
    T = 64
    model = resolve_model(family(n_layer=2, n_head=4, n_embd=256, context_length=T, vocab_size=512))
    graphdef, params = abstract_model(model, unroll=True)
    tokens = jax.ShapeDtypeStruct((2, T), jnp.int32)

    def loss(params, tokens):
        model = merge_model(graphdef, params)
        return next_token_sums(model, model.hidden(tokens)[0], tokens, None, 0)[0]

    counted = jax.jit(jax.grad(loss)).lower(params, tokens).compile().cost_analysis()["flops"]
    triangle = 6 * 2 * 256 * (2 * T - (T + 1))  # L H K: what the upper half costs and the formula leaves out
    expected = 2 * T * (flops_per_token(Config(model=model), model).model + triangle)
    assert expected <= counted <= 1.06 * expected  # norms, softmax and activation functions are counted too


# --- chips and topologies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_jax_names_of_chips(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "TPU v4", "NVIDIA L4"])
def test_an_unknown_chip_has_no_figures(kind):
    assert chip_of(kind) is None


def test_topologies_by_name():
    assert parse("v5e:4x4").sizes == (4, 4)
    assert parse("v5p:2x2x2").chip is CHIPS["v5p"]
    assert parse("h100:8")[1:] == ("gpu", CHIPS["h100"], (8,))
    assert parse("local").kind == "local"


@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e:4", "v5e:4x", "v5e:0x4", "v5p:2x2", "h100:0", "h100:2x2", "b200:8", "v5e:4x4x"]
)
def test_other_names_are_refused_with_those_there_are(name):
    with pytest.raises(UserError, match=r"v5p:4x4x4.*h200:8"):
        parse(name)


# --- collectives ------------------------------------------------------------------------------------------------------

LOOP = """\
HloModule m

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[] constant(12)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%fused (a: f32[2]) -> f32[8] {
  %a = f32[2]{0} parameter(0)
  ROOT %all-gather.1 = f32[8]{0} all-gather(%a), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]{0}) parameter(0)
  %one = s32[] constant(STEP)
  %j = s32[] get-tuple-element(%q), index=0
  %next = s32[] add(%j, %one)
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %all-reduce.2 = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%sum
  %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[8]{0}) tuple(%next, %all-reduce.2)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[64]{0}) all-gather-start(%x.1), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %done = f32[64]{0} all-gather-done(%start)
  %loop = (s32[], f32[8]{0}) while(%tuple), condition=%condition, body=%bodyTRIPS
  ROOT %r = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    ("step", "trips", "runs"),
    [("1", "", 12), ("5", "", 3), ("1", ', backend_config={"known_trip_count":{"n":"4"},"known_init_step":{}}', 4)],
)
def test_collectives_are_counted_as_often_as_their_loop_runs(step, trips, runs):
    found = {c.kind + str(c.group): c for c in collectives(LOOP.replace("STEP", step).replace("TRIPS", trips), 8)}
    assert found["all-reduce2"][1:] == (runs, 32, 2)
    assert found["all-gather4"][1:] == (runs, 32, 4)
    assert found["all-gather8"][1:] == (1, 256, 8)  # once, where it starts, its result alone
    assert found["all-reduce2"].wire_bytes == 32
    assert found["all-gather8"].wire_bytes == 256 * 7 / 8
    assert len(found) == 3


def test_an_operation_in_parts_counts_once():
    """As a TPU spreads it: started, in a loop beside other work, and done, under one channel."""
    part = "%part (a: f32[2]) -> f32[8] {\n  ROOT %g = f32[8]{0} all-gather(%a), channel_id=7, dimensions={0}\n}\n\n"
    calls = "".join(f"  %f{i} = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%part{i}\n" for i in range(3))
    text = (
        "".join(part.replace("%part", f"%part{i}") for i in range(3))
        + f"ENTRY %m (a: f32[2]) -> f32[8] {{\n{calls}}}\n"
    )
    (found,) = collectives(text, 4)
    assert found == ("all-gather", 1, 32, 4)


def test_collectives_of_a_real_program_are_those_it_must_have():
    """Eight devices, five layers in a scan, each with a matrix split over its rows: a sum in each, a gather at the end.

    (The layers hand on what the next product wants, an eighth.)
    """
    done = subprocess.run(
        [sys.executable, "-c", REAL_PROGRAM], capture_output=True, text=True, cwd=ROOT, env=cpu_thread_environment(8)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()) == [f"all-gather 1 {4 * 16 * 4} 8", f"all-reduce 5 {4 * 16 * 4} 8"]


REAL_PROGRAM = """
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 8)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxgpt.planning.hlo import collectives
mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
w = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "a", None)))
x = jax.ShapeDtypeStruct((4, 16), jnp.float32, sharding=NamedSharding(mesh, P()))
def layer(x, w):
    y = jnp.tanh(x) @ w
    return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P())), None
f = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0], out_shardings=NamedSharding(mesh, P()))
for c in collectives(f.lower(x, w).compile().as_text(), 8):
    print(c.kind, c.count, int(c.bytes), c.group)
"""


# --- the search -------------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([1, 12, 64, 96, 512]),
    rows=st.sampled_from([1, 2, 4]),
    fixed=st.integers(1, 1000),
    each=st.integers(1, 100),
    usable=st.integers(1, 20_000),
    data=st.data(),
)
def test_the_search_finds_the_largest_that_fits_in_few_steps(batch, rows, fixed, each, usable, data):
    sizes = candidates(Config(train=TrainConfig(batch_size=batch)), rows)
    if not sizes:
        return

    def measure(size):
        peak = fixed + each * size
        return Tried(size, peak, peak <= usable)

    tried = search(sizes, measure(data.draw(st.sampled_from(sizes))), measure, usable)
    wanted = max((n for n in sizes if measure(n).fits), default=0)
    assert max((t.size for t in tried if t.fits), default=0) == wanted
    assert len(tried) <= 4
    assert len({t.size for t in tried}) == len(tried)


def test_a_refusal_tells_what_was_needed():
    refusal = DoesNotFit("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.")
    assert (refusal.needed, refusal.available) == (int(20.5 * 2**30), int(15.75 * 2**30))
    early = DoesNotFit("the total memory required for HLO temporaries (3.42T) exceeds available HBM (15.75G).")
    assert (early.needed, early.available) == (int(3.42 * 2**40), int(15.75 * 2**30))
    assert DoesNotFit("no figures").needed == 0


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "block"])
@pytest.mark.parametrize(("micro", "chunk"), [(16, 0), (4, 128)])
def test_an_estimate_is_near_what_the_compiler_says(remat, micro, chunk):
    model = llama(n_layer=4, n_head=4, n_embd=128, context_length=128, vocab_size=2048)
    train = TrainConfig(batch_size=16, micro_batch_size=micro, loss_chunk=chunk, remat=remat)
    program = Program(Config(model=model, train=train), jax.devices()[:1])
    guess, truth = estimate(program).memory, program.compile().memory
    assert abs(guess.arguments - truth.arguments) <= 64  # the learning rate is an argument as well
    assert 0.75 <= guess.temporaries / truth.temporaries <= 1.35, guess.parts


def test_bytes_of_the_state_are_those_of_its_shards():
    """Parameters and two slots of 4 bytes each, split over 8 devices but for the norms' scales."""
    done = plan("--config=configs/large.py", "--topology=a100-80g:8", "--search=false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ESTIMATE, not compiled: configs/large.py for a100-80g:8: 8 x a100-80g")
    norms = 49 * 1536
    state = 3 * 4 * ((1_060_578_816 - norms) // 8 + norms)
    assert f"training state {state / 1e9:.2f} GB" in done.stdout
    assert "\nfits: " in done.stdout


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_local_plan_and_its_page(tmp_path):
    page = tmp_path / "plan.html"
    keys = ["--config.model.n_layer=1", "--config.train.batch_size=4", "--config.train.unroll_layers=false"]
    keys.append(f"--config.data.dir={tmp_path / 'none'}")  # training may have left prepared data in the checkout
    done = plan("--config=configs/small.py", "--topology=local", f"--html={page}", *keys, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    for label in (
        "parameters",
        "tokens per step",
        "arguments",
        "temporaries",
        "peak",
        "all-reduce",
        "largest that fits",
    ):
        assert (label in done.stdout) == (label != "all-reduce"), label
    assert "a vocabulary of 128 is assumed" in done.stdout
    text = page.read_text()
    assert "http" not in text
    assert text.count("blocks.attn.q.kernel") == 2  # the parameter, and Muon's momentum
    assert "blocks.attn.q.kernel (momentum)" in text


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--topology=b200:8"], "is none of: local"),
        (["--topology=h100:7"], "train.batch_size=16 sequences do not divide"),
        (["--topology=h100:8", "--config.mesh.tensor=3"], "mesh: data x fsdp x tensor"),
        (["--topology=h100:8", "--config.mesh.data=1", "--config.mesh.tensor=8"], "model.n_head=4 does not divide"),
        (["--topology=h100:8", "--html=/nowhere/page.html"], "there is no directory /nowhere"),
        (["--topology=h100:8", "--search=perhaps"], "search"),
    ],
)
def test_what_cannot_be_planned_ends_with_one_sentence(flags, sentence):
    done = plan("--config=configs/small.py", *flags)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_its_compiler_a_tpu_is_refused_with_what_to_install(tmp_path):
    (tmp_path / "libtpu.py").write_text("raise ImportError")
    done = plan("--config=configs/small.py", "--topology=v5e:1x1", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert 'pip install -e ".[plan]"' in done.stderr


needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None, reason='needs the TPU compiler: pip install -e ".[plan]"'
)
SHIPPED = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "schema"}


def test_every_run_file_has_a_slice():
    assert set(NAMES) == SHIPPED
    assert set(SLICES) <= SHIPPED


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_run_file_fits_its_slice(name):
    topology = f"v5e:{SLICES.get(name, '1x1')}"
    done = plan(f"--config=configs/{name}.py", f"--topology={topology}", "--search=false")
    assert done.returncode == 0, done.stderr
    assert "\nfits: " in done.stdout
    assert "MFU" in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_the_compiler_refuses_is_told_with_its_bytes_and_a_smaller_one_found():
    keys = ["--config.model.n_layer=1", "--config.train.unroll_layers=false", "--config.train.batch_size=262144"]
    done = plan("--config=configs/small.py", "--topology=v5e:1x1", *keys)
    assert done.returncode == 1
    assert "does not fit: the compiler refuses the step, which needs" in done.stdout
    assert "of the 16.91 GB" in done.stdout
    line = next(line for line in done.stdout.splitlines() if "largest that fits" in line)
    assert 1024 <= int(line.split()[3]) < 262144
