"Where the numbers of a run go: every word is explained, no row is lost, and no service stops a training."
import json
import os
import pty
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from echelon.training import metrics
from echelon.training.metrics import GLOSSARY, Logger, cut_back, explained, meaning, mend, read_rows, written
from echelon.training.trainer import Training, settled, suggested
from echelon.world import make

torch.set_num_threads(1)
BLACK = np.zeros((8, 8, 3), np.uint8)


def rows_to(path, last):
    path.write_text(''.join(written(dict(update=u, loss=u/7)) for u in range(1, last + 1)))
    return path


def updates(path): return [row['update'] for row in read_rows(path)]


# The glossary

def test_every_metric_is_explained():
    names, _ = Training(settled(suggested('corridor', worlds=8, precision='float32'))).update()
    assert [row['metric'] for row in explained(names)] == list(names)
    kin = explained(['own/reward_win', 'lr', 'own/reward_loss', 'own/kill'])
    assert [row['metric'] for row in kin] == ['own/*', 'lr', 'own/kill'], 'a family has one row'
    assert all(meaning(name).endswith('.') for name in names)


def test_every_word_of_the_swarm_is_explained_by_itself():
    stats = make('swarm', worlds=1).stats
    words = {f"{'stat' if v.ndim == 1 else 'own'}/{k}" for k, v in stats.items()}
    assert words - {'stat/games', 'stat/decisions', 'own/win'} <= set(GLOSSARY)


@pytest.mark.parametrize('name', GLOSSARY)
def test_an_entry_says_what_is_good_and_what_to_do(name):
    for text in GLOSSARY[name]:
        assert text.endswith('.') and 1 <= len(text.split()) <= 22


def test_what_nobody_explained_is_refused(tmp_path):
    log = Logger(tmp_path)
    with pytest.raises(ValueError, match="metric 'luck'"): log.log(1, dict(luck=1.))
    with pytest.raises(ValueError, match="metric 'luck'"): log.show(1, images=dict(luck=BLACK))
    with pytest.raises(ValueError, match="metric 'luck'"): log.show(1, histograms=dict(luck=np.ones(3)))
    with pytest.raises(ValueError, match=r'float64 \[8, 8, 3\], expected uint8'):
        log.show(1, images={'spatial/deaths': BLACK/2})
    with pytest.raises(ValueError, match='to exist'): log.artifact(tmp_path/'no', 'model')
    assert read_rows(tmp_path/'metrics.jsonl') == []


def test_services_that_there_are_not_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="wandb = 'on': expected one of disabled, offline, online"):
        Logger(tmp_path, wandb='on')
    monkeypatch.setattr(metrics, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='package `tensorboard`'): Logger(tmp_path, tensorboard=True)


# The file

def test_numbers_that_are_none_leave_strict_json(tmp_path):
    log = Logger(tmp_path)
    log.log(1, dict(loss=float('nan'), reward=float('-inf'), entropy=1/3), dict(update=float('inf')))
    log.close()
    line = (tmp_path/'metrics.jsonl').read_text()
    strict = json.loads(line, parse_constant=lambda word: pytest.fail(f'{word} is no JSON'))
    assert strict == dict(update=1, loss=None, reward=None, entropy=1/3, time=dict(update=None))
    [row] = read_rows(tmp_path/'metrics.jsonl')
    assert np.isnan(row['loss']) and np.isnan(row['time']['update']) and row['entropy'] == 1/3


def test_a_last_line_cut_anywhere_is_never_glued_to_the_next(tmp_path):
    path = tmp_path/'metrics.jsonl'
    whole = rows_to(path, 2).read_bytes()
    first = whole.index(b'\n') + 1
    for end in range(first, len(whole) + 1):
        path.write_bytes(whole[:end])
        told = [1, 2] if end >= len(whole) - 1 else [1]     # but for its newline, the second is whole
        assert updates(path) == told
        log = Logger(tmp_path); log.log(9, dict(loss=.5)); log.close()
        lines = path.read_text().splitlines()
        assert [json.loads(line)['update'] for line in lines] == [*told, 9]


def test_what_a_power_cut_leaves_is_mended(tmp_path):
    path = rows_to(tmp_path/'metrics.jsonl', 2)
    path.write_bytes(path.read_bytes() + bytes(100))
    assert updates(path) == [1, 2]
    mend(path)
    assert path.read_text().splitlines()[-1].startswith('{"update": 2') and path.read_bytes()[-1:] == b'\n'
    mend(tmp_path/'new.jsonl')
    assert read_rows(tmp_path/'new.jsonl') == [] == read_rows(tmp_path/'none.jsonl')


