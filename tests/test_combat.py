"What guards the combat: nothing out of range, nobody first, no damage from nowhere, and no old trick works."
import json
from functools import cache
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echelon.config import WEAPONS
from echelon.env import observations as ob
from echelon.env.actions import ActionIndex
from echelon.sim.mech import EVENT, KINDS
from echelon.sim.voxels import CODES, alter
from echelon.sim.weapons import fire
from echelon.world import make

GOLDEN = Path(__file__).parent/'golden'/'battles.json'
NAMES = ('heavy', 'leader', 'medium', 'other', 'light', 'scout')   # of a team, by place
PACK, TEAM = (1, 3, 1, 1), 6
ROW = {f'{side}_{name}': TEAM*t + k for t, side in enumerate(('blue', 'red')) for k, name in enumerate(NAMES)}
GUN = {name: k for k, name in enumerate(WEAPONS)}
BULLETS = [GUN[name] for name, w in WEAPONS.items() if w.speed]
DUDS = {name: w.model_dump() | dict(splash=0.) for name, w in WEAPONS.items()}   # nothing splashes


@cache
def field(worlds, **config):
    "A world that many tests share: each opens its games anew"
    land = dict(size=64, pool=4, zone_radius=(9., 10.)) | dict(config.pop('world', ()))
    if config.pop('duds', False): config['weapons'] = DUDS
    return make('mech', worlds=worlds, autoreset=False, pack=PACK, world=land, **config)


BARE = (('biomes', ()),)   # the landscape without anything on it


# ---- a hand that sets up battles

def scatter(world, seed, mirrored=False):
    "Everybody near the zone in some state of repair, shots and smoke in the air; red is blue's image or not"
    world.reset(seed=seed)
    world.action[:], world.control[:] = 0, 0
    g, rng = world.game_arrays, np.random.default_rng(seed)
    u = lambda low, high, *more: rng.uniform(low, high, g.mech.shape + more).astype(np.float32)
    rarely = lambda chance, high: np.where(u(0, 1) < chance, u(0, high), np.float32(0))
    bodies(g, u), wounds(g, u, rarely), missiles(g, u, rng), smoke(g, u, rarely)
    if mirrored: mirror(g)


def bodies(g, u):
    "In the zone, some of them in the air"
    m, (zx, zy, r) = g.mech, (g.world[f'zone_{c}'][:, None] for c in 'xyr')
    angle, d, nose, aloft = u(0, 2*np.pi), (r - 2.5)*np.sqrt(u(0, 1)), u(0, 2*np.pi), u(0, 1) < .3
    m['x'], m['y'], m['hx'], m['hy'] = zx + d*np.cos(angle), zy + d*np.sin(angle), np.cos(nose), np.sin(nose)
    m['z'], m['grounded'], m['vz'] = u(0, 5)*aloft, ~aloft, u(-6, 6)*aloft
    m['vx'], m['vy'] = u(-5, 5), u(-5, 5)


def wounds(g, u, rarely):
    m, c = g.mech, g.classes[g.mech['kind']]
    m['hp'], m['leg'], m['heat'] = c['hp']*u(.02, 1), c['leg']*rarely(.8, 1), c['capacity']*u(0, 1.1)
    m['stability'], m['down'], m['steady'] = u(1, 50), rarely(.1, 3), rarely(.2, 2)
    m['suppressed'], m['painted'], m['ams'] = rarely(.2, 1.2), rarely(.3, 5), rarely(.5, 1)
    m['quality'] = u(.25, 1.5)
    enemy = (np.arange(2*TEAM) + TEAM) % (2*TEAM)
    m['painter'], m['liquid'] = np.where(m['painted'] > 0, enemy, -1), np.maximum(u(-6, 3), 0)
    for k in range(4): m[f'cool{k}'] = rarely(.5, 1)*cooldown(g, c[f'weapon{k}'])


def cooldown(g, weapon):
    "Seconds, 0 where there is no weapon"
    return np.where(weapon >= 0, g.weapons['cooldown'][weapon], np.float32(0))


