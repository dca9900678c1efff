"A replay is the game: what was recorded plays again alike anywhere, and nothing else passes for it."
import json
import lzma
import os
import struct
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from safetensors.numpy import load as from_bytes, save as as_bytes

from echelon.cli import main
from echelon.env.battle import MechWorld
from echelon.store import digest_of
from echelon.view import replay as module
from echelon.view.replay import MAGIC, Recorder, load_replay, packed_replay, record, verify, whole
from echelon.world import Watcher, make

SMALL = dict(world=dict(size=40, pool=2, refresh=2), pack=(1, 1, 1, 1), max_episode_seconds=10.,
             observation_mode='partial')
OPTIONS = dict(enable_target_selection=True, enable_obs_control=True, enable_comm=True, enable_orders=True)
SWARM = dict(robots=12, arena=(300, 200), walls=((.5, 0, .5, .4),), message_dim=1, max_episode_seconds=4.)
ODD = np.float32([np.nan, np.inf, -np.inf, 3e38, -7, -1, -.5, -1e-40, -0., 0, .5, 1, 1.5, 2.5, 20.5, 1e9])


def chance(seed=0, odd=0.):
    "Random actions for everybody; a share `odd` of the numbers is none, infinite, huge, or just on a border"
    rng = np.random.default_rng(seed)

    def act(world):
        a = rng.uniform(-1, 1, world.action.shape).astype(np.float32)
        for b in world.spec.action:
            if b.kind == 'categorical': a[..., b.column] = rng.integers(0, b.choices, a.shape[:-1])
        return np.where(rng.random(a.shape) < odd, rng.choice(ODD, a.shape), a)
    return act


def mixed(world, seed=0):
    "Some rows by scripts, which change in the middle of the game, the others by chance"
    rng, by_chance = np.random.default_rng(seed), chance(seed)

    def act(world):
        if rng.random() < .2:
            world.control[:] = rng.integers(0, len(world.spec.scripts) + 1, world.control.shape)
        return by_chance(world)
    return act


@pytest.fixture(scope='module')
def fight():
    "A battle of chance in which somebody dies"
    world = make('mech', worlds=1, seed=5, **SMALL | dict(max_episode_seconds=25.))
    world.control[0, 4:] = 1
    replay = record(world, chance(3))
    assert replay.events() and len(replay) > 30
    return replay


@pytest.fixture(scope='module')
def file(fight, tmp_path_factory): return fight.save(tmp_path_factory.mktemp('replays')/'fight.replay')


@pytest.fixture
def threads():
    "Puts back the number of threads after a test"
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def sealed(data):
    "Bytes of a file with the right hash around whatever this is"
    body = lzma.compress(data, preset=0)
    return MAGIC + digest_of(body).encode() + b'\n' + body


def rewritten(replay, tell=lambda told: None, arrange=lambda arrays: None):
    "The bytes of a file with another JSON or other arrays, and the right hash"
    data = packed_replay(replay)
    size = int.from_bytes(data[:4], 'little')
    told, arrays = json.loads(data[4:4 + size]), from_bytes(data[4 + size:])
    tell(told); arrange(arrays)
    text = json.dumps(told).encode()
    return sealed(struct.pack('<I', len(text)) + text + as_bytes(arrays))


def refusal(path, data, reader=load_replay):
    "The one line with which these bytes are refused; '' if they are not"
    path.write_bytes(data)
    try: verdict = reader(path)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 500 and str(path) in str(error), error
        return str(error)
    return '' if reader is load_replay or verdict.ok else verdict.what


class Film(Watcher):
    "The frames of a world as they are"
    def __init__(self, world, w=0): self.w, self.frames = w, [world.frame(w)]; world.watchers.append(self)
    def moved(self, world): self.frames.append(world.frame(self.w))


def alike(a, b):
    "Whether two replays hold the same"
    assert a.header == b.header
    for one, other in ((a.frames, b.frames), (a.terms, b.terms)):
        assert one.keys() == other.keys()
        for n in one: assert np.array_equal(one[n], other[n]) and one[n].dtype == other[n].dtype, n
    for one, other in ((a.ragged, b.ragged), (a.edits, b.edits)):
        assert one.keys() == other.keys()
        assert all(np.array_equal(x, y) for n in one for x, y in zip(one[n], other[n]))
    assert a.actions.tobytes() == b.actions.tobytes() and np.array_equal(a.control, b.control)
    assert np.array_equal(a.digests, b.digests)
    assert (a.terrain is None) == (b.terrain is None) and np.array_equal(a.terrain, b.terrain)


