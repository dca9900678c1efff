"The command `echelon`: flags come from the notebook, a wrong one ends with code 2 and one line."
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from echelon.cli import Lines, Run, console, main, parameters, parser, screen, success_of
from echelon.store import send, sign_in, workers
from echelon.training.metrics import read_rows
from echelon.training.trainer import TrainConfig, run_rank, settle_in
from echelon.world import make

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
    ('watch', 'required: run'),
    ('watch nowhere', "run 'nowhere': expected the name of a folder"),
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
    for p in parameters(ROOT/'nbs'/'train.ipynb'):
        default = 'as suggested' if p.default is None else repr(p.default)
        assert p.doc and f'(default: {default})' in text, p.name
        assert p.kind in ('int', 'float', 'str', 'bool'), p.name


def test_train_then_eval(home):
    done = echelon(home, 'train --run tiny --world corridor --updates 2 --worlds 8 --eval-games 4 --ranks 1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert (home/'runs'/'tiny'/'train.ipynb').exists() and (home/'runs'/'tiny'/'metrics.jsonl').exists()
    said = done.stdout.splitlines()
    assert said[0] == 'tiny: 2 updates of 8 worlds of corridor, 1 x 1 threads' and '\x1b' not in done.stdout
    assert said[-2:] == ['tiny: learning is done', 'the report: runs/tiny/train.ipynb']
    assert [line.split(',')[0] for line in said[1:-2]] == ['tiny: update 1 of 2', 'tiny: update 2 of 2']
    assert 'tiny: update' not in (home/'runs'/'tiny'/'train.ipynb').read_text()
    done = echelon(home, 'watch tiny --once')
    assert done.returncode == 0 and done.stdout.startswith('tiny: update 2 of 2, ')
    done = echelon(home, 'eval runs/tiny --games 10 --seed 3 --json')
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said['wins'] + said['draws'] + said['losses'] == 10
    assert 0 <= said['low'] <= said['win_rate'] <= said['high'] <= 1
    names = ('win_rate_blue', 'win_rate_red', 'mean_length', 'low_blue', 'high_blue', 'low_red', 'high_red')
    assert all(name in said for name in names) and said['low_red'] is None   # a corridor has no sides
    assert said['low_blue'] == said['low'] and said['high_blue'] == said['high']


LONG = ('train --run {} --world corridor --updates 3000 --worlds 8 --eval-games 4 --ranks 1 '
        '--checkpoint-every 5000')


def begun(home, name):
    "`echelon train` as a process, once its trainer has told of a few updates"
    command = [str(Path(sys.executable).with_name('echelon')), *LONG.format(name).split()]
    child = subprocess.Popen(command, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    while len(read_rows(home/'runs'/name/'metrics.jsonl')) < 3 and child.poll() is None: time.sleep(.1)
    assert child.poll() is None, child.stderr.read()
    return child


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_a_run_with_its_report(home, number):
    name = number.name
    child = begun(home, name)
    child.send_signal(number)
    out, err = child.communicate(timeout=120)
    folder = home/'runs'/name
    assert child.returncode == 0, err[-2000:]
    status, rows = json.loads((folder/'status.json').read_text()), read_rows(folder/'metrics.jsonl')
    assert status['state'] == 'stopped' and status['update'] == len(rows) < 3000
    assert (folder/'checkpoints'/f'{len(rows):06d}').is_dir() and not any(workers(folder).values())
    assert 'once more ends it at once' in err
    assert out.splitlines()[-1] == f'the report: runs/{name}/train.ipynb'
    cells = json.loads((folder/'train.ipynb').read_text())['cells']
    text = json.dumps([c.get('outputs') for c in cells])
    assert f'stopped after update {len(rows)}' in text and 'What the words mean' in json.dumps(cells)
    assert not [c for c in cells if c['cell_type'] == 'code' and c['execution_count'] is None]


def test_the_second_signal_ends_everything_at_once(home):
    child = begun(home, 'twice')
    send(home/'runs'/'twice', signal.SIGSTOP)      # a trainer that cannot finish its update
    child.send_signal(signal.SIGINT); time.sleep(1)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=20) == 130
    assert not any(workers(home/'runs'/'twice').values())
    child.communicate()


def test_a_refused_command_leaves_the_report_of_before(home):
    line = 'train --run kept --world corridor --updates 2 --worlds 8 --eval-games 4 --ranks 1'
    assert echelon(home, line).returncode == 0
    report = (home/'runs'/'kept'/'train.ipynb').read_bytes()
    done = echelon(home, line + ' --lr 0.01')
    assert done.returncode == 2 and 'was begun with' in done.stderr
    assert (home/'runs'/'kept'/'train.ipynb').read_bytes() == report
    (home/'runs'/'kept').rename(home/'runs'/'moved')
    done = echelon(home, line.replace('kept', 'moved'))
    assert done.returncode == 0, done.stderr[-2000:]
    done = echelon(home, 'train --run other --world corridor --size 80')
    assert done.returncode == 2
    assert "size = 80 in world 'corridor': expected it for 'mech' only" in done.stderr


# -- following a run

class Toy:
    "The folder of a run, written as the trainer writes it"
    def __init__(self, folder, updates=40):
        self.folder, self.updates, self.update = folder/'toy', updates, 0
        self.more = {}                       # what else its status says
        self.folder.mkdir()
        self.status('starting')

    def status(self, state):
        text = json.dumps(dict(state=state, update=self.update, updates=self.updates, **self.more))
        (self.folder/'.beside').write_text(text)
        os.replace(self.folder/'.beside', self.folder/'status.json')

    def add(self, text):
        with open(self.folder/'metrics.jsonl', 'a') as f: f.write(text)

    def learn(self, updates=1, **more):
        for _ in range(updates):
            self.update += 1
            row = dict(update=self.update, reward=.5, time=dict(update=3., rows_per_s=1000.), **more)
            self.add(json.dumps(row) + '\n')
        self.status('done' if self.update == self.updates else 'running')

    def checkpoint(self): (self.folder/'checkpoints'/f'{self.update:06d}').mkdir(parents=True)

    def process(self, code):
        "Write down a process of the run, as a child of this one"
        child = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE)
        sign_in(self.folder, [child.pid])
        return child


