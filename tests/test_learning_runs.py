"Runs: they go on bit for bit, on one rank or two, and what is wrong with a folder is one line."
import json
import os
import time

import pytest
import torch

from echelon.store import load, save, workers
from echelon.training.evaluation import evaluate, wilson
from echelon.training.metrics import read_rows
from echelon.training.trainer import (TrainConfig, Training, latest, load_policy, run_rank,
                                      save_checkpoint, settle_in, settled, start, stop,
                                      suggested, train, watch)

torch.set_num_threads(1)


def small(updates=6, **settings):
    "A run that takes a second or two"
    more = dict(worlds=8, world_config=dict(memory=True), checkpoint_every=2, precision='float32')
    return suggested('corridor', updates=updates, **{**more, **settings})


def without_time(rows): return [{k: v for k, v in r.items() if k != 'time'} for r in rows]


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_resumed_equals_uninterrupted(goes_on, precision):
    goes_on(settled(small(precision=precision)))


def altered(checkpoint):
    arrays = checkpoint/'arrays.safetensors'
    raw = bytearray(arrays.read_bytes()); raw[-9] ^= 4; arrays.write_bytes(raw)


def cut(checkpoint): os.truncate(checkpoint/'arrays.safetensors', 100)


def rolling(**settings):
    "Milestones at the end only, and a rolling checkpoint every second update"
    return small(**dict(checkpoint_every=99, recovery_rows=2*8*32, ranks=1) | settings)


def begun(folder, config, at=None, after=0.):
    "Start a run and let it end, or kill it so many seconds after it has told of an update"
    start(config, folder)
    for row in watch(folder, poll=.005):
        if row['update'] == at: time.sleep(after); stop(folder, now=True); break
    return without_time(read_rows(folder/'metrics.jsonl'))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "Rows and final arrays of a rolling run that nobody disturbs"
    folder = tmp_path_factory.mktemp('undisturbed')
    return begun(folder, rolling(updates=10)), load(latest(folder), 'checkpoint')[0]


@pytest.mark.parametrize('spoil', [None, altered, cut])
def test_rolling_checkpoints_bring_a_killed_run_to_the_same_end(undisturbed, tmp_path, capfd, spoil):
    config = rolling(updates=10)
    for at, after in ((1, 0.), (4, .03), (7, .1)): begun(tmp_path, config, at, after)
    lying = sorted(int(p.name) for p in (tmp_path/'recovery').iterdir() if p.name.isdigit())
    assert len(lying) == 2 and min(lying) >= 4 and not any(n % 2 for n in lying), 'two, every second update'
    capfd.readouterr()
    if spoil:
        newest = latest(tmp_path); spoil(newest)
        assert int(latest(tmp_path).name) == lying[0]
        told = capfd.readouterr().err.splitlines()
        assert len(told) == 1 and str(newest) in told[0] and 'damaged' in told[0]
    rows = begun(tmp_path, config)
    assert not (tmp_path/'recovery').exists() and latest(tmp_path).name == '000010'
    assert rows == undisturbed[0] and len(rows) == 10
    arrays = load(latest(tmp_path), 'checkpoint')[0]
    assert all((arrays[k] == a).all() for k, a in undisturbed[1].items())
    assert ('damaged' in capfd.readouterr().err) == bool(spoil), 'start says so where it is called'


def test_two_ranks_take_the_same_older_checkpoint_when_one_part_is_missing(tmp_path):
    whole, folder, config = tmp_path/'whole', tmp_path/'spoilt', rolling(ranks=2, recovery_rows=8*32)
    for place in (whole, folder): place.mkdir()
    rows = begun(whole, config)
    begun(folder, config, 4)
    newest = latest(folder)
    assert newest.parent.name == 'recovery' and (folder/'recovery'/f'{newest.name}.rank1').is_dir()
    altered(folder/'recovery'/f'{newest.name}.rank1')
    assert int(latest(folder).name) == int(newest.name) - 1
    assert begun(folder, config) == rows and not (folder/'recovery').exists()
    assert all('damaged' in (folder/f'log-{rank}.txt').read_text() for rank in (0, 1))


def test_milestones_and_rolling_checkpoints_are_kept_apart(tmp_path):
    one = Training(settled(rolling(keep=1)))
    for k in range(5):
        one.update()
        save_checkpoint(one, tmp_path, rolling=k not in (1, 3))
    names = {home: sorted(p.name for p in (tmp_path/home).iterdir()) for home in ('checkpoints', 'recovery')}
    assert names == dict(checkpoints=['000004'], recovery=['000003', '000005'])
    assert latest(tmp_path).name == '000005'
    altered(tmp_path/'recovery'/'000005')
    assert latest(tmp_path) == tmp_path/'checkpoints'/'000004'