def test_rows_after_a_broken_line_are_kept(tmp_path):
    path = tmp_path/'metrics.jsonl'
    path.write_text('{"update": 1}\n{"upd\n{"update": 2}\n{"update": 3}\n{"up')
    assert cut_back(path, 2) == 1 and path.read_text() == '{"update": 2}\n'.join(['{"update": 1}\n', ''])
    assert updates(tmp_path/'metrics.cut.jsonl') == [3]


def test_what_is_cut_back_is_kept_beside(tmp_path):
    path = rows_to(tmp_path/'metrics.jsonl', 5)
    rows = read_rows(path)
    assert cut_back(path, 3) == 2 and read_rows(path) == rows[:3]
    assert cut_back(path, 3) == 0 and cut_back(path, 1) == 2 and cut_back(tmp_path/'none.jsonl', 1) == 0
    assert updates(tmp_path/'metrics.cut.jsonl') == [4, 5, 2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['metrics.cut.jsonl', 'metrics.jsonl']


@pytest.mark.parametrize('room', [0, 30, 200])
def test_cutting_back_on_a_full_disk_leaves_all_as_it_was(tmp_path, room):
    path = rows_to(tmp_path/'metrics.jsonl', 9)
    cut_back(path, 8)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
    try:
        with pytest.raises(OSError): cut_back(path, 7)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert cut_back(path, 7) == 1 and updates(tmp_path/'metrics.cut.jsonl') == [9, 8]


def test_dying_between_the_two_renames_loses_no_row(tmp_path, monkeypatch):
    path, replace = rows_to(tmp_path/'metrics.jsonl', 5), os.replace
    def die(new, old):
        if Path(old) == path: raise KeyboardInterrupt
        replace(new, old)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, 'replace', die)
        cut_back(path, 3)
    assert updates(path) == [1, 2, 3, 4, 5]
    cut_back(path, 3)
    assert updates(path) == [1, 2, 3] and set(updates(tmp_path/'metrics.cut.jsonl')) == {4, 5}


def test_a_killed_process_has_told_all_its_rows(tmp_path):
    code = ('import sys; from echelon.training.metrics import Logger\n'
            'log = Logger(sys.argv[1]); u = 0\n'
            'while u := u + 1: log.log(u, dict(loss=u/7)); print(u, flush=True)')
    process = subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 50: process.send_signal(signal.SIGKILL); break
    said = [50, *map(int, process.stdout.read().split())]
    process.wait()
    told = updates(tmp_path/'metrics.jsonl')
    assert told == list(range(1, len(told) + 1)) and said[-1] <= len(told) <= said[-1] + 1


# The services

class Guest:
    "A service that does one thing wrong"
    later = 'what was told so far is kept'

    def __init__(self, wrong=None, error=ConnectionError('nobody\nanswers')):
        self.wrong, self.error, self.heard = wrong, error, []

    def __getattr__(self, act):
        def hear(*what):
            if act == self.wrong: raise self.error
            self.heard.append((act, what))
        return hear


@pytest.mark.parametrize('wrong', ['log', 'show', 'artifact', 'close'])
def test_a_service_that_fails_is_let_go_with_one_line(tmp_path, capsys, wrong):
    log, good = Logger(tmp_path), Guest()
    log.services |= dict(bad=Guest(wrong), good=good)
    assert log.active
    log.log(1, dict(loss=.5), dict(update=2.))
    log.show(1, {'spatial/deaths': BLACK}, {'weights/body': np.array([1., np.nan]), 'weights/empty': []})
    log.artifact(tmp_path/'metrics.jsonl', 'rows')
    assert ('bad' in log.services) == (wrong == 'close')
    log.close()
    assert [act for act, _ in good.heard] == ['log', 'show', 'artifact', 'close'] and not log.active
    assert good.heard[0][1] == (1, {'loss': .5, 'time/update': 2.})
    assert {k: a.tolist() for k, a in good.heard[1][1][2].items()} == {'weights/body': [1.]}
    said = 'bad: ConnectionError: nobody answers; the run goes on without it; what was told so far is kept\n'
    assert capsys.readouterr().err == said and updates(tmp_path/'metrics.jsonl') == [1]


