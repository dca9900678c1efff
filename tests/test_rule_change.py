"What the page *Change a rule* promises: edit a number in a notebook, export, and a new Python plays by it."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BATTLE = '''
import json, numpy as np, echelon
world = echelon.make('mech', worlds=2, seed=5, pack=(0, 1, 0, 0), world=dict(size=20), autoreset=False)
world.control[:] = 1 + world.spec.scripts.index('heuristic')
decisions = 0
while world.alive.all() and decisions < 400: world.step(); decisions += 1
print(json.dumps(dict(file=echelon.__file__, decisions=decisions, digest=[int(d) for d in world.digest()])))
'''


def python(repository, code, folder='.'):
    "What a new Python says that runs `code` inside a repository"
    env = os.environ | {'PYTHONPATH': str(repository)}
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=repository/folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def played(repository):
    "How the battle goes there"
    said = json.loads(python(repository, BATTLE).splitlines()[-1])
    assert said.pop('file').startswith(str(repository))
    return said


def edit(path, old, new):
    "Replace one piece of a notebook's code, as a reader would in JupyterLab"
    nb = json.loads(path.read_text())
    cells = [c for c in nb['cells'] if c['cell_type'] == 'code' and old in ''.join(c['source'])]
    assert len(cells) == 1
    cells[0]['source'] = ''.join(cells[0]['source']).replace(old, new)
    path.write_text(json.dumps(nb))


def export_cell():
    "The cell of the page that exports"
    cells = json.loads((ROOT/'nbs'/'change_a_rule.ipynb').read_text())['cells']
    [cell] = [c for c in cells if c['cell_type'] == 'code' and 'nb_export(' in ''.join(c['source'])]
    return ''.join(cell['source'])


@pytest.fixture
def copy(tmp_path):
    skip = shutil.ignore_patterns('__pycache__', '.*', 'runs', '*.nb[ic]')
    for name in ('settings.ini', 'pyproject.toml'): shutil.copy(ROOT/name, tmp_path/name)
    for name in ('nbs', 'echelon'): shutil.copytree(ROOT/name, tmp_path/name, ignore=skip)
    return tmp_path


def export(copy, notebook):
    "Run the page's export cell for a notebook"
    python(copy, export_cell().replace('01_config', notebook), 'nbs')


def test_an_edited_number_is_played_by_a_new_python(copy):
    before = played(ROOT)  # the same text as the copy's, and compiled already
    edit(copy/'nbs'/'01_config.ipynb', 'damage=14.', 'damage=70.')
    assert (copy/'echelon'/'config.py').read_text() == (ROOT/'echelon'/'config.py').read_text()
    export(copy, '01_config')
    after = played(copy)
    assert after['decisions'] < before['decisions'] and after['digest'] != before['digest']


@pytest.mark.deep
def test_an_edited_rule_is_played_over_a_warm_cache(copy):
    before = played(copy)
    edit(copy/'nbs'/'16_stress.ipynb', 'return max(np.float32(0), heat - rate*dt)', 'return heat')
    assert played(copy) == before, 'without an export nothing changes'
    export(copy, '16_stress')
    assert played(copy)['digest'] != before['digest']
