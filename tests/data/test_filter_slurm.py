"""The Slurm executor, against a stand-in for sbatch that runs each job before it returns."""

import json
import os
import stat

import pytest

pytest.importorskip("datatrove")
pytest.importorskip("spacy")

from data_prep.filter import Request, filter_text
from data_prep.filtering.pipeline import Slurm
from data_prep.filtering.recipe import Recipe

SBATCH = r"""#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task RUN_OFFSET=0 SLURM_NODELIST=here bash "$script" >> "$0.log" 2>&1 || exit 1
done
echo "Submitted batch job 17"
"""
SRUN = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do if [[ "$1" == -n ]]; then shift; fi; shift; done\nexec "$@"\n'


@pytest.mark.slow
def test_slurm_jobs_write_what_local_tasks_write(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": "#!/bin/bash\necho here\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    source = tmp_path / "source.jsonl"
    source.write_text(
        "".join(json.dumps({"text": f"number {i % 7} of the posts, at a@b.org"}) + "\n" for i in range(9))
    )
    recipe = Recipe(("exact_dedup", "pii"))
    outputs = []
    for executor in ("local", "slurm"):
        out = tmp_path / executor
        lines = []
        filter_text(Request(str(source), out, recipe, shard_mb=0.0002), executor, slurm=Slurm("cpu"), log=lines.append)
        assert out.is_dir(), (tools / "sbatch.log").read_text()[-3000:]
        outputs.append({p.name: p.read_bytes() for p in out.iterdir()})
    assert lines[-1].startswith("submitted 5 stages")
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]["report.json"])["documents"] == {"in": 9, "kept": 7}