@pytest.fixture
def toy(tmp_path): return Toy(tmp_path)


class Terminal(io.StringIO):
    "A text that says it is a terminal"
    def isatty(self): return True


def told(toy, act, out):
    "What the console says while `act` is done; it has read all when this comes back"
    with console(toy.folder, out=out, poll=.01) as run:
        act()
        while run.row.get('update', 0) < toy.update: time.sleep(.01)
    return out.getvalue()


def test_a_run_is_followed_in_plain_lines(toy):
    def act():
        toy.status('starting')
        for k in range(8): toy.learn(5, win_rate=k/10)
    lines = told(toy, act, io.StringIO()).splitlines()
    assert lines[0] == 'toy: 40 updates' and lines[-1] == 'toy: learning is done'
    assert [int(line.split()[2]) for line in lines[1:-1]] == [4*k for k in range(1, 11)]
    assert lines[5] == 'toy: update 20 of 40, 1,000 agent-steps/s, 0:01:00 left, reward +0.5000, won 30%'
    assert all(c.isprintable() for line in lines for c in line)


def test_a_terminal_gets_a_bar_and_its_prints_above(toy, monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    def act():
        toy.learn(20, win_rate=.25)
        print('a word of the notebook')
    out = Terminal()
    monkeypatch.setattr(sys, 'stdout', out)
    text = told(toy, act, out)
    assert '20/40' in text and 'won 25%' in text and 'a word of the notebook' in text and '\x1b[' in text
    assert sys.stdout is out, 'the stream is put back'
    monkeypatch.setenv('TERM', 'dumb')
    assert isinstance(screen(Run(toy.folder), out=out), Lines)
    assert isinstance(screen(Run(toy.folder), out=io.StringIO()), Lines)


def test_a_line_is_read_when_it_is_whole_and_rubbish_never(toy):
    run = Run(toy.folder)
    assert run.look() == []
    toy.learn(2)
    toy.add('{"update": 3, "rew')
    assert [row['update'] for row in run.look()] == [1, 2] and run.look() == []
    toy.add('ard": 1.0}\nrubbish\n[4]\n{"update": 5}\n\x00\n')
    assert run.look() == [dict(update=3, reward=1.), dict(update=5)] and run.row == dict(update=5)
    (toy.folder/'metrics.jsonl').write_text('{"update": 1}\n')                     # cut back
    assert run.look() == [dict(update=1)]
    (toy.folder/'metrics.jsonl').unlink()
    (toy.folder/'status.json').write_text('{"sta')
    assert run.look() == [] and run.state == 'running'
    for foreign in ('[1]', '{"state": "moon"}', '{}', '3'):
        (toy.folder/'status.json').write_text(foreign)
        assert Run(toy.folder).look() == []


def test_what_stands_there_of_an_earlier_start_is_not_believed(toy):
    toy.learn(20); toy.checkpoint(); toy.learn(20)
    run = Run(toy.folder, anew=True)
    assert run.look() == [] and run.state == 'waiting' and run.checkpoint == '000020'
    def act():
        rows = (toy.folder/'metrics.jsonl').read_text().splitlines(keepends=True)[:20]
        (toy.folder/'metrics.jsonl').write_text(''.join(rows))
        toy.update = 20
        toy.learn(20)
    lines = told(toy, act, io.StringIO()).splitlines()
    assert lines[0] == 'toy: 40 updates, goes on from checkpoint 000020'
    assert [int(line.split()[2]) for line in lines[1:-1]] == [24, 28, 32, 36, 40]


def test_the_console_ends_with_the_notebook(toy):
    before = threading.active_count()
    with pytest.raises(KeyError), console(toy.folder, out=io.StringIO(), poll=.01): raise KeyError
    assert threading.active_count() == before
    with console(toy.folder, out=io.StringIO(), poll=3600.): toy.learn(7)
    assert threading.active_count() == before


def test_success_has_the_name_that_a_world_gives_it():
    row = {'win_rate': .5, 'stat/goals': 3.25, 'reward': 0.}
    assert success_of(row) == 'won 50%' and success_of(row, 'stat/goals') == 'goals 3.25'
    assert success_of({}) == success_of(row, 'stat/none') == ''


def test_the_name_of_success_stands_in_the_status(toy, capsys):
    row = {'win_rate': .5, 'stat/goals': 3.25}
    def once(*more):
        main(['watch', str(toy.folder), '--once', *more])
        return capsys.readouterr().out.strip()
    toy.learn(4, **row)
    assert once().endswith('won 50%, learning')
    toy.more = dict(success='stat/goals')
    lines = told(toy, lambda: toy.learn(4, **row), io.StringIO()).splitlines()
    assert lines[-1].startswith('toy: update 8 of 40') and lines[-1].endswith('goals 3.25')
    assert once().endswith('goals 3.25, learning')
    assert once('--success', 'win_rate').endswith('won 50%, learning')
    toy.more = dict(success=['no', 'name'])
    toy.learn()
    assert once().endswith('reward +0.5000, learning')


def test_watch_once_says_how_it_stands(toy, capsys):
    child = toy.process('input()')
    toy.learn(10, **{'stat/goals': 2.})
    assert main(['watch', str(toy.folder), '--once', '--success', 'stat/goals']) == 0
    said = 'toy: update 10 of 40, 1,000 agent-steps/s, 0:01:30 left, reward +0.5000, goals 2, learning\n'
    assert capsys.readouterr().out == said
    child.communicate()
    assert main(['watch', str(toy.folder), '--once']) == 1
    assert 'its process is gone' in capsys.readouterr().out
    toy.learn(30)
    assert main(['watch', str(toy.folder), '--once']) == 0
    assert capsys.readouterr().out.endswith('reward +0.5000, learning is done\n')


def test_watch_follows_to_the_end(toy, capsys):
    toy.learn(20)
    later = threading.Timer(.2, lambda: toy.learn(20))
    later.start()
    assert main(['watch', str(toy.folder)]) == 0
    later.join()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == 'toy: learning is done'
    assert [int(line.split()[2]) for line in lines[1:-1]] == [20, 24, 28, 32, 36, 40]


def test_watch_tells_of_a_process_that_is_gone(toy, capsys):
    child = toy.process('input()')
    toy.learn(3)
    (toy.folder/'log-0.txt').write_text('warming up\nout of memory\n')
    later = threading.Timer(.2, child.communicate)
    later.start()
    assert main(['watch', str(toy.folder)]) == 1
    later.join()
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == 'toy: its process is gone'
    assert said.err == 'echelon watch: the process of toy is gone; its log ends: out of memory\n'


def test_a_run_that_is_starting_again_is_not_gone(toy):
    toy.process('').wait()
    toy.learn(3)
    run = Run(toy.folder)
    run.look()
    assert run.state == 'gone'
    toy.status('starting')             # as `start` does before it makes processes
    run.look()
    assert run.state == 'starting'


# -- checkpoints, values, measurements

@pytest.fixture(scope='module')
def robots(home):
    "The folder of a run of robots, in which nobody can win"
    folder = home/'runs'/'robots'
    folder.mkdir(parents=True)
    config = TrainConfig(world='swarm', world_config=dict(robots=3, max_episode_seconds=1.), worlds=2,
                         ranks=1, updates=2, hidden=8, lstm=8, ppo=dict(rollout_steps=16, minibatch=48))
    settle_in(config, folder)
    run_rank(folder)
    return folder


def test_a_run_of_robots_is_told_by_what_its_world_calls_success(robots, capsys):
    name = make('swarm', worlds=1).spec.success
    assert json.loads((robots/'status.json').read_text())['success'] == name
    row = read_rows(robots/'metrics.jsonl')[-1]
    assert main(['watch', str(robots), '--once']) == 0
    assert f', {success_of(row, name)}, learning is done' in capsys.readouterr().out


@pytest.mark.parametrize('opponent', ['', '--opponent heuristic', '--opponent random'])
def test_robots_are_examined_without_an_opponent(robots, capsys, opponent):
    line = ['eval', str(robots), '--games', '4', '--seed', '3', *opponent.split()]
    assert main([*line, '--json']) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    known = 'wins draws losses win_rate low high win_rate_blue win_rate_red mean_length'
    assert {*known.split(), 'goals', 'collisions', 'stuck'} <= set(told)
    assert told['episodes'] == 4 and told['mean_length'] == 20 and told['wins'] == 0 <= told['goals']
    assert main(line) == 0
    table = capsys.readouterr().out
    assert f"{told['collisions']:,.3f}" in table and 'collisions' in table and 'win_rate' not in table


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
