"Runs survive: kills at any moment, a full disk, a folder that moved, a request to end."
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from echelon import store
from echelon.store import load, save, send, sign_in, workers, write_json
from echelon.training.metrics import read_rows
from echelon.training.trainer import (Training, begin_with, latest, load_checkpoint, load_policy,
                                      save_checkpoint, settled, start, stop, suggested, train, watch)

UPDATES = 24


def small(**settings):
    "A run of a few seconds with stages, memories and a checkpoint after every update"
    stages = dict(stages=[dict(name='dry', world=dict(slip=0.)), dict(name='wet', world=dict(slip=.2))],
                  promote=.5, demote=.1, games=20)
    more = dict(updates=UPDATES, worlds=8, world_config=dict(memory=True), checkpoint_every=1, window=3,
                precision='float32', ranks=1, curriculum=stages)
    return suggested('corridor', **{**more, **settings})


def told(folder):
    "All that a run left: its rows but for the times, and every number of its last checkpoint"
    rows = [{k: v for k, v in r.items() if k != 'time'} for r in read_rows(folder/'metrics.jsonl')]
    arrays, data = load(latest(folder), 'checkpoint')
    return rows, arrays, {k: data[k] for k in ('update', 'rows_seen', 'window', 'best', 'curriculum')}


def alike(one, other):
    (rows, arrays, data), (rows_too, arrays_too, data_too) = told(one), told(other)
    assert rows == rows_too and data == data_too and set(arrays) == set(arrays_too)
    for name, a in arrays.items(): assert np.array_equal(a, arrays_too[name]), name


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The run that nobody disturbed"
    folder = tmp_path_factory.mktemp('whole')
    start(small(), folder); rows = list(watch(folder))
    assert len(rows) == UPDATES and {r['stage'] for r in rows} == {0, 1}, 'the stages are part of the test'
    return folder


def test_killed_at_ten_random_moments(tmp_path, whole):
    chance, kills, moments = random.Random(7), 0, []
    while kills < 10:
        start(small(), tmp_path)
        seen = len(read_rows(tmp_path/'metrics.jsonl'))
        if kills % 3:      # in the midst of learning, else while it starts
            while len(read_rows(tmp_path/'metrics.jsonl')) == seen: time.sleep(.002)
        time.sleep(chance.uniform(0, .3))
        assert any(workers(tmp_path).values()), 'it was quicker than the killer: make the run longer'
        send(tmp_path, signal.SIGKILL); kills += 1
        while any(workers(tmp_path).values()): time.sleep(.01)
        moments.append(len(read_rows(tmp_path/'metrics.jsonl')))
    start(small(), tmp_path); list(watch(tmp_path))
    assert len(set(moments)) > 3, moments
    alike(tmp_path, whole)
    assert not list(tmp_path.glob('checkpoints/.*')), 'nothing half written lies about'


def test_two_ranks_killed_on_the_way(tmp_path):
    for name in ('whole', 'killed'): (tmp_path/name).mkdir()
    config = small(ranks=2, updates=8)
    start(config, tmp_path/'whole'); list(watch(tmp_path/'whole'))
    start(config, tmp_path/'killed')
    for row in watch(tmp_path/'killed', poll=.01):
        if row['update'] == 3: break
    one, other = workers(tmp_path/'killed')
    os.kill(other, signal.SIGKILL)      # one rank alone dies: the run ends, and says so
    with pytest.raises(RuntimeError, match='ended early'): list(watch(tmp_path/'killed'))
    while any(workers(tmp_path/'killed').values()): time.sleep(.01)
    start(config, tmp_path/'killed'); list(watch(tmp_path/'killed'))
    alike(tmp_path/'killed', tmp_path/'whole')
    other = lambda name: load(f'{latest(tmp_path/name)}.rank1', 'part of a checkpoint')[0]
    parts = other('killed'), other('whole')
    for name, a in parts[0].items(): assert np.array_equal(a, parts[1][name]), name


def test_a_full_disk_loses_nothing(tmp_path, whole):
    config = small()
    program = [sys.executable, '-m', 'echelon.training.trainer', str(tmp_path)]
    start(config, tmp_path)
    for row in watch(tmp_path, poll=.005):
        if row['update'] == 5: break
    stop(tmp_path)
    before = told(tmp_path)[2]
    size = (latest(tmp_path)/'arrays.safetensors').stat().st_size
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size//2, size//2))
    done = subprocess.run(program, preexec_fn=full, capture_output=True, text=True)
    assert done.returncode == 1 and 'File too large' in done.stderr and 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert told(tmp_path)[2] == before, 'the newest checkpoint is the one from before'
    assert not list(tmp_path.glob('checkpoints/.*')), 'and what was half written gave its room back'
    start(config, tmp_path); list(watch(tmp_path))
    alike(tmp_path, whole)


