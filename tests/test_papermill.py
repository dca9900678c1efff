"The training notebook under papermill: values arrive, and wrong ones stop it with one line."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(world='corridor', updates=3, worlds=8, eval_games=4, ranks=1)


def papermill(folder, out, **parameters):
    "Run `papermill train.ipynb` in a folder of its own; the finished process"
    values = [text for name, value in parameters.items() for text in ('-p', name, str(value))]
    command = [sys.executable, '-m', 'papermill', str(ROOT/'train.ipynb'), str(out), *values]
    env = os.environ | {'JUPYTER_PREFER_ENV_PATH': '1', 'PYTHONPATH': str(ROOT)}
    quiet = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return subprocess.run(command, cwd=folder, env=env, **quiet)


def last_line(done):
    "What the error stream ends with, colours and papermill's progress bar aside"
    lines = re.sub(r'\x1b\[[0-9;]*m', '', done.stderr).splitlines()
    return [line for line in lines if line.strip() and not line.startswith('Executing:')][-1]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A finished tiny run: its folder"
    top = tmp_path_factory.mktemp('run')
    (top/'runs'/'tiny').mkdir(parents=True)
    done = papermill(top, 'runs/tiny/train.ipynb', run='tiny', **TINY)
    assert done.returncode == 0, done.stderr[-3000:]
    return top/'runs'/'tiny'


def test_an_injected_value_arrives(run):
    config = json.loads((run/'config.json').read_text())
    assert (config['world'], config['updates'], config['worlds']) == ('corridor', 3, 8)
    rows = [json.loads(line) for line in (run/'metrics.jsonl').read_text().splitlines()]
    assert [row['update'] for row in rows] == [1, 2, 3]
    cells = json.loads((run/'train.ipynb').read_text())['cells']
    assert sum('injected-parameters' in c['metadata'].get('tags', []) for c in cells) == 1


def test_a_run_leaves_a_policy_and_a_report(run):
    from echelon.training.trainer import load_policy
    assert load_policy(run)[1]['update'] == 3
    nb = json.loads((run/'train.ipynb').read_text())
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert any('application/vnd.plotly.v1+json' in o.get('data', {}) for o in outputs)
    assert not [o for o in outputs if o['output_type'] == 'error']


@pytest.mark.parametrize('name, value, said', [
    ('update', 3, r'update\b.*unknown'),
    ('updates', 'many', r"updates = 'many'"),
    ('size', 2, r'size = 2\b')])
def test_a_wrong_parameter_stops_with_one_line(tmp_path, name, value, said):
    done = papermill(tmp_path, tmp_path/'out.ipynb', **{name: value})
    assert done.returncode == 1
    assert re.search(said, last_line(done)), last_line(done)
    assert not (tmp_path/'runs').exists(), 'nothing was begun'


def test_a_missing_output_folder_is_named(tmp_path):
    done = papermill(tmp_path, 'runs/nowhere/train.ipynb', **TINY)
    assert done.returncode != 0 and 'runs/nowhere' in last_line(done), last_line(done)