# what is kept

@pytest.mark.parametrize('name, config', [('mech', SMALL), ('corridor', dict(agents=3, memory=True)),
                                          ('swarm', SWARM)])
def test_a_file_gives_back_what_was_seen(tmp_path, name, config):
    world = make(name, worlds=2, seed=3, **config)
    if name != 'corridor': world.control[1, ::2] = 1
    recorder, film, act = Recorder(world, 1), Film(world, 1), chance(1)
    while recorder in world.watchers: world.step(act(world))
    replay = recorder.replay
    again = load_replay(replay.save(tmp_path/'a.replay'))
    alike(replay, again)
    alike(again, load_replay(again.save(tmp_path/'b.replay')))
    assert len(again) == len(film.frames) == len(again.actions) + 1 == len(again.seconds)
    for t, f in enumerate(film.frames):
        seen = again.frame(t)
        assert seen.keys() == f.keys()
        for n, a in f.items():
            assert seen[n].shape == np.shape(a) and seen[n].dtype == np.asarray(a).dtype, (t, n)
            assert np.abs(seen[n].astype(float) - a).max(initial=0) <= 1/512, (t, n)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.replay', 'b.replay']
    with pytest.raises(ValueError, match='frame 9999: expected one of'): replay.frame(9999)


def test_events_and_the_outcome_are_those_of_the_battle(fight):
    alive, end = fight.frames['alive'], fight.header['outcome']
    kills = [e for e in fight.events() if e[1] == 'kill']
    assert len(kills) == (alive[0] & ~alive[-1]).sum()
    assert all(alive[t - 1, i] and not alive[t, i] for t, _, i in kills)
    score = fight.frames['score'][-1]
    assert end['decisions'] == len(fight) - 1 and end['score'] == score.tolist()
    assert fight.header['players'] == ['outside', 'heuristic']


def test_rows_of_scripts_and_of_the_dead_are_zero(fight):
    alive = fight.frames['alive'][:-1]
    outside = (fight.control == 0) & alive
    assert not fight.actions[~outside].any() and fight.actions[outside].any(-1).all()
    assert set(np.unique(fight.actions[outside][:, 4:])) == {-1, 1}


def test_reward_terms_survive_a_drain():
    logs = []
    for drained in (False, True):
        world = make('mech', worlds=1, seed=5, **SMALL)
        recorder, act = Recorder(world), chance(2)
        while recorder in world.watchers:
            if drained: world.drain()
            world.step(act(world))
        logs.append(recorder.replay.terms)
    for n, a in logs[0].items(): assert np.allclose(a, logs[1][n], atol=1e-3), n
    assert any(a.any() for a in logs[0].values())


def test_the_next_game_is_recorded_whole():
    "In the middle of a game a recorder waits; a reset from outside leaves a game undecided, which proves too"
    world = make('mech', worlds=2, seed=5, **SMALL)
    act = chance(2)
    world.step(act(world))
    recorder = Recorder(world, 1, every=4)
    with pytest.raises(ValueError, match='waiting for a game, expected one that has ended'): recorder.replay
    with pytest.raises(ValueError, match='in the middle of a game'): record(world, act, 1)
    world.reset()
    for _ in range(6): world.step(act(world))
    world.reset(worlds=np.array([True, False]))
    with pytest.raises(ValueError, match='decision 6 of a game, expected one'): recorder.replay
    world.reset()
    assert recorder not in world.watchers and recorder.replay.header['outcome']['ended'] == 'left'
    assert recorder.replay.header['opening']['game'] == 1 and len(recorder.replay.digests) == 1
    assert verify(recorder.replay).ok
    other = Recorder(world, 0); other.detach(); other.detach()
    assert world.watchers == []
    cut = record(make('mech', worlds=1, seed=5, **SMALL, max_decisions=7, autoreset=False), act)
    assert cut.header['outcome'] | dict(score=0) == dict(ended='cut', winner=-1, decisions=7, seconds=1.75,
                                                         score=0)
    assert verify(cut).ok


@pytest.mark.parametrize('wrong', [dict(w=2), dict(w=-1), dict(every=0), dict(players=['a', 'b']),
                                   dict(players='a'), dict(players=['\n']), dict(players=[1])])