def test_a_folder_may_be_moved(tmp_path, whole):
    here, there = tmp_path/'here', tmp_path/'over'/'there'
    here.mkdir(); there.parent.mkdir()
    start(small(), here)
    for row in watch(here, poll=.005):
        if row['update'] == 4: break
    stop(here, now=True)
    shutil.move(here, there)
    start(small(), there); list(watch(there))
    alike(there, whole)


def test_asked_to_end_it_leaves_a_checkpoint(tmp_path, whole):
    config = small(checkpoint_every=1000, recovery_rows=0)
    start(config, tmp_path)
    rows = watch(tmp_path, poll=.005); next(rows)
    for _ in range(2): send(tmp_path, signal.SIGTERM)     # a machine that goes down tells everybody
    seen = 1 + len(list(rows))
    status = json.loads((tmp_path/'status.json').read_text())
    assert status['state'] == 'stopped' and status['update'] == seen == int(latest(tmp_path).name) < UPDATES
    start(config, tmp_path)
    assert len(list(watch(tmp_path))) == UPDATES
    assert told(tmp_path)[0] == told(whole)[0]


def test_a_run_that_goes_on_is_looked_at_and_not_started_twice(tmp_path):
    endless = small(updates=10_000, checkpoint_every=10_000)
    start(endless, tmp_path)
    first = workers(tmp_path)
    next(watch(tmp_path, poll=.01))
    again = start(endless, tmp_path)
    assert workers(tmp_path) == first and again.updates == 10_000
    with pytest.raises(ValueError, match=r'seed = 9.*begun with 1'): start(small(
        updates=10_000, checkpoint_every=10_000, seed=9), tmp_path)
    with pytest.raises(ValueError, match='a run is going on'): start(endless, tmp_path, force=True)
    program = [sys.executable, '-m', 'echelon.training.trainer', str(tmp_path)]
    beside = subprocess.run(program, capture_output=True, text=True)       # somebody who did not ask `start`
    assert beside.returncode == 2 and 'a run is going on' in beside.stderr
    assert workers(tmp_path) == first and all(first.values())
    stop(tmp_path, now=True)
    assert not any(workers(tmp_path).values())


def test_force_throws_away_and_nothing_else_does(tmp_path):
    start(small(updates=2), tmp_path); list(watch(tmp_path))
    for name in ('train.ipynb', 'thesis.tex'): (tmp_path/name).write_text('{}')
    with pytest.raises(ValueError, match=r'updates = 3.*begun with 2.*force'):
        start(small(updates=3), tmp_path)
    assert len(read_rows(tmp_path/'metrics.jsonl')) == 2
    start(small(updates=3), tmp_path, force=True)
    assert [r['update'] for r in watch(tmp_path)] == [1, 2, 3]
    for name in ('train.ipynb', 'thesis.tex'): assert (tmp_path/name).read_text() == '{}'
    for wrong, said in ((dict(ranks=3), 'worlds = 8: expected a multiple of ranks = 3'),
                        (dict(init_from=str(tmp_path)), 'expected another folder'),
                        (dict(init_from=str(tmp_path/'nowhere')), 'nowhere')):
        with pytest.raises(ValueError, match=said): start(small(updates=3, **wrong), tmp_path, force=True)
    assert len(read_rows(tmp_path/'metrics.jsonl')) == 3, 'checked first, thrown away then'