def missiles(g, u, rng):
    "Shots of all kinds in two slots each"
    q, N = g.shot, g.shot.shape[1]
    v, flies = u(-1, 1, 8, 3), (u(0, 1, 8) < .3) & (np.arange(8) < 2)
    q['weapon'] = rng.choice(BULLETS, q.shape)
    v *= (g.weapons['speed'][q['weapon']]/np.sqrt((v**2).sum(-1)))[..., None]
    for k, name in enumerate(('vx', 'vy', 'vz')): q[name] = v[..., k]
    for name in 'xy': q[name] = g.mech[name][..., None] + u(-4, 4, 8)
    q['z'], q['left'], q['state'] = u(0, 6, 8), u(.06, 1, 8), flies
    enemies = (np.arange(N)[:, None]//TEAM*-TEAM + TEAM) + rng.integers(0, TEAM, q.shape)
    q['target'] = np.where(u(0, 1, 8) < .8, enemies, -1)
    for name in ('struck', 'a', 'b', 'c'): q[name] = -1
    g.mech['flying'] = (q['state'] << np.arange(8)).sum(-1)


def smoke(g, u, rarely):
    for name in 'xy': g.cloud[name] = g.mech[name] + u(-6, 6)
    g.cloud['z'], g.cloud['left'] = u(0, 4), rarely(.05, 10)
    g.world['smoke'] = smoky(g)


def smoky(g): return ((g.cloud['left'] > 0)*(1 << np.arange(2*TEAM))).sum(1)


FLIP = ('x', 'vx', 'hx', 'from_x', 'strafe', 'turn')   # change sign in a mirror
SIGNS = np.float32([1, -1, 1, -1, 1, 1, 1, 1, 1])      # of the numbers of an action
BITS = ('sees', 'direct', 'known', 'tracked', 'foes', 'foes_before')
POINTS = ('painter', 'focus', 'shown0', 'shown1', 'shown2', 'shown3')
SAME = """y z vy vz hy hp leg heat stability cool0 cool1 cool2 cool3 alive shut grounded in_zone down steady
    painted suppressed ams liquid quality jam eccm flying lost forward jet fire0 fire1 fire2 fire3 vent ecm
    dealt friendly kills deaths overheats assists aided took from_y nans potential""".split()
LASTING = (*FLIP, *BITS, *POINTS, *SAME)


def image(m):
    "Mechs `[..., n]` of blue as they are in the mirror, where they are red; and the other way round"
    m, t = m.copy(), np.uint64(TEAM)
    for name in FLIP: m[name] *= -1
    for name in BITS: m[name] = m[name] >> t | (m[name] & np.uint64(2**TEAM - 1)) << t
    for name in POINTS: m[name] = np.where(m[name] < 0, -1, (m[name] + TEAM) % (2*TEAM))
    m['team'] = 1 - m['team']
    return m


def image_of_shots(q):
    q = q.copy()
    q['x'] *= -1; q['vx'] *= -1
    q['target'] = np.where(q['target'] < 0, -1, (q['target'] + TEAM) % (2*TEAM))
    return q


def mirror(g):
    "Red becomes the mirror image of blue"
    g.mech[:, TEAM:], g.shot[:, TEAM:] = image(g.mech[:, :TEAM]), image_of_shots(g.shot[:, :TEAM])
    g.cloud[:, TEAM:] = g.cloud[:, :TEAM]
    g.cloud['x'][:, TEAM:] *= -1
    g.world['smoke'] = smoky(g)


def wild(worlds, decisions=4):
    "Actions of all kinds, NaN and infinities among them"
    ordinary = st.sampled_from(np.float32([-1, -.3, 0, .5, 1, 1, 1]).tolist())
    return arrays(np.float32, (decisions, worlds, 2*TEAM, 9),
                  elements=ordinary | st.floats(width=32), fill=st.sampled_from([1., np.nan, np.inf]))


few = settings(max_examples=20, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)


# ---- what always holds

TABLES = dict(contacts=ob.CONTACT, squad=ob.SQUAD, ego=ob.EGO, suite_descriptor=ob.DESCRIPTOR, panel=ob.PANEL)


def limits(table):
    "Lowest and highest value of each column of a table of observations"
    return np.array([[c.low, c.high] for c in table]).T


def in_mechs(g):
    "What is out of range in the mechs, by name"
    m, c, edge = g.mech, g.classes[g.mech['kind']], g.world['size'][:, None]/2
    top = dict(hp=c['hp'], leg=c['leg'], took=c['hp'], heat=3*c['capacity'], x=edge, y=edge, z=60, vx=20,
               vy=20, vz=80, stability=100, down=3, steady=2, painted=5, suppressed=1.2, ams=1, quality=1.5,
               kills=2*TEAM, liquid=2, ecm=2, nans=9)
    top |= {f'cool{k}': cooldown(g, c[f'weapon{k}']) for k in range(4)}
    unit = 'jam eccm jet forward strafe turn alive shut grounded in_zone vent fire0 fire1 fire2 fire3'.split()
    top |= dict.fromkeys(unit, 1)
    low = {name: -top[name] for name in ('x', 'y', 'vx', 'vy', 'vz', 'forward', 'strafe', 'turn')}
    low = dict.fromkeys(top, 0) | low | dict(quality=.25*(m['alive'] != 0))
    for name, high in top.items():
        if not ((m[name] >= low[name]) & (m[name] <= np.float32(high) + 1e-4)).all(): yield name
    if not (abs(np.hypot(m['hx'], m['hy']) - 1) < 1e-3).all(): yield 'heading'
    if (m['flying'] != (g.shot['state'] << np.arange(8)).sum(-1)).any(): yield 'flying'
    if m['lost'].any() or m['bursting'].any(): yield 'lost or bursting'
    for name in POINTS:
        if not ((m[name] >= -1) & (m[name] < 2*TEAM)).all(): yield name


def in_the_air(g):
    "What is out of range in shots, clouds and tracks, by name"
    q, edge = g.shot[g.shot['state'] != 0], g.world['size'].max()/2
    if (abs(q['x']) > edge).any() or (abs(q['y']) > edge).any() or (q['z'] < 0).any(): yield 'shot'
    if (q['state'] != 1).any() or (q['left'] <= 0).any() or (q['left'] > 50/12).any(): yield 'shot state'
    if not np.isin(q['weapon'], BULLETS).all() or (abs(q['target']) > 2*TEAM).any(): yield 'shot target'
    if not ((g.cloud['left'] >= 0) & (g.cloud['left'] <= 10)).all(): yield 'cloud'
    t = g.track
    for name, high in dict(hp=1, stability=1, age=5).items():
        if not ((t[name] >= 0) & (t[name] <= high)).all(): yield f'track {name}'


def in_observations(world):
    "What is out of the range that its column declares, by name"
    for f in world.spec.obs:
        part = world.obs[..., f.columns]
        low, high = limits(TABLES[f.name]) if f.name in TABLES else (f.low, f.high)
        bad = (part.reshape(*part.shape[:2], -1, np.shape(low)[0] if np.ndim(low) else 1) < low - 1e-4)
        bad |= part.reshape(bad.shape) > high + 1e-4
        names = [c.name for c in TABLES.get(f.name, ())] or [f.name]
        for k in np.flatnonzero(bad.any((0, 1, 2))):
            yield f'{f.name} {names[k]}'


def infinite(g):
    "Tables with a number in them that is none"
    for table in ('mech', 'shot', 'cloud', 'track', 'world', 'obs', 'reward', 'event', 'terms', 'tally'):
        a = getattr(g, table)
        for name in a.dtype.names or ('',):
            part = a[name] if name else a
            if part.dtype.kind == 'f' and not np.isfinite(part).all(): yield f'{table} {name}'


@few
@given(seeds, wild(4))
def test_nothing_leaves_its_range(seed, actions):
    world = field(4, observation_mode='partial')
    scatter(world, seed)
    for action in actions:
        world.step(action)
        g = world.game_arrays
        assert not [*infinite(g), *in_mechs(g), *in_the_air(g), *in_observations(world)]
        assert abs(world.reward).max() < 30 and not g.changed[:, 1].any()


@few
@given(seeds, wild(4))
def test_damage_dealt_is_damage_taken(seed, actions):
    "What a team loses is what the enemy dealt and what it did to itself, where nothing splashes and burns"
    world, total = field(4, duds=True, world=BARE), 0
    scatter(world, seed)
    world.game_arrays.mech['liquid'] = 0
    for action in actions:
        before, running = world.game_arrays.mech['hp'].copy(), world.game_arrays.world['over'] == 0
        world.step(action)
        m = world.game_arrays.mech
        assert np.allclose((before - m['hp'])[running], m['took'][running], atol=1e-3)
        sums = lambda name: m[name].reshape(4, 2, TEAM).sum(-1)
        assert not m['friendly'].any() and np.allclose(sums('took'), sums('dealt')[:, ::-1], atol=1e-3)
        assert (m['dealt'] >= 0).all() and np.allclose(m['kills'].sum(1), m['deaths'].sum(1), atol=1e-4)
        total += sums('took').sum()
    assert total > 0


def at_home(g, w):
    "Rows of world `w` that a shot of theirs burst near in this decision"
    e = g.event[w, :g.world[w]['noted']]
    for hit in e[e['kind'] == KINDS.index('hit')]:
        m = g.mech[w, hit['row']]
        if max(abs(hit[c] - m[c]) for c in 'xy') < 6.5: yield int(hit['row'])


@few
@given(seeds, wild(4))
def test_splash_and_lava_are_nobodys_gain(seed, actions):
    "What one does to oneself is in no account; all else is"
    world = field(4, observation_mode='partial')
    scatter(world, seed)
    for action in actions:
        burning = (world.game_arrays.mech['liquid'] == 2).any(1)
        world.step(action)
        g = world.game_arrays
        loss = g.mech['took'].sum(1) - g.mech['dealt'].sum(1) - g.mech['friendly'].sum(1)
        assert (loss > -1e-3).all() and not g.world['dropped'].any()
        for w in range(4):
            if not burning[w] and not list(at_home(g, w)): assert abs(loss[w]) < 1e-3


STILL = 'x y z hx hy heat hp leg stability cool0 cool1 cool2 cool3 lost grounded'.split()
IDLE = 'alive vx vy vz fired ecm took deaths in_zone down'.split()


@few
@given(seeds, wild(4, 6))
def test_the_dead_never_act(seed, actions):
    world = field(4, observation_mode='partial')
    scatter(world, seed)
    world.game_arrays.mech['hp'] = 3
    for action in actions:
        before = world.game_arrays.mech.copy()
        running = world.game_arrays.world['over'] == 0
        world.step(action)
        g, dead = world.game_arrays, (before['alive'] == 0) & running[:, None]
        a, b = before[dead], g.mech[dead]
        for name in STILL: assert (a[name] == b[name]).all(), name
        for name in IDLE: assert not b[name].any(), name
        for name in ('hit0', 'hit1', 'hit2', 'hit3', 'shown0'): assert (b[name] == -1).all(), name
        assert not (b['flying'] & ~a['flying']).any()
        assert not g.action_mask[dead].any() and (world.alive == (g.mech['alive'] != 0)).all()
        for w in range(4):
            for e in g.event[w, :g.world[w]['noted']]:
                assert not dead[w, e['row']] or KINDS[e['kind']] in ('hit', 'kill', 'assist', 'capture')


TURNED = ('right', 'v_right', 'yaw_sin', 'fire_right', 'zone_right')   # observed numbers that a mirror turns


def image_of_obs(world):
    "What blue would observe in the place of red"
    obs = world.obs[:, :TEAM].copy()
    for f in world.spec.obs:
        if f.name == 'terrain':
            part = obs[..., f.columns].reshape(-1, 11)
            obs[..., f.columns] = part[:, ::-1].reshape(obs[..., f.columns].shape)
        for k, c in enumerate(TABLES.get(f.name, ())):
            if c.name in TURNED: obs[..., f.offset + k:f.offset + f.size:len(TABLES[f.name])] *= -1
    return obs


def unlike(a, b, names):
    "Fields that differ: floats by more than 1e-4, integers at all"
    for name in names:
        x, y = a[name], b[name]
        if x.dtype.kind == 'f': bad = abs(x - y) > 1e-4*np.maximum(1, abs(y))
        else: bad = x != y
        if bad.any(): yield f'{name}: {x[bad][:3]} and {y[bad][:3]}'


@few
@given(seeds, wild(12, 1))
def test_a_decision_mirrors(seed, actions):
    "One decision from a mirrored state, with chance: nobody is first"
    world = field(12, observation_mode='partial')
    scatter(world, seed, mirrored=True)
    blue = actions[0][:, :TEAM]
    world.step(np.concatenate([blue, blue*SIGNS], 1))
    g = world.game_arrays
    assert not list(unlike(image(g.mech[:, :TEAM]), g.mech[:, TEAM:], LASTING))
    a, b = image_of_shots(g.shot[:, :TEAM]), g.shot[:, TEAM:]
    live = b['state'] == 1
    assert not list(unlike(a, b, ['state']))
    assert not list(unlike(a[live], b[live], ('x', 'y', 'z', 'vx', 'vy', 'vz', 'left', 'weapon', 'target')))
    assert (g.cloud['left'][:, :TEAM] == g.cloud['left'][:, TEAM:]).all()
    assert (g.world['score0'] == g.world['score1']).all() and (g.world['winner'] == -1).all()
    for land in map(world.terrain, range(12)): assert (land == land[::-1]).all()
    assert np.allclose(world.reward[:, :TEAM], world.reward[:, TEAM:], atol=1e-4)
    assert np.allclose(image_of_obs(world), world.obs[:, TEAM:], atol=1e-4)


def exchange(a, i, j):
    "Rows `i` and `j` change places"
    a[:, [i, j]] = a[:, [j, i]]


def exchanged(m, i, j):
    "Mechs after rows `i` and `j` have changed places: whoever named one now names the other"
    m = m.copy()
    exchange(m, i, j)
    for name in POINTS: m[name] = np.where(m[name] == i, j, np.where(m[name] == j, i, m[name]))
    for name in BITS:
        bi, bj = (m[name] >> np.uint64(k) & np.uint64(1) for k in (i, j))
        m[name] ^= (bi ^ bj) << np.uint64(i) | (bi ^ bj) << np.uint64(j)
    return m


def change_places(world, i, j, keys):
    "Two mechs change places; their `place`, the key of their chance, goes with them or not"
    g = world.game_arrays
    places = g.mech['place'].copy()
    g.mech[:] = exchanged(g.mech, i, j)
    exchange(g.shot, i, j), exchange(g.cloud, i, j), exchange(world.action, i, j)
    target = g.shot['target'].copy()
    g.shot['target'][target == i], g.shot['target'][target == j] = j, i
    if not keys: g.mech['place'] = places
    g.world['smoke'] = smoky(g)


def calm(g, keys):
    "Nobody can die or lose legs in a decision; with keys, nothing flies"
    g.mech['hp'], g.mech['leg'] = 1e4, 1e4
    g.mech['ams'], g.cloud['left'] = 9, 0      # point defences wait: they throw dice
    if keys: g.shot['state'], g.mech['flying'] = 0, 0
    g.world['smoke'] = 0


CHANCE = ('hp', 'leg', 'dealt', 'friendly', 'took', 'from_x', 'from_y', 'aided')   # what a hit leg changes
MOVED = [name for name in LASTING if name not in ('in_zone', 'potential', *BITS[:4], 'focus')]


@pytest.mark.parametrize('keys', [True, False], ids=['with their keys', 'without'])
@few
@given(seed=seeds, actions=wild(6, 1))
def test_mechs_of_a_class_may_change_places(keys, seed, actions):
    """What hits at once, with the keys of chance; everything else, but what chance changes, without them

    The shots of a mech are found by its `place`, so that with shots in the air it cannot go with the mech."""
    world, i, j, action = field(6, world=BARE), ROW['blue_medium'], ROW['blue_other'], actions[0]
    if keys: action[..., ActionIndex.SECONDARY:] = -1
    left = []
    for swap in (False, True):
        scatter(world, seed)
        world.action[:] = action
        calm(world.game_arrays, keys)
        if swap: change_places(world, i, j, keys)
        world.step()
        left.append(world.game_arrays.mech.copy())
    names = MOVED if keys else [name for name in MOVED if name not in CHANCE]
    assert not list(unlike(exchanged(left[0], i, j), left[1], names))


def rush(world, decisions, seed=0):
    "Digests `[decisions, W]` of a melee with random actions"
    rng = np.random.default_rng(seed)
    W, out = world.spec.num_worlds, []
    for _ in range(decisions):
        one = rng.uniform(-1, 1, (1, 2*TEAM, 9)).astype(np.float32)
        world.step(np.repeat(one, W, 0))
        out.append(world.digest())
    return np.array(out)


def test_worlds_and_threads_change_nothing():
    "Three worlds side by side and each alone, on one thread and on two"
    three, alone, before = field(3, observation_mode='partial'), field(1, observation_mode='partial'), \
        numba.get_num_threads()
    keys, runs = np.array([11, 2**63 + 5, 77], np.uint64), []
    for threads in range(1, min(2, numba.config.NUMBA_NUM_THREADS) + 1):
        numba.set_num_threads(threads)
        three.control[:], alone.control[:] = 0, 0
        three.reset(seed=keys)
        three.game_arrays.mech['x'] *= np.float32(.4)
        runs.append(rush(three, 80))
        for w in range(3):
            alone.reset(seed=keys[w:w + 1])
            alone.game_arrays.mech['x'] *= np.float32(.4)
            assert (rush(alone, 80)[:, 0] == runs[-1][:, w]).all(), (threads, w)
    numba.set_num_threads(before)
    assert len(set(runs[0][-1].tolist())) == 3 and (runs[0] == runs[-1]).all()
    assert three.game_arrays.mech['alive'].mean() < 1


def test_a_battle_goes_on_from_every_decision():
    "A state goes into a fresh world after every decision, and nothing changes"
    fresh = lambda: make('mech', worlds=3, seed=99, pack=PACK, world=dict(size=40, pool=2),
                         observation_mode='partial', max_episode_seconds=9.)
    world, rng, copies = fresh(), np.random.default_rng(4), [fresh() for _ in range(3)]
    world.reset(seed=3)
    world.control[:, ::2] = 1
    for t in range(72):
        if t in (0, 36): world.game_arrays.mech['x'] *= np.float32(.3)
        other = fresh() if t % 20 == 0 else copies[t % 3]
        other.load_state(world.state())
        action = rng.uniform(-1, 1, world.action.shape).astype(np.float32)
        for one in (world, other): one.step(action)
        assert (world.digest() == other.digest()).all(), t
        for name in ('obs', 'reward', 'action_mask', 'terminated'):
            assert (getattr(world, name) == getattr(other, name)).all(), (t, name)
    assert world.game.min() > 0 and world.stats['damage'].sum() > 200


# ---- the traps, one by one

def stage(mode='full', size=40, hide=(), zone=False, **who):
    """A bare floor on which only those named live: `blue_heavy=(x, y)`, or with more `(x, y, dict(heat=9.))`

    Blue looks to the right, red to the left; nobody sees through the smoke around those to `hide`."""
    world = field(1, observation_mode=mode, world=(*BARE, ('size', size)))
    world.reset(seed=5)
    world.control[:], world.action[:] = 0, 0
    m = world.game_arrays.mech[0]
    if not zone: world.game_arrays.world['zone_r'] = 0
    m['known'] = m['tracked'] = 0
    alone, m['alive'] = m.copy(), 0
    for name, (x, y, *more) in who.items():
        m[ROW[name]] = alone[ROW[name]]
        assert max(abs(x), abs(y)) + 1.75 <= size/2, 'not on the map'
        m[ROW[name]]['x'], m[ROW[name]]['y'] = x, y
        for key, value in dict(*more).items(): m[ROW[name]][key] = value
    for name in hide: blind(world, name)
    return world, {name: m[k] for name, k in ROW.items()}


def blind(world, name):
    "Ten seconds of smoke around a mech"
    g, i = world.game_arrays, ROW[name]
    m, cloud = g.mech[0, i], g.cloud[0, i]
    cloud['x'], cloud['y'], cloud['z'], cloud['left'] = m['x'], m['y'], m['z'] + 1, 10
    g.world['smoke'] = smoky(g)


def play(world, decisions=1, **wishes):
    "Act for so many decisions, `blue_heavy=dict(PRIMARY=1)`; what happened, as `(kind, row, other)`"
    world.action[:], out = 0, []
    for name, wish in wishes.items():
        for key, value in wish.items(): world.action[0, ROW[name], ActionIndex[key]] = value
    for _ in range(decisions):
        world.step()
        assert not world.game_arrays.world['dropped'].any()
        out += events(world)
    return out


def events(world):
    "The events of the last decision"
    e = world.game_arrays.event[0, :world.game_arrays.world[0]['noted']]
    return [(KINDS[k], i, j) for k, i, j in e[['kind', 'row', 'other']].tolist()]


def happened(kind, who, whom=None):
    "The event of that kind"
    return kind, ROW.get(who, who), -1 if whom is None else ROW.get(whom, whom)


COOL = ('cool0', 'cool1', 'cool2', 'cool3')
ALL = dict(PRIMARY=1, SECONDARY=1, TERTIARY=1, SPECIAL=1)
FAR = (18., -18.)   # a corner, out of everything's reach


def test_the_focus_is_shot_at_and_not_somebody_nearer():
    "A laser, an autocannon and a gauss at the chosen one, while another stands nearer, straight ahead"
    for shooter, slot in (('blue_medium', 0), ('blue_medium', 1), ('blue_heavy', 2), ('blue_heavy', 1)):
        for focus, wanted in (('red_light', 'red_light'), (None, 'red_scout'), ('red_leader', 'red_scout'),
                              ('red_other', 'red_scout'), ('blue_scout', 'red_scout')):
            world, who = stage(**{shooter: (0, 0)}, blue_scout=(2, -4), red_scout=(4, 0),
                               red_light=(6, 2), red_leader=FAR)
            play(world)
            o = who[shooter]
            o['focus'], o[f'fire{slot}'] = ROW.get(focus, -1), 1
            fire(world.game_arrays, 0, ROW[shooter])
            hit = o['hit0'] if slot == 0 else world.game_arrays.shot[0, ROW[shooter], 0]['target']
            assert o['fired'] == 1 and hit == ROW[wanted], (shooter, slot, focus)


def test_splash_on_the_own_side_never_pays():
    "A gauss slug bursts at a wall: mates beside it cost the shooter reward, its own wounds earn nothing"
    rewards = []
    for mate, near in ((False, False), (True, False), (False, True)):
        world, who = stage(blue_heavy=(5.4 if near else 0, -.5), blue_scout=(7.2, .9) if mate else (-15, 9),
                           red_scout=FAR)
        for b, c in np.ndindex(6, 5):
            alter(world.game_arrays, 0, 28, 17 + b, c, np.uint8(CODES['reinforced']), np.float32(np.inf))
        play(world, 2, blue_heavy=dict(TERTIARY=1))
        heavy, scout = who['blue_heavy'], who['blue_scout']
        paid = world.drain()
        assert paid['damage'].sum() == 0 and paid['reward_damage'].sum() == 0 and heavy['dealt'] == 0
        assert (heavy['hp'] < 200) == near and (scout['hp'] < 60) == mate
        assert (paid['reward_friendly'][0, 0] < 0) == mate
        rewards.append(paid['reward_friendly'][0, 0])
    assert rewards[1] < rewards[0] == rewards[2] == 0


def test_splash_on_mates_takes_from_what_a_hit_pays():
    "The same hit on an enemy, with a mate beside it and without: never worth more"
    paid = []
    for y in (1.6, 12.):
        world, who = stage(blue_heavy=(-6, 0), red_medium=(4, 0), blue_scout=(1.6, y))
        play(world)
        world.drain()
        paid.append(0)
        for _ in range(3):
            play(world, 1, blue_heavy=dict(TERTIARY=1))
            paid[-1] += world.reward[0, ROW['blue_heavy']]
        assert who['red_medium']['hp'] < 150 and (who['blue_scout']['hp'] < 60) == (y < 3)
    assert paid[0] < paid[1]


def test_point_defence_tries_once_a_second_and_misses():
    "Missiles by the thousand fly past: a try each second, three in five hit"
    W, decisions = 256, 40
    world = make('mech', worlds=W, seed=1, autoreset=False, pack=(1, 0, 0, 0),
                 world=dict(size=40, pool=1, biomes=()))
    g, tries, ticks = world.game_arrays, np.zeros(W), [[] for _ in range(W)]
    for _ in range(decisions):
        volley(g)
        before = g.mech['ams'][:, 1].copy()
        world.step()
        tries += g.mech['ams'][:, 1] > before - .24
        for w in range(W):
            for e in g.event[w, :g.world[w]['noted']]:
                assert (KINDS[e['kind']], e['row'], e['other']) == ('intercept', 1, 0)
                ticks[w].append(int(e['tick']))
    hits = sum(map(len, ticks))
    assert (tries == 10).all() and min(b - a for t in ticks for a, b in zip(t, t[1:])) == 20
    assert abs(hits - .6*10*W) < 4*np.sqrt(10*W*.6*.4)


def volley(g):
    "Eight missiles rise beside the red heavy, and hit nothing"
    q, m = g.shot[:, 0], g.mech
    for name, value in dict(state=1, weapon=GUN['missiles'], target=-1, left=9., vx=0., vy=0., vz=12., z=2.,
                            struck=-1, a=-1, b=-1, c=-1).items(): q[name] = value
    q['x'], q['y'] = m['x'][:, 1:2] - 3, m['y'][:, 1:2] + np.linspace(-1, 1, 8, dtype=np.float32)
    m['flying'][:, 0] = 255


@pytest.mark.parametrize('state', ['down', 'shut', 'dead'])
def test_the_fallen_and_the_sleeping_do_nothing(state):
    "They press everything, face the enemy and want to run: until they are up, nothing comes of it"
    lies = dict(down=dict(down=3.), shut=dict(shut=1, heat=139.), dead=dict(alive=0, hp=0))[state]
    for me in ('blue_medium', 'blue_heavy', 'blue_light', 'blue_scout'):
        world, who = stage('partial', **{me: (0, 0, lies)}, blue_other=(0, -9, dict(down=60.)),
                           red_medium=(4, 0))
        foe, before = who['red_medium'], who[me].copy()
        out = play(world, 5, **{me: ALL | dict(FORWARD=1, STRAFE=1, YAW=1, JET=1)})
        assert not out and foe['hp'] == 150 and foe['painted'] == 0
        assert not who[me]['flying'] and who[me]['ecm'] == 0 and who[me]['heat'] <= before['heat']
        for name in ('x', 'y', 'z', 'hx', 'hy', *COOL): assert who[me][name] == before[name], name
        if state == 'dead': continue
        out = play(world, 30, **{me: ALL | dict(FORWARD=-.1)})
        assert any(row == ROW[me] for _, row, _ in out) and who[me]['x'] < 0


def test_a_fallen_mech_does_not_hold_the_zone():
    world, who = stage(zone=True, blue_scout=(0, 0), red_scout=FAR)
    zone, o = world.game_arrays.world[0], who['blue_scout']
    o['x'], o['y'] = zone['zone_x'], zone['zone_y']
    for wound, gain in ((dict(), .25), (dict(down=3.), 0), (dict(down=0., shut=1, heat=104.), 0),
                        (dict(shut=0, heat=0.), .25)):
        for name, value in wound.items(): o[name] = value
        play(world)
        assert zone['gain0'] == gain and o['in_zone'] == (gain > 0), wound


def hover(height, decisions, heat=None, vent=0):
    "A scout over the middle of the zone that holds a height if it can: `z, heat, shut, gain` by decision"
    world, who = stage(zone=True, blue_scout=(0, 0), red_heavy=FAR)
    g, o, out = world.game_arrays, who['blue_scout'], []
    o['x'], o['y'] = g.world[0]['zone_x'], g.world[0]['zone_y']
    for _ in range(decisions):
        if heat is not None: o['heat'] = heat
        jet = np.clip(.545 + .5*(height - o['z']) - .25*o['vz'], 0, 1)
        play(world, 1, blue_scout=dict(JET=jet, VENT=vent))
        out.append((o['z'], o['heat'], o['shut'], g.world[0]['gain0']))
    return np.array(out)


def test_a_scout_cannot_hover_for_long():
    "Heat of the jets brings it down after nine seconds or so, whatever the height"
    for height in (2.5, 3.5, 6.):
        z, _, shut, _ = hover(height, 60).T
        aloft, down = np.flatnonzero(z > height - 1)[0]*.25, np.flatnonzero(shut)[0]*.25
        assert aloft < 2 and 7 < down < 12, (height, down)
        first = np.flatnonzero(shut)[0]
        assert z[first:first + 8].min() < (.01 if height < 4 else 2)


def test_a_scout_that_vents_cannot_hover_for_long():
    assert hover(3.5, 100, vent=1)[:, 2].any()


def test_heat_is_never_more_than_it_can_be():
    world, who = stage(blue_heavy=(-3, 0, dict(heat=129.) | dict.fromkeys(COOL, .25)), red_medium=(3, 0))
    play(world, 1, blue_heavy=ALL)
    assert who['blue_heavy']['heat'] <= 1.4*130


def test_hovering_high_holds_nothing():
    "Feet up to 4 vox above the ground count; higher ones do not, however long"
    for height, holds in ((3., True), (6., False)):
        z, _, _, gain = hover(height, 60, heat=0.).T
        assert (abs(z[20:] - height) < .7).all() and ((gain[20:] > 0) == holds).all()


def test_jets_give_no_thrust_from_eight_vox_on():
    "With endless cold it bobs about its ceiling"
    z = hover(60., 120, heat=0.)[:, 0]
    assert 8 < z.max() < 16 and z[40:].min() < 9


def test_nobody_is_first():
    "Two that would kill each other do; of two whose blows would each do, both share the kill"
    for kind in ('medium', 'heavy', 'light'):
        us, them = f'blue_{kind}', f'red_{kind}'
        world, who = stage(**{us: (-2, 0, dict(hp=1.)), them: (2, 0, dict(hp=1.))})
        out = play(world, 1, **{us: dict(PRIMARY=1), them: dict(PRIMARY=1)})
        assert not world.alive.any() and world.game_arrays.world[0]['winner'] == -1 and world.terminated[0]
        assert {e for e in out if e[0] == 'kill'} == {happened('kill', us, them), happened('kill', them, us)}
        assert world.reward[0, ROW[us]] == world.reward[0, ROW[them]]
    world, who = stage(blue_medium=(-3, 2), blue_other=(-3, -2), red_scout=(2, 0, dict(hp=3.)), red_heavy=FAR)
    play(world, 1, blue_medium=dict(PRIMARY=1), blue_other=dict(PRIMARY=1))
    assert who['blue_medium']['kills'] + who['blue_other']['kills'] == 1
    assert min(who[f'blue_{k}']['kills'] for k in ('medium', 'other')) > .3


@pytest.mark.parametrize('pair', [('blue_medium', 'blue_other'), ('blue_medium', 'red_medium'),
                                  ('blue_other', 'red_leader')])
def test_nobody_pushes_first(pair):
    "Whoever runs into whom, both stand as far from where they met; whoever overlaps gives way as much"
    for gap, way in ((3., 1), (1.5, 0)):
        for a, b in (pair, pair[::-1]):
            world, who = stage(**{a: (-gap/2, 0, dict(hx=1)), b: (gap/2, 0, dict(hx=-1))},
                               red_scout=FAR, blue_scout=(-18, 18))
            play(world, 4, **{a: dict(FORWARD=way), b: dict(FORWARD=way)})
            x, y = who[a]['x'], who[b]['x']
            assert x == -y and (-1.5 < x < -1.2 if way else x < -1.2), (x, y)


def knows(world, name):
    "The rows of enemies among the contacts of a mech"
    bits = int(world.game_arrays.mech[0, ROW[name]]['known'])
    return {other for other, k in ROW.items() if bits >> k & 1 and other[:3] != name[:3]}


def contacts(world, name):
    "The contacts that a mech (name or row) observes, without empty slots"
    return filled(world.obs[0, ROW.get(name, name)], *map(world.spec.field, ('contacts', 'contact_mask')))


def squad(world, name):
    "The mates that a mech observes"
    return filled(world.obs[0, ROW.get(name, name)], *map(world.spec.field, ('squad', 'squad_mask')))


def filled(row, slots, mask): return row[slots.columns].reshape(slots.shape)[row[mask.columns] == 0]


EYES = dict(heavy=48, leader=60, medium=60, light=72, scout=90)          # vox: 60 times their suites
RADAR = dict(heavy=11.2, leader=14, medium=14, light=16.8, scout=21)     # 14 times


@pytest.mark.parametrize('name', EYES)
def test_suites_differ_in_range(name):
    "The same enemy is a contact for one and none for the other: by eye, and through smoke by radar"
    for hidden, reach in (((), EYES[name]), ((f'blue_{name}',), RADAR[name])):
        for far, found in ((reach - .5, True), (reach + .7, False)):
            me = f'blue_{name}'
            world, _ = stage('partial', size=100, hide=hidden, **{me: (-45, 9)}, red_medium=(far - 45, 9))
            play(world)
            assert len(contacts(world, me)) == len(knows(world, me)) == found, (hidden, far)


def test_suites_differ_in_fidelity():
    "What they tell of an enemy is off the truth by 5 vox, and half of its state, times 1 - fidelity at most"
    off = {}
    for name, fidelity in dict(heavy=1., scout=.8, medium=.7, light=.6).items():
        errors = []
        for y in np.linspace(-8, 8, 12):
            who = {f'blue_{name}': (0, 0), 'red_heavy': (9, float(y), dict(hp=100., heat=60., stability=50.))}
            told = []
            for mode in ('partial', 'full'):
                world, _ = stage(mode, **who)
                for _ in range(4): play(world); told.append(contacts(world, f'blue_{name}')[0])
            told = np.array(told).reshape(2, 4, -1)
            errors.append(told[0] - told[1])
        errors = abs(np.array(errors).reshape(-1, len(ob.CONTACT)))
        blurred = [ob.Contact.hp, ob.Contact.heat, ob.Contact.stability]
        assert errors[:, blurred].max() <= .25*(1 - fidelity) + 1e-6
        off[name] = errors[:, blurred].mean(), errors[:, [ob.Contact.ahead, ob.Contact.right]].mean()
    assert off['heavy'] == (0, 0)
    for k in range(2): assert 0 < off['scout'][k] < off['medium'][k] < off['light'][k]


def test_suites_differ_in_slots_and_detail():
    "Ten against ten on a bare floor: everybody sees everybody, and is told of so many"
    world = make('mech', worlds=1, observation_mode='partial', world=dict(size=60, pool=1, biomes=()))
    world.game_arrays.mech['heat'] = 40
    world.step()
    for row, slots, mates, hp, heat in ((0, 5, 4, 0, 0), (1, 8, 9, 1, 1), (2, 8, 9, 1, 0), (6, 10, 9, 1, 0),
                                        (9, 19, 4, 0, 0)):
        assert len(contacts(world, row)) == slots and len(squad(world, row)) == mates
        assert bin(int(world.game_arrays.mech[0, row]['known'])).count('1') == 10
        told = squad(world, row)[0] != 0
        assert told[ob.Mate.right] and told[ob.Mate.hp] == hp and told[ob.Mate.heat] == heat


def test_suites_differ_in_what_they_report_and_take_in():
    "Scout and leader tell a mate in smoke what they see, others do not; it takes in what its suite can"
    reds = {f'red_{name}': (16, 3*k - 7.) for k, name in enumerate(NAMES)}
    for teller, me, slots in (('blue_scout', 'blue_heavy', 3), ('blue_leader', 'blue_heavy', 3),
                              ('blue_light', 'blue_heavy', 0), ('blue_medium', 'blue_light', 0),
                              ('blue_scout', 'blue_light', 6), ('blue_scout', 'blue_medium', 6)):
        world, who = stage('partial', hide=(me,), **{me: (-14, 0), teller: (-8, 8)}, **reds)
        play(world)
        assert bin(int(who[teller]['direct'])).count('1') == 6 and who[me]['direct'] == 0
        hostile = contacts(world, me)[:, ob.Contact.hostile] > 0
        assert hostile.sum() == slots and len(knows(world, me)) == (6 if slots else 0), (teller, me)


def test_jamming_spoils_sensors_and_clearing_helps():
    "ECM at 20 of 50 vox: 1 - .85*.6; ECCM at 10: + .65*.8, never above 1.5; each costs heat"
    world, who = stage('partial', size=64, blue_heavy=(0, 0), blue_scout=(-10, 0), red_scout=(20, 0))
    o = who['blue_heavy']
    for them, us, quality in ((0, 0, 1.), (1, 0, .49), (0, 1, 1.5), (1, 1, 1.01)):
        play(world, 1, red_scout=dict(SECONDARY=them), blue_scout=dict(TERTIARY=us))
        assert o['quality'] == pytest.approx(quality, abs=.01), (them, us)
        assert bool(o['jam'] > 0) == them and bool(o['eccm'] > 0) == us
        told = world.obs[0, ROW['blue_heavy'], world.spec.field('ego').columns]
        assert told[ob.Ego.sensor_quality] == pytest.approx(quality/1.5, abs=.01)
        assert told[ob.Ego.jam] == o['jam']
    for button, rate in (('SECONDARY', 3), ('TERTIARY', 2)):
        world, who = stage(blue_scout=(0, 0, dict(heat=60.)), red_scout=FAR)
        play(world, 4, blue_scout={button: 1})
        assert who['blue_scout']['heat'] == pytest.approx(60 - 13 + rate, abs=1e-3)


def test_jamming_shortens_the_radar():
    "Through smoke: 21 for a scout, less by its quality when it is jammed, half of it when it emits"
    ecm, both = dict(SECONDARY=1), dict(SECONDARY=1, TERTIARY=1)
    for far, them, us, found in ((20, {}, {}, True), (11, ecm, {}, False), (7, ecm, {}, True),
                                 (11, {}, both, False), (10, {}, both, True)):
        who = dict(blue_scout=(0, 0), red_light=(float(far), 0), red_scout=(4., 16.))
        world, _ = stage('partial', size=64, hide=('blue_scout',), **who)
        play(world, 2, red_scout=them, blue_scout=us)
        assert ('red_light' in knows(world, 'blue_scout')) == found, (far, them, us)


@pytest.mark.parametrize('near', ['listener', 'teller'])
@pytest.mark.parametrize('them, us, heard', [(0, 0, True), (1, 0, False), (1, 1, True)])
def test_jamming_cuts_reports(them, us, heard, near):
    "A heavy in smoke lives by the reports of its scout; either may be the one that is jammed"
    heavy, scout = (8, -10) if near == 'listener' else (-10, 8)
    world, who = stage('partial', size=64, hide=('blue_heavy',), blue_heavy=(heavy, 0),
                       blue_scout=(scout, 9), red_scout=(20, 0), red_medium=(22, 3))
    play(world, 2, red_scout=dict(SECONDARY=them), blue_scout=dict(TERTIARY=us))
    assert ('red_medium' in knows(world, 'blue_heavy')) == heard
    assert 'red_medium' in knows(world, 'blue_scout')
    fine = [who[name]['quality'] >= .5 for name in ('blue_heavy', 'blue_scout')]
    assert fine == [heard or near == 'teller', heard or near == 'listener']
    link = world.obs[0, ROW['blue_heavy'], world.spec.field('suite_descriptor').offset + ob.Descriptor.link]
    assert link == fine[0]


@pytest.mark.parametrize('them, us, flies', [(0, 0, True), (1, 0, False), (1, 1, True)])
def test_jamming_breaks_the_missile_lock(them, us, flies):
    "A painted enemy 25 vox off, in smoke: a missile flies at it unless sensors are spoilt"
    world, who = stage('partial', hide=('blue_heavy',), blue_heavy=(-15, 0), blue_scout=(-15, 6),
                       red_scout=(10, 6), red_medium=(10, 0, dict(painted=5., painter=ROW['blue_scout'])))
    play(world, 2, red_scout=dict(SECONDARY=them), blue_scout=dict(TERTIARY=us))
    assert (who['blue_heavy']['quality'] >= .7) == flies
    play(world, 1, blue_heavy=dict(SECONDARY=1), red_scout=dict(SECONDARY=them), blue_scout=dict(TERTIARY=us))
    assert bool(who['blue_heavy']['flying']) == flies == (who['blue_heavy']['cool1'] > 0)


def test_no_shot_is_dropped():
    "Everybody fires all it has, all the time, with every shot alive as long as it can be"
    world = field(4, world=(*BARE, ('size', 128)))
    world.reset(seed=2)
    world.control[:] = 0
    g, rng, most = world.game_arrays, np.random.default_rng(0), 0
    fired = set()
    for t in range(120):
        m = g.mech
        m['heat'], m['hp'], m['down'], m['quality'], m['shut'], m['painted'] = 0, 1e4, 0, 1, 0, 5
        if t == 60: m['x'], m['y'] = rng.uniform(-8, 8, (2, *m.shape))
        action = rng.uniform(-1, 1, world.action.shape).astype(np.float32)
        action[..., ActionIndex.PRIMARY:], action[..., ActionIndex.VENT] = 1, -1
        world.step(action)
        most = max(most, int(np.bitwise_count(m['flying']).max()))
        fired |= set(g.shot['weapon'][g.shot['state'] == 1].tolist())
    assert not m['lost'].any() and most >= 3 and fired == set(BULLETS)
    assert (g.mech['alive'] != 0).all()


# ---- events

def test_hits_are_noted():
    "A laser hits twice in a second; what the notes say is what the victim lost"
    world, who = stage(blue_medium=(0, 0), red_other=(6, 0))
    out, amount = [], 0
    for _ in range(4):
        out += play(world, 1, blue_medium=dict(PRIMARY=1))
        g = world.game_arrays
        amount += g.event['amount'][0, :g.world[0]['noted']].sum()
    assert out == [happened('hit', 'blue_medium', 'red_other')]*2
    assert amount == 150 - who['red_other']['hp'] > 10
    world, who = stage(blue_medium=(0, 0), red_other=(10, 0))
    out = play(world, 4, blue_medium=dict(SECONDARY=1))
    assert set(out) == {happened('hit', 'blue_medium', 'red_other')} and len(out) >= 2
    assert who['red_other']['suppressed'] > 0


def test_kills_and_assists_are_noted():
    "Who painted it helped to kill it; who did nothing did not"
    world, who = stage(blue_light=(0, 1), blue_other=(0, -2), blue_leader=(0, -6),
                       red_scout=(3, 0, dict(hp=1.)), red_heavy=FAR)
    assert happened('paint', 'blue_light', 'red_scout') in play(world, 1, blue_light=dict(TERTIARY=1))
    out = play(world, 1, blue_other=dict(PRIMARY=1))
    notes = ('hit', 'blue_other'), ('kill', 'blue_other'), ('assist', 'blue_light')
    assert set(out) == {happened(kind, name, 'red_scout') for kind, name in notes}
    assert who['blue_light']['assists'] == 1 and who['blue_leader']['assists'] == 0
    assert who['blue_light']['aided'] > 0 and who['blue_other']['aided'] == 0


def test_falls_and_shutdowns_are_noted():
    world, who = stage(blue_heavy=(-6, 0), red_medium=(4, 0, dict(stability=20.)),
                       red_other=(9, 9, dict(heat=120.)))
    out = play(world, 2, blue_heavy=dict(TERTIARY=1))
    notes = ('knockdown', 'red_medium'), ('shutdown', 'red_other'), ('hit', 'blue_heavy', 'red_medium')
    assert sorted(out) == sorted(happened(*note) for note in notes)
    assert who['red_medium']['down'] > 0 and who['red_other']['shut']


@pytest.mark.parametrize('kind, button, wound', [('knockdown', 'TERTIARY', dict(stability=5.)),
                                                 ('shutdown', 'PRIMARY', dict(heat=90.))])
def test_the_dead_do_not_fall_again(kind, button, wound):
    world, who = stage(blue_heavy=(-4, 0), red_light=(3, 0, dict(hp=1., **wound)), red_heavy=FAR)
    out = play(world, 3, blue_heavy={button: 1})
    assert not who['red_light']['alive'] and sum(e[0] == kind for e in out) == 1


def test_intercepts_are_noted():
    "A missile vanishes where its end is noted, or comes through"
    ends = set()
    for key in range(12):
        world, who = stage(blue_heavy=(-7, 0), red_heavy=(5, 0))
        world.game_arrays.world['key'] = key
        out = play(world, 1, blue_heavy=dict(SECONDARY=1)) + play(world, 8)
        kinds = {kind for kind, *_ in out}
        ends |= kinds
        assert not who['blue_heavy']['flying'] and (who['red_heavy']['hp'] < 200) == (kinds == {'hit'})
        pair = ('red_heavy', 'blue_heavy') if kinds == {'intercept'} else ('blue_heavy', 'red_heavy')
        assert out == [happened(*kinds, *pair)]
    assert ends == {'intercept', 'hit'}


def test_captures_are_noted():
    "The zone goes to blue, to nobody, to red"
    world, who = stage(zone=True, blue_light=(0, 0), red_heavy=FAR)
    zone, out = world.game_arrays.world[0], []
    for name, off in (('blue_light', 0), (None, 0), ('blue_light', 15), ('red_heavy', 0), (None, 0)):
        if name: who[name]['x'], who[name]['y'] = zone['zone_x'] + off, zone['zone_y']
        out.append(play(world))
    assert out == [[happened('capture', -1, 0)], [], [], [happened('capture', -1, 1)], []]


def test_events_that_do_not_fit_are_counted():
    "Room for two of what five weapons do at once"
    who = {f'blue_{name}': (-3, 3.*k - 4) for k, name in enumerate(('medium', 'other', 'light'))}
    world, _ = stage(**who, red_scout=(0, 0))
    whole, press = world.game_arrays, {name: dict(TERTIARY=1, PRIMARY=1) for name in who}
    play(world, 1, **press)
    noted, first = int(whole.world[0]['noted']), whole.event[0, :2].copy()
    world, _ = stage(**who, red_scout=(0, 0))
    world.game_arrays = whole._replace(event=np.zeros((1, 2), EVENT))
    for name in press: world.action[0, ROW[name], [ActionIndex.TERTIARY, ActionIndex.PRIMARY]] = 1
    world.step()
    room, world.game_arrays = world.game_arrays, whole
    assert noted > 4 and (room.world[0]['noted'], room.world[0]['dropped']) == (2, noted - 2)
    assert (room.event[0] == first).all()


# ---- golden battles

def summary(g, w):
    "A few numbers to judge a difference by: score, hp and living of both teams"
    m, world, n = g.mech[w], g.world[w], g.mech.shape[1]//2
    sums = [round(float(part.sum()), 1) for part in (m['hp'][:n], m['hp'][n:])]
    living = [int((part != 0).sum()) for part in (m['alive'][:n], m['alive'][n:])]
    return [round(float(world['score0']), 2), round(float(world['score1']), 2), *sums, *living]


def battles():
    """Eight battles of 40 s: digest and summary every 20 ticks, by name

    The heuristic, which is the yardstick, against each of the other scripts; and any actions at all"""
    rows, rng = {}, np.random.default_rng(0)
    for kind, seeds in (('recruit', [1, 2]), ('rusher', [3]), ('anything', [4]), ('holder', [5]),
                        ('flanker', [6]), ('sniper', [7]), ('blind', [8])):
        world = make('mech', worlds=len(seeds), seed=np.array(seeds, np.uint64), autoreset=False,
                     observation_mode='partial', world=dict(size=64, pool=4))
        if kind != 'anything':
            code = world.spec.scripts.index
            world.control[:, :10], world.control[:, 10:] = 1 + code('heuristic'), 1 + code(kind)
        for t in range(1, 161):
            action = rng.uniform(-1, 1, world.action.shape).astype(np.float32)
            action[..., :2] *= np.float32([-1, .3])
            action[..., 0] = abs(action[..., 0])
            world.step(action)
            if t % 4: continue
            for w, (seed, digest) in enumerate(zip(seeds, world.digest().tolist())):
                row = [5*t, f'{digest:016x}', *summary(world.game_arrays, w)]
                rows.setdefault(f'{kind} {seed}', []).append(row)
    return rows


def difference(known, found):
    "The first row of a battle that is not as known, in words; empty if there is none"
    label = ('tick', 'digest', 'score of blue', 'of red', 'hp of blue', 'of red', 'living of blue', 'of red')
    told = lambda row: ', '.join(f'{name} {value}' for name, value in zip(label, row))
    for name in known.keys() | found.keys():
        for old, new in zip(known.get(name, [[]]), found.get(name, [[]])):
            if old == new: continue
            same = '' if old[2:] != new[2:] else ' (all but the digest is the same)'
            return f'battle {name!r}{same}\nexpected {told(old)}\nfound    {told(new)}'
    return '' if known == found else 'other battles, or longer ones'


def test_golden_battles(pytestconfig):
    "`--bless` accepts other battles"
    found = battles()
    if pytestconfig.getoption('bless'):
        table = lambda rows: ',\n'.join(json.dumps(row, separators=(',', ':')) for row in rows)
        lines = [f'"{name}": [\n{table(rows)}]' for name, rows in found.items()]
        GOLDEN.write_text('{' + ',\n'.join(lines) + '}\n')
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    wrong = difference(known, found)
    assert not wrong, wrong
    assert [len(rows) for rows in known.values()] == [40]*8 and GOLDEN.stat().st_size < 30_000
    assert sum(rows[-1][6] + rows[-1][7] for rows in known.values()) < 150


def test_a_golden_difference_is_readable():
    old = {'scripts 1': [[20, 'ab', 0., 0., 9., 9., 3, 3], [40, 'cd', 1., 0., 9., 8., 3, 3]]}
    new = {'scripts 1': [[20, 'ab', 0., 0., 9., 9., 3, 3], [40, 'ef', 1., 0., 9., 7., 3, 2]]}
    text = difference(old, new)
    for part in ("'scripts 1'", 'expected tick 40, digest cd', 'found    tick 40, digest ef', 'of red 2'):
        assert part in text
    assert not difference(old, old) and difference(old, {}) and 'all but the digest' in difference(
        old, {'scripts 1': [[20, 'xx', 0., 0., 9., 9., 3, 3]]})
