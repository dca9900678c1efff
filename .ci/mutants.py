"""Mutation tests of the rules of combat: change one thing in a module; does any test notice?

`make mutants` draws a fixed sample of mutmut's mutants of three modules of kernels, writes each into a copy
of the package and runs the fast tests of these modules there, without the compiler. Left out is what no
compiler takes: a missing argument, or `None` for a number. A survivor is a fault of the tests, unless
`EXPLAINED` says why nobody could notice. With arguments, like `weapons.pick`: only what is there."""
import difflib
import hashlib
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ['NUMBA_DISABLE_JIT'] = '1'
import libcst as cst
import numba, numpy, pydantic, pytest  # noqa: F401 (loaded once, for all children)
from mutmut.mutation.file_mutation import create_mutations

ROOT = Path(__file__).resolve().parent.parent
MODULES, TESTS = ('stress', 'weapons', 'sensors'), ['tests/test_rules_plainly.py']
SAMPLE, LIMIT, GOAL = 200, 60, .85   # mutants; seconds for each; share that tests have to kill
UNREAD = 'never read: where nothing is met, `t` is NEVER'
STILL = 'only for a shot that does not move along this axis: it never leaves its cell along it'
EXPLAINED = {  # 'module.function: the changed lines' → why no test can tell it from the original
    'weapons.advance: t, a, b, c = NEVER, -1, +1, -1': UNREAD,
    'weapons.advance: t, a, b, c = NEVER, -1, -1, +1': UNREAD,
    'weapons.bearing: return cosine if cosine > weapon.cos_arc else np.float32(-3)':
        'whoever asks compares with -2: neither is above it',
    'weapons.first_wall: ta = (np.float32(a - half + (dx >= 0)) - x0)/dx if dx != 0 else NEVER': STILL,
    'weapons.first_wall: sa, sb = (1 if dx > 0 else -1), (1 if dy >= 0 else -1)': STILL,
    'weapons.first_wall: while not (met >> np.uint64(c)) & np.uint64(1): c += 1 if dz >= 0 else -1': STILL,
    'weapons.home_in: scale = speed/max(np.float32(sqrt(vx*vx + vy*vy + vz*vz)), np.float32(1.000001))':
        'a turn of a fifth leaves three fifths of the 12 vox/s of a missile, or more',
    'weapons.launch: while s <= SHOTS and (m.flying >> s) & 1: s += 1':
        'no bit of `flying` is beyond the slots',
    'weapons.shatter: x, y = q.x + np.float32(world.size / 2), q.y + np.float32(world.size//2)':
        'sizes are even',
    'weapons.shoot: j = target(g, w, i, k) if (m.near <= weapon.range + NEARER) or True else -1':
        'it only saves time: nobody farther away is in reach',
    'weapons.suffer: m.marked = m.painter if (m.painted > 0) or True else -1':
        'where the time of the paint is over, `run_down` has forgotten the painter',
    'weapons.unhindered: a, b = floor(min(x0, x1)) + size//3, floor(min(y0, y1)) + size//2':
        'it only takes time: every way gets the closer look',
}


def plain(name):
    "The text of a module whose kernels are functions"
    text = (ROOT/f'echelon/sim/{name}.py').read_text()
    return re.sub(r'(?m)^@kernel.*\n', '', re.sub(r'(?ms)^__all__ = \[.*?\]\n', '', text))


def compiles(module, mutation):
    "Whether a mutant could be compiled: no number becomes `None`, no argument is missing; texts do not count"
    old, new = mutation.original_node, mutation.mutated_node
    if isinstance(old, cst.SimpleString) or 'None' in module.code_for_node(new): return False
    if not isinstance(old, cst.Call) or len(new.args) == len(old.args): return True
    return module.code_for_node(new.func) in ('min', 'max') and len(new.args) > 1


def changed(old, new):
    "The lines of a difference"
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm='', n=0)
    return [line for line in lines if line[0] in '+-' and line.strip('+- ')]