def test_what_is_refused_leaves_nothing(tmp_path):
    for wrong in (dict(ranks=3), dict(init_from='nowhere'), dict(curriculum=dict(
            stages=[dict(name='ice', world=dict(ice=1.))]))):
        with pytest.raises(ValueError): start(small(**wrong), tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_logs_go_may_change_on_the_way(tmp_path):
    start(small(updates=2), tmp_path); list(watch(tmp_path))
    again = start(small(updates=2, wandb_name='other', keep=5), tmp_path); list(watch(tmp_path))
    assert (again.wandb_name, again.keep) == ('other', 5)
    assert json.loads((tmp_path/'config.json').read_text())['wandb_name'] == 'other'


def test_a_number_that_belongs_to_somebody_else(tmp_path):
    "After a restart of the machine: neither waited for nor killed"
    other = subprocess.Popen(['sleep', '60'])
    try:
        sign_in(tmp_path, [other.pid])
        assert workers(tmp_path) == {other.pid: True}
        (pid, then), = json.loads((tmp_path/'processes.json').read_text())
        write_json(tmp_path/'processes.json', [[pid, then - 1000]])
        send(tmp_path, signal.SIGKILL)
        assert workers(tmp_path) == {pid: False} and other.poll() is None
    finally: other.kill(); other.wait()
    sign_in(tmp_path, [other.pid])
    assert workers(tmp_path) == {other.pid: False}
    for rubbish in ('', '[7]', '{"a": 1}', '[[1, 2, 3]]'):
        (tmp_path/'processes.json').write_text(rubbish)
        assert workers(tmp_path) == {}


def test_begun_with_the_policy_of_another(tmp_path):
    folder, heir, third = (tmp_path/name for name in ('parent', 'heir', 'third'))
    for path in (folder, heir, third): path.mkdir()
    start(small(updates=3), folder); list(watch(folder))
    config = small(updates=1, seed=5, init_from=str(folder))
    fresh, plain = Training(settled(config)), Training(settled(config))
    begin_with(fresh, folder)
    parent = load_policy(folder)[0].state_dict()
    assert all((fresh.model.state_dict()[k] == v).all() for k, v in parent.items())
    assert not all((plain.model.state_dict()[k] == v).all() for k, v in parent.items())
    arrays = load(latest(folder), 'checkpoint')[0]
    assert float(fresh.ppo.scale.mean) == arrays['scale.mean'] != 0, 'the critic speaks in that scale'
    assert fresh.number == 0 and not fresh.ppo.optimizer.state_dict()['state']
    expected = fresh.update()[0]
    start(config, heir)
    (row,) = watch(heir)
    assert {k: row[k] for k in expected} == expected
    assert {k: train(config)[1][0][k] for k in expected} == expected, 'in this process too'
    shutil.rmtree(folder)
    start(config, heir); list(watch(heir))        # the parent is not needed any more
    assert load_policy(heir/'checkpoints'/'init')[1]['update'] == 3
    folder.mkdir(); start(small(updates=3), folder); list(watch(folder))
    with pytest.raises(ValueError, match=r'hidden = 32, expected 16'): start(
        small(updates=1, hidden=16, init_from=str(folder)), third)
    with pytest.raises(ValueError, match='nowhere'): start(small(init_from=str(tmp_path/'nowhere')), third)
    assert not list(third.iterdir())


def test_a_checkpoint_of_another_policy_or_version(tmp_path):
    one = Training(settled(small(hidden=16)))
    path = save_checkpoint(one, tmp_path)
    with pytest.raises(ValueError, match='its policy has hidden = 16, expected 32'):
        load_checkpoint(Training(settled(small())), path)
    arrays, data = load(path, 'checkpoint')
    newer = tmp_path/'newer'
    save(newer, 'checkpoint', arrays, data)
    outer = json.loads((newer/'data.json').read_text())
    outer['text'] = outer['text'].replace('echelon store 1', 'echelon store 2')
    outer['sha256'] = store.digest_of(outer['text'].encode())
    (newer/'data.json').write_text(json.dumps(outer))
    with pytest.raises(ValueError, match="'echelon store 2', expected 'echelon store 1'"): load_policy(newer)


def test_earlier_selves_are_met_and_go_on_bit_for_bit(tmp_path):
    "A run against its own past: the same after a break as without, and the pool stays small"
    config = settled(suggested('mech', worlds=4, updates=9, opponents=dict(self=.5, past=.5), self_every=1,
                               world_config=dict(world=dict(size=40)), hidden=16, lstm=16, stagger=0,
                               precision='float32', ranks=1, ppo=dict(rollout_steps=4, minibatch=40)))
    one = Training(config)
    for _ in range(4): one.update()
    path = save_checkpoint(one, tmp_path)
    rows = [one.update()[0] for _ in range(4)]
    other = Training(config)
    load_checkpoint(other, path)
    assert [other.update()[0] for _ in range(4)] == rows
    assert len(one.past) == len(other.past) == 5 and set(one.seats) == {'self', 'past'}
    for (a, _), (b, _) in zip(one.past, other.past): assert all((a[k] == b[k]).all() for k in a)
    now, kept = one.model.state_dict(), one.past[0][0]
    assert any((now[k] != kept[k]).any() for k in kept), 'they are not the present one'