def test_ctrl_c_is_no_failure_of_a_service(tmp_path):
    log = Logger(tmp_path); log.services['bad'] = Guest('log', KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): log.log(1, dict(loss=.5))
    assert log.active and updates(tmp_path/'metrics.jsonl') == [1]


# Weights & Biases, in a process of its own: it starts a server, and knows only the home it is given

TOLD = '''import sys
import numpy as np
from pathlib import Path
from echelon.training.metrics import Logger

folder, mode, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = Logger(folder, wandb=mode, name='a walk', config=dict(seed=1), project='walks')
for update in range(first, first + 3):
    log.log(update, dict(loss=update/7, reward=float('nan')), dict(update=.5))
log.show(update, {'spatial/deaths': np.zeros((8, 8, 3), np.uint8)}, {'weights/body': np.arange(9.)})
log.artifact(Path(folder)/'best', 'a walk', kind='model')
log.close()
print('done')
'''


def environment(home, **more):
    "The environment without what this machine knows about wandb"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('WANDB', 'XDG'))}
    return clean | dict(HOME=str(home), NETRC=str(home/'netrc')) | more


def tell(home, mode, first=1, **more):
    "Run a process that tells three updates; gives its stderr"
    (home/'best').mkdir(exist_ok=True); (home/'best'/'weights').write_bytes(bytes(99))
    done = subprocess.run([sys.executable, '-c', TOLD, str(home), mode, str(first)], text=True, timeout=120,
                          capture_output=True, stdin=subprocess.DEVNULL, env=environment(home, **more))
    assert done.returncode == 0 and done.stdout == 'done\n', done.stderr
    return done.stderr


def records(path):
    "The records of a file of wandb: a log in the format of LevelDB"
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, whole, block = path.read_bytes(), 7, b'', 32768
    while at + 7 <= len(data):
        if block - at % block < 7: at += block - at % block; continue
        size, kind = struct.unpack_from('<HB', data, at + 4)
        whole, at = whole + data[at + 7:at + 7 + size], at + 7 + size
        if kind in (1, 4): yield Record.FromString(whole); whole = b''


