"The command `echelon`: flags come from the notebook, a wrong one ends with code 2 and one line."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from echelon.cli import main, parameters, parser

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder that counts as the repository and whose `runs/` is its own"
    top = tmp_path_factory.mktemp('home')
    (top/'settings.ini').symlink_to(ROOT/'settings.ini')
    (top/'nbs').symlink_to(ROOT/'nbs')
    return top


def echelon(home, line):
    "Run the command as a process"
    command = [str(Path(sys.executable).with_name('echelon')), *line.split()]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize('line, said', [
    ('', 'required: command'),
    ('dance', "invalid choice: 'dance'"),
    ('train --updates many', '--updates: invalid int value'),
    ('train --update 3', 'unrecognized arguments: --update'),
    ('train --run ../elsewhere', "run = '../elsewhere': expected the name of a folder"),
    ('bench --repeats 0', "--repeats: '0': expected a number of at least 1"),
    ('eval', 'required: checkpoint'),
    ('eval runs/nowhere --games -1', "--games: '-1'"),
    ('eval runs/nowhere', 'runs/nowhere'),
    ('smoke --episodes none', "--episodes: 'none'")])
def test_a_wrong_argument_ends_with_code_2_and_one_line(home, monkeypatch, capsys, line, said):
    monkeypatch.chdir(home)
    try: code = main(line.split())
    except SystemExit as error: code = error.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and len(error.strip().splitlines()) == 1, error


def test_flags_of_train_are_the_parameters_of_the_notebook():
    names = {p.name for p in parameters(ROOT/'nbs'/'train.ipynb')}
    assert names >= {'run', 'world', 'updates', 'packs_per_team', 'size', 'mode', 'wandb', 'wandb_run_name'}
    line = 'train --run x --packs-per-team 1 --size 100 --mode full --updates 200 --wandb --wandb-run-name y'
    args = vars(parser().parse_args(line.split()))
    assert args.pop('act') and args.pop('command') == 'train'
    assert args == dict(run='x', packs_per_team=1, size=100, mode='full', updates=200, wandb=True,
                        wandb_run_name='y')


def test_help_names_units_and_defaults(capsys):
    with pytest.raises(SystemExit): main(['train', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for p in parameters(ROOT/'nbs'/'train.ipynb'): assert p.doc and f'(default: {p.default!r})' in text


def test_train_then_eval(home):
    done = echelon(home, 'train --run tiny --world corridor --updates 2 --worlds 8 --eval-games 4 --ranks 1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert (home/'runs'/'tiny'/'train.ipynb').exists() and (home/'runs'/'tiny'/'metrics.jsonl').exists()
    done = echelon(home, 'eval runs/tiny --games 10 --seed 3 --json')
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said['wins'] + said['draws'] + said['losses'] == 10
    assert 0 <= said['low'] <= said['win_rate'] <= said['high'] <= 1
    names = ('win_rate_blue', 'win_rate_red', 'mean_length')
    assert all(name in said for name in names)


def test_a_corrupt_or_foreign_checkpoint_is_refused(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    best = sorted((home/'runs'/'tiny'/'checkpoints').iterdir())[-1]
    broken, foreign = home/'broken', home/'foreign'
    shutil.copytree(best, broken)
    shutil.copytree(best, foreign)
    [arrays] = broken.glob('*.safetensors')
    arrays.write_bytes(arrays.read_bytes()[:-9])
    for path in foreign.glob('*.json'): path.write_text('{"format": "something else"}')
    for name in ('broken', 'foreign'):
        assert main(['eval', name]) == 2
        error = capsys.readouterr().err
        assert name in error and len(error.strip().splitlines()) == 1, error


def test_a_wrong_value_is_refused_by_the_notebook_with_code_2(home):
    done = echelon(home, 'train --run wrong --world moon')
    assert done.returncode == 2
    assert "world = 'moon'" in done.stderr.splitlines()[-1]


def test_bench_prints_one_json_object_last(home):
    done = echelon(home, 'bench --seconds 0.05 --repeats 1 --updates 1 --json')
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    numbers = ('sim_agent_steps_per_s', 'sim_agent_steps_per_s_all', 'train_agent_steps_per_s')
    assert all(said[name] > 0 for name in numbers) and said['machine']
    assert abs(sum(said['phases'].values()) - 1) < .01


@pytest.mark.deep
def test_smoke(home):
    done = echelon(home, 'smoke --episodes 1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert (home/'runs'/'smoke'/'train.ipynb').exists()