def test_a_recorder_refuses_what_it_cannot_do(wrong):
    world = make('corridor', worlds=2)
    with pytest.raises(ValueError, match='expected'): Recorder(world, **wrong)
    assert not world.watchers


def test_a_battle_fits_into_400_kB(tmp_path):
    "Two minutes of twenty mechs that move by chance: the most that there can be"
    world = make('mech', worlds=1, seed=1, world=dict(pool=1))
    path = record(world, chance(1)).save(tmp_path/'long.replay')
    assert path.stat().st_size <= 400_000


def test_a_digest_of_some_worlds_is_that_of_all():
    world = make('mech', worlds=5, seed=1, **SMALL)
    for _ in range(8): world.step(chance(2)(world))
    assert (world.digest([3, 1]) == world.digest()[[3, 1]]).all()
    before, playing = world.digest(), world.digest(playing=True)
    world.set_packs(1, 1); world.set_arms(.5); world.set_sizes(40, 40)
    assert (before != world.digest()).all() and (playing == world.digest(playing=True)).all()


# it plays again, anywhere

def test_a_game_of_a_curriculum_proves_alone_and_in_a_batch(threads, tmp_path):
    "World 3 of 8, its third game; sizes, packs and arms are other ones when it opens, and again later"
    config = dict(world=dict(size=48, pool=2, refresh=2), packs_per_team=2, pack=(0, 1, 1, 0),
                  max_episode_seconds=6., observation_mode='partial')
    world = make('mech', worlds=8, seed=2, **config)
    world.control[3, ::2] = 1
    act = chance(7)
    while world.game[3] < 1 or world.first[3]: world.step(act(world))
    world.set_sizes(32, 36); world.set_packs(1, 1); world.set_arms(.25)
    recorder = Recorder(world, 3)
    while world.game[3] < 2: world.step(act(world))
    for _ in range(3): world.step(act(world))
    world.set_sizes(48, 48); world.set_packs(2, 2); world.set_arms(1.)
    while recorder in world.watchers: world.step(act(world))
    path, opening = recorder.replay.save(tmp_path/'third.replay'), recorder.replay.header['opening']
    assert (opening['game'], opening['sizes'], opening['packs'], opening['arms']) == (2, [32, 36], 1, .25)
    assert 32 <= len(recorder.replay.terrain) <= 36 and not recorder.replay.frames['alive'][0, 2]
    for used in range(1, min(2, numba.config.NUMBA_NUM_THREADS) + 1):
        numba.set_num_threads(used)
        for how in (dict(), dict(worlds=5, w=4), dict(worlds=2, w=1, heavy=True)):
            verdict = verify(path, **how)
            assert verdict.ok and not verdict.notes and verdict.digests, (used, how, verdict)


@pytest.mark.parametrize('name, config', [
    ('mech', SMALL), ('mech', SMALL | OPTIONS), ('corridor', dict(agents=4, length=3, slip=.3)),
    ('swarm', SWARM)])
def test_a_game_needs_no_more_than_is_kept(name, config):
    "Numbers that are none, infinite, huge or on the border between two choices"
    for seed in range(4):
        world = make(name, worlds=2, seed=seed, **config)
        verdict = verify(record(world, chance(seed, odd=.4), w=1))
        assert verdict.ok, (seed, verdict)
    if name == 'mech': assert world.stats['nan'][1].sum() > 0


@pytest.mark.parametrize('repeat', [1, 5])
def test_the_state_may_travel_after_every_tick(repeat):
    "One tick a decision: heavy verification hands the state over after each"
    world = make('mech', worlds=1, seed=8, **SMALL | dict(decision_repeat=repeat))
    assert verify(record(world, mixed(world, 1)), heavy=True).ok


@pytest.fixture(scope='module')
def crowd():
    "Robots of the swarm, some of which know their way"
    world = make('swarm', worlds=3, seed=6, **SWARM)
    world.control[2, :4] = 1
    return record(world, chance(6), w=2)


def test_a_swarm_proves_itself(crowd, tmp_path):
    "Its outcome is nobody's; goals that were reached are events; alone, beside others, and handed over"
    path, goals = crowd.save(tmp_path/'crowd.replay'), crowd.frames['goals']
    assert crowd.header['outcome'] | dict(score=None) == dict(ended='cut', winner=-1, decisions=80,
                                                              seconds=crowd.seconds[-1], score=None)
    assert [e[1] for e in crowd.events()] == ['goal']*goals[-1].sum() and goals[-1].sum() > 0
    assert all(goals[t, i] == goals[t - 1, i] + 1 for t, _, i in crowd.events())
    for how in (dict(), dict(worlds=4, w=1), dict(heavy=True)): assert verify(path, **how).ok, how