def test_a_probed_run_goes_on_by_its_own_ranks(tmp_path):
    begun = small(ranks=1).model_copy(update=dict(probe={'1 x 1': 5.}))
    assert settle_in(begun, tmp_path) == begun
    for asked in (0, 1):
        again = settle_in(small(ranks=asked), tmp_path)
        assert again.ranks == 1 and again.probe == {'1 x 1': 5.}
    with pytest.raises(ValueError, match='ranks = 2'): settle_in(small(ranks=2), tmp_path)


def test_rates_fall_to_their_share_in_the_last_update():
    _, rows = train(small(updates=3, ppo=dict(lr=1e-2, lr_final=.5, rollout_steps=8)))
    assert [round(r['lr'], 6) for r in rows] == [.01, .0075, .005]


@pytest.mark.parametrize('hostile', [
    dict(kind='zzz'), dict(hidden='8'), dict(hidden=-3), dict(hidden=10**9), dict(blocks=None),
    dict(team_size=-2),
    dict(blocks=[dict(name='go', kind='categorical', column=5, choices=3)]), dict(obs_dim=10**9),
    dict(blocks=[dict(name='go', kind='categorical', column=0, choices=10**9)]),
    dict(blocks=[dict(colour=1)]),
    dict(kind='suite', obs_dim=3), dict(obs_dim=7), dict(surprise=1)])
def test_a_policy_of_a_stranger_is_one_line(tmp_path, hostile):
    one = Training(settled(small())); one.about = one.about | hostile
    path = save_checkpoint(one, tmp_path)
    with pytest.raises(ValueError, match='no policy of ours') as error: load_policy(path)
    assert '\n' not in str(error.value)


def test_bad_folders_are_one_line(tmp_path):
    with pytest.raises(ValueError, match='expected it to exist'): start(small(), tmp_path/'no')
    folder = tmp_path/'run'; folder.mkdir()
    start(small(updates=2), folder); list(watch(folder, poll=.05))
    with pytest.raises(ValueError, match='seed = 9'): start(small(updates=2, seed=9), folder)
    model, about = load_policy(folder)
    assert about['update'] == 2 and evaluate(model, 'corridor', dict(memory=True), games=8).episodes == 8
    newest = latest(folder)
    altered(newest)
    with pytest.raises(ValueError, match='damaged'): load_policy(newest)
    with pytest.raises(ValueError, match='all 1 checkpoints are damaged'): start(small(updates=2), folder)
    with pytest.raises(ValueError, match='all 1 checkpoints are damaged'): run_rank(folder)
    foreign = tmp_path/'foreign'; foreign.mkdir()
    with pytest.raises(ValueError, match='expected a folder with data.json'): load_policy(foreign)
    (foreign/'data.json').write_text('[]'); (foreign/'arrays.safetensors').write_bytes(b'')
    with pytest.raises(ValueError, match='damaged or foreign'): load_policy(foreign)
    save(tmp_path/'replay', 'replay', {}, {})
    with pytest.raises(ValueError, match='holds a replay'): load_policy(tmp_path/'replay')


def test_a_dead_process_is_reported_and_stop_ends_a_run(tmp_path):
    endless = small(updates=10_000, checkpoint_every=10_000)
    start(endless, tmp_path)
    rows = watch(tmp_path, poll=.02); next(rows)
    stop(tmp_path, now=True)
    assert not any(workers(tmp_path).values())
    with pytest.raises(RuntimeError, match='ended early'): list(rows)


def test_wrong_settings_are_one_line():
    for wrong, said in ((dict(update=3), 'update'), (dict(worlds=0), 'worlds'),
                        (dict(precision='half'), 'precision'), (dict(ppo=dict(clip=1)), 'clip'),
                        (dict(wandb='yes'), 'wandb')):
        with pytest.raises(ValueError, match=said) as error: TrainConfig(**wrong)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match='multiple of ranks'): Training(small(worlds=9), 0, 2)


def test_config_survives_its_file():
    config = suggested('mech', world_config=dict(packs_per_team=1))
    assert TrainConfig(**json.loads(json.dumps(config.model_dump(mode='json')))) == config


def test_corridor_is_learned():
    model, rows = train(suggested('corridor', updates=15, window=3))
    assert rows[-1]['win_rate'] > .9 and evaluate(model, 'corridor', games=100).win_rate > .9


def test_wilson_interval():
    assert wilson(0, 0) == (0., 1.) and wilson(10, 10)[1] > .999 and abs(wilson(10, 10)[0] - .7225) < 1e-3
