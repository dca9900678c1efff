"The notebooks are the source: the package is what they export, and they are committed clean and small."
import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
BATTLES = {'index.ipynb', '51_viewer.ipynb', 'train.ipynb'}  # pages on which a battle may play
PARTS = ('settings.ini', 'pyproject.toml', 'nbs', 'echelon')


def command(name): return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the book and the package after nbdev cleaned the one and wrote the other"
    top = tmp_path_factory.mktemp('copy')
    skip = shutil.ignore_patterns('__pycache__', '.*', '*.nb[ic]', 'runs', '_quarto.yml', 'nbdev.yml')
    for name in PARTS:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, top/name, ignore=skip)
        else: shutil.copy(ROOT/name, top/name)
    for name in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([command(name)], cwd=top, check=True, env=os.environ | {'PYTHONPATH': str(top)})
    return top


def differences(left, right, pattern):
    "Files of two folders that are not byte by byte the same"
    found = [(top, path) for top in (left, right) for path in top.rglob(pattern)]
    names = {str(path.relative_to(top)) for top, path in found if '.ipynb_checkpoints' not in path.parts}
    same, _, _ = filecmp.cmpfiles(left, right, names, shallow=False)
    return sorted(names - set(same))


def test_the_package_is_what_the_notebooks_export(copy):
    assert differences(ROOT/'echelon', copy/'echelon', '*.py') == [], 'run `make export`'


def test_the_notebooks_are_clean(copy):
    assert differences(ROOT/'nbs', copy/'nbs', '*.ipynb') == [], 'run `make export`'


def test_a_stale_package_is_seen(copy, tmp_path):
    shutil.copytree(copy/'echelon', tmp_path/'echelon')
    with open(tmp_path/'echelon'/'core.py', 'a') as file: file.write('# edited by hand\n')
    assert differences(tmp_path/'echelon', copy/'echelon', '*.py') == ['core.py']


def test_cleaning_keeps_the_tag_of_the_parameters(copy):
    for name in ('train.ipynb', 'sweep.ipynb', 'benchmark.ipynb'):
        cells = json.loads((copy/'nbs'/name).read_text())['cells']
        assert sum('parameters' in c['metadata'].get('tags', []) for c in cells) == 1, name


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_fit_to_commit(path):
    nb = json.loads(path.read_text())
    assert 'widgets' not in nb['metadata'], 'widget state: about 5 MB that survive cleaning'
    assert path.stat().st_size <= (1_500_000 if path.name in BATTLES else 400_000)
    assert (nb['nbformat'], nb['nbformat_minor']) >= (4, 5)
    ids = [c['id'] for c in nb['cells']]
    assert len(ids) == len(set(ids))
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error']
    assert not [o for o in outputs if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_import_cells_contain_imports_only(path):
    "The docs build runs cells that import, and no other lesson cell: what they need must not stand elsewhere"
    for cell in json.loads(path.read_text())['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or re.search(r'^#\|\s*eval:\s*false', text, re.M): continue
        kinds = [isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(text).body]
        assert all(kinds) or not any(kinds), text.splitlines()[:4]


def test_readme_is_the_first_page_of_the_book():
    subprocess.run([sys.executable, ROOT/'.ci'/'readme.py', '--check'], check=True)


def test_the_links_are_links():
    for name in ('train.ipynb', 'sweep.ipynb'): assert (ROOT/name).readlink() == Path('nbs')/name
    assert (ROOT/'nbs'/'_quarto.yml').readlink() == Path('../_quarto.yml')


def test_importing_the_package_is_light():
    code = '''
import sys, time
start = time.perf_counter()
import echelon
assert callable(echelon.make) and time.perf_counter() - start < .3
heavy = {'torch', 'numba', 'numpy', 'wandb', 'plotly', 'pydantic'} & set(sys.modules)
assert not heavy, heavy
'''
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
