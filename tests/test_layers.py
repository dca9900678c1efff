"A notebook imports only from lower numbers; the trainer's part knows no world but the contract."
import ast
import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GROUND = range(0, 10)
OWN_NETWORK = (33, 34)  # the mech's own network: the only pages of part 3 that may import parts 1 and 2
SKETCHES = 'echelon.draw'  # pictures of plain arrays: a lesson on any page may draw


def source(cell): return ''.join(cell['source'])


def pages(folder):
    "Notebook → (number or None, module or None, exported code, lesson code)"
    out = {}
    for path in sorted(folder.glob('*.ipynb')):
        cells = [source(c) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
        number = re.match(r'(\d\d)_', path.name)
        module = next((m[1] for c in cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c, re.M))), None)
        exports = [c for c in cells if re.search(r'^#\|\s*export', c, re.M)]
        lessons = [c for c in cells if c not in exports]
        out[path.name] = (int(number[1]) if number else None, module, exports, lessons)
    return out


def imported(cells, package='echelon'):
    "Names of the package's modules that the cells import, wherever the statement stands"
    names = set()
    for cell in cells:
        code = '\n'.join('pass' if re.match(r'\s*[%!]', line) else line for line in cell.splitlines())
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import): names |= {a.name for a in node.names}
            if isinstance(node, ast.ImportFrom):
                names |= {node.module} | {f'{node.module}.{a.name}' for a in node.names}
    return {n for n in names if n and n.startswith(package + '.')}


def faults(folder):
    "Every import that leads upward or, from part 3, into a world's own parts"
    book = pages(folder)
    number_of = {f'echelon.{module}': number for number, module, _, _ in book.values() if module}
    found = []
    for name, (number, module, exports, lessons) in book.items():
        if number is None:
            if exports or module: found.append(f'{name}: a notebook without a number exports')
            continue
        for target in sorted(imported(exports)):
            if target not in number_of: continue  # a name inside a module that is listed too
            if number_of[target] >= number: found.append(f'{name} imports {target}, which is not below it')
            if 30 <= number < 40 and number not in OWN_NETWORK and 10 <= number_of[target] < 30:
                found.append(f'{name} imports {target}: a learner knows only the contract of a world')
        above = sorted(t for t in imported(lessons) - {SKETCHES} if number_of.get(t, 0) > number)
        found += [f'a lesson of {name} imports {target} from above' for target in above]
    return found


def test_imports_lead_downward(): assert faults(ROOT/'nbs') == []


def test_the_module_is_named_after_its_notebook():
    for name, (number, module, _, _) in pages(ROOT/'nbs').items():
        if not module: continue
        # part 6 holds several worlds, so there the world's name stands before
        stem = module.replace('.', '_') if number >= 60 else module.rpartition('.')[2]
        assert name == f'{number:02d}_{stem}.ipynb'


def test_the_package_has_a_notebook_for_every_module():
    modules = {f'echelon/{m.replace(".", "/")}.py' for _, m, _, _ in pages(ROOT/'nbs').values() if m}
    files = {str(p.relative_to(ROOT)) for p in (ROOT/'echelon').rglob('*.py')}
    assert {f for f in files if not f.endswith(('__init__.py', '_modidx.py'))} == modules


@pytest.mark.parametrize('page, line, fault', [
    ('01_config', 'from echelon.world import World', 'is not below it'),
    ('01_config', 'def late():\n    import echelon.world', 'is not below it'),
    ('38_ppo', 'from echelon.env import env', 'knows only the contract'),
    ('train', '#| default_exp smuggled\nimport numpy', 'without a number exports')])
def test_a_planted_upward_import_is_seen(tmp_path, page, line, fault):
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('runs', '.ipynb_checkpoints'))
    path = tmp_path/'nbs'/f'{page}.ipynb'
    nb = json.loads(path.read_text())
    nb['cells'].append(dict(cell_type='code', source=f'#| export\n{line}', metadata={}, outputs=[]))
    path.write_text(json.dumps(nb))
    assert [f for f in faults(tmp_path/'nbs') if fault in f and page in f]