def told_to_wandb(home):
    "What lies in each offline run: its id, its numbers by update, its artifacts"
    out = []
    for path in sorted(home.glob('wandb/offline-run-*/*.wandb')):
        run, rows, artifacts = None, {}, []
        for record in records(path):
            run = record.run.run_id or run
            items = {'/'.join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            if items: rows[items['_step']] = items
            if record.artifact.name: artifacts.append((record.artifact.type, record.artifact.name))
        out.append((run, rows, artifacts))
    return out


def test_offline_runs_keep_everything_under_one_id(tmp_path):
    for first in (1, 4): assert tell(tmp_path, 'offline', first) == ''
    assert updates(tmp_path/'metrics.jsonl') == [1, 2, 3, 4, 5, 6]
    known = json.loads((tmp_path/'wandb.json').read_text())['id']
    both = told_to_wandb(tmp_path)
    assert [run for run, _, _ in both] == [known, known]
    for first, (_, rows, artifacts) in zip((1, 4), both):
        assert {u: r['loss'] for u, r in rows.items()} == {u: u/7 for u in range(first, first + 3)}
        assert rows[first]['time/update'] == .5
        assert rows[first + 2]['spatial/deaths/_type'] == 'image-file'
        assert rows[first + 2]['weights/body/_type'] == 'histogram'
        assert artifacts == [('model', 'a-walk')]
    assert len(list(tmp_path.glob('wandb/offline-run-*/files/media/images/spatial/deaths*.png'))) == 2


class Refusing(BaseHTTPRequestHandler):
    "A server that knows nobody"
    def do_POST(self): self.send_error(401 if self.path == '/graphql' else 404)
    def do_GET(self): self.send_error(404)
    def log_message(self, *_): "not on the terminal"


@pytest.fixture
def nobody():
    "An address at which nobody answers"
    with socket.socket() as held:
        held.bind(('127.0.0.1', 0))
        yield 'http://127.0.0.1:%d' % held.getsockname()[1]


@pytest.fixture
def refusing():
    "The address of a server that refuses every key"
    with ThreadingHTTPServer(('127.0.0.1', 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield 'http://127.0.0.1:%d' % server.server_port
        server.shutdown()


def went_on_offline(home, said):
    "One line that says so, with a command that finds the run; and all rows in both places"
    wandb = str(Path(sys.executable).parent/'wandb')
    assert said.startswith('wandb: ') and said.count('\n') == 1 and 'the run goes on offline' in said, said
    command = said.strip().rpartition('uploaded later by: ')[2].split()
    assert command == ['wandb', 'sync', f'{home}/wandb']
    tried = subprocess.run([wandb, *command[1:], '--dry-run'], capture_output=True, text=True, timeout=60,
                           stdin=subprocess.DEVNULL, env=environment(home))
    assert 'Would sync 1 run' in tried.stderr + tried.stdout
    [(_, rows, artifacts)] = told_to_wandb(home)
    assert list(rows) == updates(home/'metrics.jsonl') == [1, 2, 3] and artifacts == [('model', 'a-walk')]


def test_a_server_that_does_not_answer_costs_a_line(tmp_path, nobody):
    said = tell(tmp_path, 'online', WANDB_BASE_URL=nobody, WANDB_API_KEY='k'*40, WANDB_INIT_TIMEOUT='2')
    assert 'refused' in said
    went_on_offline(tmp_path, said)


def test_a_key_that_is_refused_costs_a_line(tmp_path, refusing):
    said = tell(tmp_path, 'online', WANDB_BASE_URL=refusing, WANDB_API_KEY='k'*40)
    assert '401' in said
    went_on_offline(tmp_path, said)


def test_without_a_key_nobody_is_asked_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    (tmp_path/'best').mkdir(); (tmp_path/'best'/'weights').write_bytes(b'')
    process = subprocess.Popen([sys.executable, '-c', TOLD, str(tmp_path), 'online', '1'], stdin=theirs,
                               stdout=subprocess.PIPE, stderr=theirs, start_new_session=True,
                               env=environment(tmp_path, TERM='xterm', WANDB_MODE='offline'))
    os.close(theirs)
    try: assert process.communicate(timeout=60)[0] == b'done\n' and process.returncode == 0
    finally: process.kill()
    said = os.read(ours, 10_000).decode().replace('\r', '')
    os.close(ours)
    assert 'no key found' in said
    went_on_offline(tmp_path, said)


KILLED = '''import os, signal, sys
from pathlib import Path
from echelon.training.metrics import Logger

log = Logger(sys.argv[1], wandb='offline')
log.log(1, dict(loss=1.))
for stat in Path('/proc').glob('[0-9]*/stat'):
    try: parent = int(stat.read_text().rpartition(')')[2].split()[1])
    except OSError: continue      # it has ended
    if parent == os.getpid(): os.kill(int(stat.parent.name), signal.SIGKILL)
while log.active: log.log(2, dict(loss=.5))
log.log(3, dict(loss=.3)); log.close()
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='finds processes in /proc')
def test_a_server_process_that_is_killed_ends_no_training(tmp_path):
    done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], text=True, timeout=120,
                          capture_output=True, stdin=subprocess.DEVNULL, env=environment(tmp_path))
    said = [line for line in done.stderr.splitlines() if line.startswith('wandb: ')]
    assert done.returncode == 0 and len(said) == 1 and 'the run goes on without it' in said[0], done.stderr
    assert sorted(set(updates(tmp_path/'metrics.jsonl'))) == [1, 2, 3]


# TensorBoard

def test_tensorboard_is_told_everything_once(tmp_path):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator',
                                 reason='the package `tensorboard` is an extra')
    weights = np.r_[np.arange(9.), np.nan]
    for first in (1, 3):      # the second run goes on from update 2
        cut_back(tmp_path/'metrics.jsonl', first - 1)
        log = Logger(tmp_path, tensorboard=True)
        for u in range(first, first + 4): log.log(u, dict(loss=u/first), dict(update=.5))
        log.show(first, {'spatial/deaths': BLACK}, {'weights/body': weights})
        log.artifact(tmp_path, 'all')
        assert log.active
        log.close()
    seen = events.EventAccumulator(str(tmp_path/'tensorboard'), dict(histograms=0)).Reload()
    loss = {e.step: e.value for e in seen.Scalars('loss')}
    assert loss == pytest.approx({1: 1, 2: 2, 3: 1, 4: 4/3, 5: 5/3, 6: 2}) and len(seen.Scalars('loss')) == 6
    assert [e.value for e in seen.Scalars('time/update')] == [.5]*6
    assert [(e.step, e.width, e.height) for e in seen.Images('spatial/deaths')] == [(1, 8, 8), (3, 8, 8)]
    assert [e.histogram_value.num for e in seen.Histograms('weights/body')] == [9, 9]