def mutants(name):
    "All mutants of a module: its name, where, the difference, the text"
    text = plain(name)
    module, found, *_ = create_mutations(f'{name}.py', text)
    for m in found:
        if not compiles(module, m): continue
        part = m.contained_by_top_level_function or module
        changed_part = part.deep_replace(m.original_node, m.mutated_node)
        old, new = module.code_for_node(part), module.code_for_node(changed_part)
        place = 'constants' if part is module else part.name.value
        if old != new: yield name, place, changed(old, new), text.replace(old, new)


def draw(found):
    "The sample, by a hash of each mutant: it stays the same where the text does"
    key = lambda m: hashlib.blake2b(repr(m[:3]).encode()).digest()
    return sorted(sorted(found, key=key)[:SAMPLE], key=lambda m: (MODULES.index(m[0]), m[1], key(m)))


def survives(folder):
    "Run the tests in a child: 'survived', 'killed' or 'timed out'"
    if (child := os.fork()) == 0:
        signal.alarm(LIMIT)
        out = os.open(folder/'log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2): os.dup2(out, stream)
        os.chdir(folder)
        os._exit(pytest.main(['-x', '-q', '--no-header', '-p', 'no:cacheprovider', *TESTS]))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status): return 'timed out' if os.WTERMSIG(status) == signal.SIGALRM else 'killed'
    return 'survived' if os.WEXITSTATUS(status) == 0 else 'killed'


def reason(name, place, lines):
    "Why a survivor is no fault of the tests, if that is known"
    return EXPLAINED.get(f'{name}.{place}: ' + ' '.join(line[1:].strip() for line in lines if line[0] == '+'))


def main(folder):
    "Test every mutant of the sample; tell how many were noticed"
    sys.dont_write_bytecode = True
    for part in ('echelon', 'tests'):
        shutil.copytree(ROOT/part, folder/part, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT/'pyproject.toml', folder)
    sys.path.insert(0, str(folder))
    importlib.import_module('echelon.sim.motion')   # with all that the three modules import
    for name in MODULES: (folder/f'echelon/sim/{name}.py').write_text(plain(name))
    if survives(folder) != 'survived': sys.exit((folder/'log').read_text() + 'without a mutant')
    sample = draw([m for name in MODULES for m in mutants(name)])
    sample = [m for m in sample if not sys.argv[1:] or f'{m[0]}.{m[1]}' in sys.argv[1:]]
    if not sample: sys.exit(f'{sys.argv[1:]}: expected names like weapons.pick')
    counts, start, left = Counter(), time.time(), []
    for k, (name, place, lines, text) in enumerate(sample, 1):
        (folder/f'echelon/sim/{name}.py').write_text(text)
        result = survives(folder)
        (folder/f'echelon/sim/{name}.py').write_text(plain(name))
        counts[name, result] += 1
        print(f'{k:3d}/{len(sample)} {time.time() - start:5.0f} s  {name}.{place}: {result}', flush=True)
        if result == 'survived': left.append((name, place, lines, reason(name, place, lines)))
    report(counts, left, len(sample))


def report(counts, left, total):
    "The survivors, the table, the verdict"
    for name, place, lines, why in left: print(f'\n{name}.{place}: {why or "SURVIVED"}', *lines, sep='\n  ')
    columns = 'killed', 'survived', 'timed out'
    print('\n' + ''.join(f'{c:>11s}' for c in ('', *columns)))
    for name in MODULES: print(f'{name:>11s}' + ''.join(f'{counts[name, c]:11d}' for c in columns))
    score, unknown = 1 - len(left)/total, sum(not why for *_, why in left)
    print(f'{score:.1%} of {total} mutants noticed; {len(left) - unknown} survivors explained, {unknown} not')
    if score < GOAL and unknown: sys.exit(f'expected {GOAL:.0%}, or a reason for each survivor')


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder: os.chdir(ROOT); main(Path(folder))