@pytest.mark.parametrize('t', [0, 17, 79])
def test_one_motor_that_pushed_otherwise_is_found_at_once(crowd, t):
    actions = crowd.actions.copy()
    actions[t, 7, 1] = -np.sign(actions[t, 7, 1])
    verdict = verify(module.Replay(**vars(crowd) | dict(actions=actions)))
    assert not verdict.ok and verdict.first == t + 1 and verdict.decisions == t


@pytest.mark.parametrize('name, a', [
    ('arena', np.zeros((81, 4), np.float32)), ('goal', np.zeros((81, 12, 3), np.float32)),
    ('walls', np.zeros((81, 65, 4), np.float32)), ('goals', np.zeros((81, 12), np.float32)),
    ('goal_radius', np.zeros((81, 2), np.float32)), ('tick', np.zeros(81, np.int16))])
def test_a_floor_that_cannot_be_is_refused(crowd, tmp_path, name, a):
    with pytest.raises(ValueError, match=f'frames.{name}: .*expected') as error:
        module.Replay(**vars(crowd) | dict(frames=crowd.frames | {name: a})).save(tmp_path/'a.replay')
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def battles(count, longest=40, worlds=(1, 3, 5)):
    """Battles of chance, of scripts, and of both; the verdict of each, played again beside others and on
    another number of threads"""
    most = min(2, numba.config.NUMBA_NUM_THREADS)
    kinds = 'chance', 'scripts', 'mixed'
    for k in range(count):
        optional = OPTIONS if k % 4 == 3 else {}
        config = SMALL | optional | dict(max_episode_seconds=10. if k % 5 else longest,
                                         observation_mode='partial' if k % 2 else 'full')
        W = worlds[k % len(worlds)]
        world = make('mech', worlds=W, seed=k, autoreset=bool(k % 2), **config)
        if kinds[k % 3] == 'scripts':
            world.control[:] = 1 + np.random.default_rng(k).integers(len(world.spec.scripts),
                                                                     size=world.control.shape)
        act = dict(chance=chance(k), scripts=None, mixed=mixed(world, k))[kinds[k % 3]]
        numba.set_num_threads(1 + k % most)
        replay = record(world, act, w=k % W)
        W = worlds[(k + 1) % len(worlds)]
        numba.set_num_threads(1 + k//2 % most)
        yield k, replay, verify(replay, worlds=W, w=k % W, heavy=k % 7 == 0)


def test_battles_prove_themselves(threads):
    deaths = 0
    for k, replay, verdict in battles(20):
        assert verdict.ok and verdict.decisions == len(replay) - 1, (k, verdict)
        deaths += len(replay.events())
    assert deaths > 10


@pytest.mark.deep
def test_five_hundred_battles_prove_themselves(threads, tmp_path):
    for k, replay, verdict in battles(500, longest=120, worlds=(1, 2, 4, 7)):
        assert verdict.ok, (k, verdict)
        alike(replay, load_replay(replay.save(tmp_path/'a.replay')))


# and nothing else passes for it

def test_every_flipped_byte_is_found(file, tmp_path):
    data = file.read_bytes()
    places = {*range(200), *np.random.default_rng(0).integers(0, len(data), 200).tolist(), len(data) - 1}
    for k in places:
        bad = bytearray(data); bad[k] ^= 1 << k % 8
        assert refusal(tmp_path/'bad.replay', bytes(bad)), k


def test_a_file_that_is_cut_off_or_goes_on_is_refused(file, tmp_path):
    data = file.read_bytes()
    for n in (0, 1, 14, 17, 81, 82, 83, 200, len(data)//2, len(data) - 1):
        assert refusal(tmp_path/'bad.replay', data[:n]), n
    assert refusal(tmp_path/'bad.replay', data + b'0')
    body = data[82:] + b'behind'
    longer = MAGIC + digest_of(body).encode() + b'\n' + body
    assert 'expected its end' in refusal(tmp_path/'bad.replay', longer)
    assert refusal(tmp_path/'bad.replay', sealed(b'')) and refusal(tmp_path/'bad.replay', sealed(b'\0'*4))
    with pytest.raises(ValueError, match='expected a file'): load_replay(tmp_path)


def test_what_is_kept_is_read_by_the_same_rules(fight, tmp_path):
    "The rewriting that the tests below use changes nothing by itself"
    (tmp_path/'same.replay').write_bytes(rewritten(fight))
    alike(fight, load_replay(tmp_path/'same.replay'))
    assert verify(tmp_path/'same.replay').ok


def setter(*path):
    "A change of the JSON: the last of `path` is the value"
    *keys, last, value = path

    def tell(told):
        for k in keys: told = told[k]
        told[last] = value(told[last]) if callable(value) else value
    return tell


@pytest.mark.parametrize('tell', [
    setter('header', 'opening', 'seed', lambda s: s ^ 1), setter('header', 'opening', 'game', 1),
    setter('header', 'opening', 'game', 2**61), setter('header', 'opening', 'packs', 2),
    setter('header', 'opening', 'arms', .5), setter('header', 'opening', 'sizes', [36, 40]),
    setter('header', 'opening', 'sizes', [10**30, 40]), setter('header', 'opening', 'map', {}),
    setter('header', 'opening', 'map', 'hash', '0'*32), setter('header', 'opening', 'map', 'key', 0),
    setter('header', 'opening', 'map', 'zone', [0., 0., 5.]), setter('header', 'opening', {}),
    setter('header', 'opening', 'self', 1), setter('header', 'config', 'self', 1),
    setter('header', 'config', 'world', 'seed', 1), setter('header', 'config', 'world', 'self', 1),
    setter('header', 'config', 'pack', [1, 1, 1]), setter('header', 'config', 'pack', [2, 1, 1, 0]),
    setter('header', 'config', 'max_episode_seconds', 2.), setter('header', 'config', 'max_decisions', 20),
    setter('header', 'config', 'decision_repeat', 4), setter('header', 'config', 'enable_comm', True),
    setter('header', 'config', 'classes', 'medium', 'speed', 5.4),
    setter('header', 'config', 'weapons', 'laser', 'damage', 15.),
    setter('header', 'config', 'rewards', 'approach', 9.), setter('header', 'config', 'unknown', 1),
    setter('header', 'config', []), setter('header', 'world', 'corridor'), setter('header', 'world', 'os'),
    setter('header', 'outcome', 'winner', lambda w: (w + 2) % 3 - 1),
    setter('header', 'outcome', 'ended', 'cut'),
    setter('header', 'outcome', 'ended', 'left'), setter('header', 'outcome', 'seconds', 1e9),
    setter('header', 'outcome', 'score', [9., 9.]), setter('header', 'outcome', 'decisions', lambda d: d - 1),
    setter('header', 'outcome', 'decisions', 0), setter('header', 'every', 9), setter('header', 'every', 0),
    setter('header', 'players', ['one']), setter('header', 'players', ['a', '\x1b[2J']),
    setter('header', 'players', ['a', '\ud800']), setter('header', 'players', ['a', 'b'*999]),
    setter('header', 'spec', 'dt', .5), setter('header', 'spec', 'agents', lambda a: a[::-1]),
    setter('header', 'spec', 'team', lambda t: t[::-1]), setter('header', 'spec', 'team', lambda t: t[1:]),
    setter('header', 'spec', 'blocks', lambda b: b[:-1]), setter('header', 'spec', 'blocks', 0, 'size', 4096),
    setter('header', 'spec', 'blocks', 0, 'column', 7), setter('header', 'format', 2), setter('header', 7),
    setter('header', {}), setter('frames', {}), setter('frames', 'pos', 'shape', [8, 4]),
    setter('frames', 'pos', 'dtype', 'int32'), setter('frames', 'pos', 'how', 'constant'),
    setter('frames', 'pos', 'how', 'ragged'), setter('frames', 'shots', 'how', 'fixed'),
    setter('frames', '../x', dict(how='fixed', dtype='bool', shape=[])), setter('terrain', None),
    setter('terrain', [1, 1]), setter('terrain', [40, 40, 40]), setter('terms', []),
    setter('terms', lambda t: t[1:]), setter('terms', lambda t: t[::-1])])
def test_a_lie_in_the_header_is_found(fight, tmp_path, tell):
    assert refusal(tmp_path/'lie.replay', rewritten(fight, tell), verify)


def bump(name, at, by=1, plane=0):
    "A change of one byte of an array, of the lowest plane unless it says more"
    def arrange(arrays): arrays[name] = arrays[name].copy(); arrays[name][plane].ravel()[at] ^= by
    return arrange


def drop(name): return lambda arrays: arrays.pop(name)
def put(name, a): return lambda arrays: arrays.update({name: a})


NAMES = ('numbers', 'codes', 'control', 'digests', 'terms', 'terrain', 'frame.pos', 'frame.tick',
         'frame.shots', 'count.shots', 'frame.changes', 'row.changes', 'count.changes',
         'frame.alive', 'frame.team')


@pytest.mark.parametrize('name', NAMES)
def test_a_lie_in_an_array_is_found(fight, tmp_path, name):
    path, arrays = tmp_path/'lie.replay', from_bytes(packed_replay(fight)[4 + int.from_bytes(
        packed_replay(fight)[:4], 'little'):])
    planes = arrays[name]
    assert f'array {name}: missing' in refusal(path, rewritten(fight, arrange=drop(name)))
    for wrong in (planes[..., None], planes[:0], planes.astype(np.int64), planes.view(bool), planes.ravel(),
                  np.concatenate([planes, planes], 1), np.zeros((10**6, 0), np.uint8)):
        assert refusal(path, rewritten(fight, arrange=put(name, wrong))), wrong.shape
    # a button at the time of a digest; of others the lowest bit of one number, of floats where it matters
    first = name in ('codes', 'numbers')
    at = np.ravel_multi_index((9, 0, 0), planes.shape[1:]) if first else planes[0].size//2
    for by in (64, 67, 255) if name in ('terms', 'numbers') else (1, 64, 255):
        changed = bump(name, at, by, -1 if name in ('terms', 'numbers') else 0)
        assert refusal(path, rewritten(fight, arrange=changed), verify), by


def test_actions_of_those_who_do_not_act_are_refused(fight, tmp_path):
    actions = fight.actions.copy()
    actions[3, 5, 0] = 1e-40                 # a row of a script
    scripted = module.Replay(**vars(fight) | dict(actions=actions))
    assert 'actions of red_1 in decision 4' in refusal(tmp_path/'a', rewritten(scripted))


def test_other_arrays_are_refused(fight, tmp_path):
    a = np.zeros((4, len(fight)), np.uint8)
    assert 'expected none beside' in refusal(tmp_path/'a', rewritten(fight, arrange=put('more', a)))
    many = np.full((4, len(fight)), 127, np.uint8)
    assert 'count.shots' in refusal(tmp_path/'a', rewritten(fight, arrange=put('count.shots', many)))


@pytest.mark.parametrize('text', [b'{"header": ' + b'['*50_000, b'[]', b'nan', b'{"header": 1e999}',
                                  b'\xff\xfe',
                                  b'{"a": ' + b'9'*10_000 + b'}', b'{}', b'{"self": 1}', b'""'])
def test_odd_json_is_refused_in_one_line(tmp_path, text):
    assert refusal(tmp_path/'a.replay', sealed(struct.pack('<I', len(text)) + text))
    assert refusal(tmp_path/'a.replay', sealed(struct.pack('<I', 2**32 - 1) + text))


READ = '''
import resource, sys
from echelon.view.replay import load_replay, verify
import lzma, safetensors.numpy
used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),)*2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try: load_replay(sys.argv[1])
except ValueError as error: print(error)
'''


def giant_dictionary():
    "A compressed stream whose header asks the reader for a dictionary of 1.5 GB"
    body = bytearray(lzma.compress(b'0'*99))
    flags = bytearray(body[12:24])     # block header: size, flags, filter id, size of properties, properties
    assert flags[2:4] == b'\x21\x01'
    flags[4] = 40
    import zlib
    body[12:24] = flags[:8] + struct.pack('<I', zlib.crc32(bytes(flags[:8])))
    return bytes(body)


def test_bombs_stop_within_200_MB(fight, tmp_path):
    T = len(fight) - 1
    zeros = np.zeros((4, T + 1), np.uint8); zeros[2] = 127    # in every frame eight million shots
    bodies = dict(
        bomb=lzma.compress(bytes(1 << 30), preset=0), dictionary=giant_dictionary(),
        many=rewritten(fight, arrange=put('count.shots', zeros))[82:],
        long=rewritten(fight, setter('header', 'outcome', 'decisions', 2**20))[82:],
        wide=rewritten(fight, setter('frames', 'kind', 'shape', [4096, 4096, 4096]))[82:],
        tall=rewritten(fight, setter('frames', 'mine', dict(how='constant', dtype='float32',
                                                            shape=[4096, 4096, 4096])))[82:])
    for name, body in bodies.items():
        path = tmp_path/f'{name}.replay'
        path.write_bytes(MAGIC + digest_of(body).encode() + b'\n' + body)
        done = subprocess.run([sys.executable, '-c', READ, str(path)], capture_output=True, text=True,
                              env=os.environ | dict(PYTHONPATH=str(Path(module.__file__).parents[2])))
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 1, (name, done.stderr[-500:])
        assert name in done.stdout and 'expected' in done.stdout or name == 'dictionary'


def test_a_world_of_gigabytes_is_never_made(fight, tmp_path, monkeypatch):
    monkeypatch.setattr(MechWorld, '__init__', lambda *args, **more: pytest.fail('a world was made'))
    tell = setter('header', 'config', 'world', lambda w: w | dict(size=256, pool=4096))
    assert 'expected at most 1024 MB' in refusal(tmp_path/'a.replay', rewritten(fight, tell), verify)


def test_a_replay_opens_nothing_by_itself(fight, tmp_path):
    "Unknown names are refused before a module is imported, and reading never makes a world"
    before = set(sys.modules)
    for name in ('os:system', 'echelon.cli:main', 'antigravity', ''):
        assert refusal(tmp_path/'a.replay', rewritten(fight, setter('header', 'world', name)), verify)
    assert set(sys.modules) == before


def test_other_rules_are_told_and_do_not_hinder(fight, tmp_path):
    def tell(told): told['header'] |= dict(rules='f'*16, package='0.0.9')
    (tmp_path/'old.replay').write_bytes(rewritten(fight, tell))
    verdict = verify(tmp_path/'old.replay')
    assert verdict.ok and len(verdict.notes) == 2 and '0.0.9' in verdict.notes[1]


def test_an_opening_of_a_stranger_changes_nothing_when_it_is_refused():
    world = make('mech', worlds=2, seed=1, **SMALL)
    for _ in range(5): world.step(chance(1)(world))
    how, before = world.opening(1), {n: a.copy() for n, a in world._arrays().items()}
    odd = (None, -1, 2**64, 2**62, 10**40, 1.5, float('nan'), 'x', [], [40, 40, 40], [41, 44], {}, True,
           [None]*2)
    tried = [how | {n: v} for n in how for v in odd if v != how[n]]
    tried += [{k: v for k, v in how.items() if k != n} for n in how]
    tried += [how | dict(map=how['map'] | {n: v}) for n in how['map'] for v in odd if v != how['map'][n]]
    for wrong in [*tried, None, [], {1: 2}, {'self': 1}]:
        with pytest.raises(ValueError): world.reopen(wrong, 1)
    with pytest.raises(ValueError, match='world 2: expected 0 to 1'): world.reopen(how, 2)
    assert all(a.tobytes() == before[n].tobytes() for n, a in world._arrays().items())
    world.reopen(how, 0)
    assert world.opening(0) == how and world.first[0] and not world.first[1]


# by command

def test_the_command_says_what_it_found(fight, file, tmp_path, capsys):
    assert main(['replay', 'show', str(file), '--json']) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told['decisions'] == len(fight) - 1 and told['players'] == 'outside against heuristic'
    assert main(['replay', 'show', str(file)]) == main(['replay', 'verify', str(file), '--heavy']) == 0
    assert 'proven' in capsys.readouterr().out
    lie = tmp_path/'lie.replay'
    lie.write_bytes(rewritten(fight, setter('header', 'outcome', 'score', [9., 9.])))
    assert main(['replay', 'verify', str(lie), '--json']) == 1
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert verdict['first'] == len(fight) - 1 and 'score' in verdict['what'] and not verdict['ok']
    lie.write_bytes(b'nothing')
    assert main(['replay', 'verify', str(lie)]) == main(['replay', 'show', str(lie)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_whole_numbers_are_as_near_as_promised():
    x = np.random.default_rng(0).uniform(-1e4, 1e4, 10_000).astype(np.float32)
    assert np.abs(module.parts(whole(x)).astype(float) - x).max() <= 1/512
