"What guards observations: every column by name, the fog, and what optional blocks choose and say"
import json
from functools import cache
from math import hypot

import numpy as np
import pytest

from echelon.config import EnvConfig
from echelon.env import observations as ob
from echelon.env.actions import ACTION, ORDERS, ActionIndex, action_blocks
from echelon.env.battle import view
from echelon.sim.mech import FLYING
from echelon.world import make

ON = dict(enable_target_selection=True, enable_obs_control=True, enable_comm=True, enable_orders=True)
PACK = (1, 2, 1, 1)
HEAVY, LEADER, ME, LIGHT, SCOUT, N = range(6)   # rows of blue; those of red are N more
FOE = N + LIGHT
TABLES = dict(contacts=ob.CONTACT, squad=ob.SQUAD, ego=ob.EGO, suite_descriptor=ob.DESCRIPTOR, panel=ob.PANEL,
              order=ob.ORDER)
NAMES = {field: tuple(c.name for c in table) for field, table in TABLES.items()} | dict(
    contact_mask=('',), squad_mask=('',), comm=('',), terrain=('ground', 'hidden'))
EVERYTHING = ob.layout(EnvConfig(**ON))


# ---- a hand that sets up moments

@cache
def arena(config):
    return make('mech', worlds=1, autoreset=False, **json.loads(config))


def stage(rows=(), then=None, **more):
    "A world on a bare field, all parked at its edges but for `rows`, as everybody sees it; `then` may meddle"
    rows, game = dict(rows), {k: more.pop(k) for k in tuple(more) if k in ('zone_x', 'zone_y', 'zone_r')
                              or k.startswith(('score', 'living')) or k in ('holder', 'decision', 'smoke')}
    config = dict(world=dict(size=100, pool=1, biomes=[]), pack=PACK) | ON | more
    world = arena(json.dumps(config))
    world.reset(seed=1)
    g, n = world.game_arrays, world.config.team_size
    m, side, place = g.mech[0], np.repeat([1, -1], n), np.arange(2*n) % n
    m['x'], m['y'], m['hx'], m['hy'] = -44*side, 8*place - 40, side, 0
    m['x'][ME] = m['y'][ME] = 0
    for name in ('known', 'tracked'): m[name] = 0
    for row, fields in rows.items():
        for name, value in fields.items(): m[name][row] = value
    assert (np.abs((m['x'], m['y'])) < 50).all(), 'stage: a mech stands off the map'
    for name, value in game.items(): g.world[name] = value
    if then: then(g)
    view(g, 0, 0, 1)
    return world


def read(world, field, column='', row=ME, slot=0):
    "One number of an observation, by name"
    f = world.spec.field(field)
    if field == 'terrain': at = f.offset + NAMES[field].index(column)*ob.PATCH**2 + slot
    else: at = f.offset + slot*len(NAMES[field]) + NAMES[field].index(column)
    return float(world.obs[0, row, at])


def at(x, y, **fields): return dict(x=x, y=y) | fields


def bit(j): return np.uint64(1) << np.uint64(j)


def smoke(x, y):
    def raise_(g):
        g.cloud[0, 0] = (x, y, 1, 5)
        g.world['smoke'] = 1
    return raise_


# ---- every column, by name

def foe(**fields): return dict(rows={FOE: at(12, -5) | fields})
def near(**fields): return foe(x=6, y=0, **fields)
def mine(**fields): return dict(rows={ME: fields})
def mate(**fields): return dict(rows={HEAVY: at(12, -5) | fields})
def first(row): return dict(rows={N + row: at(6, 0)})


def lost(g):
    "It was known a moment ago, and is out of reach now"
    g.mech['known'][0, ME] = bit(FOE)


def homing(g):
    g.shot['state'][0, N, 0], g.shot['target'][0, N, 0], g.shot['weapon'][0, N, 0] = FLYING, ME, 2
    g.mech['flying'][0, N] = 1


def wall(g):
    "A block five high, four voxels ahead of who stands at 1, 1"
    g.relief[0, 27, 25] = 5 << 40 | 0b11111


def ordered(order):
    def say(g): g.option[0, LEADER] = (0, 0, order, FOE if order else -1)
    return say


def said(g): g.comm[0, LIGHT, 3] = .5


JAM = 1 - hypot(10, .6)/50                      # of a scout ten voxels off, whose middle is lower
NO_MATES = {row: dict(alive=0) for row in (HEAVY, LEADER, LIGHT, SCOUT)}
FAR = dict(rows=NO_MATES | {ME: at(-44, 0), FOE: at(44, 0)}, then=lost, observation_mode='partial')
JAMMED = dict(rows={N + SCOUT: at(0, 10, ecm=1)})
CELL = dict(slot=7*11 + 5)                      # four voxels ahead, none to the side
ZONE = dict(zone_x=12, zone_y=-5, zone_r=3)
CASES = [
    ('contacts', 'ahead', foe(), 12/33), ('contacts', 'right', foe(), 5/33),
    ('contacts', 'up', foe(x=3, y=0, z=4), 4/25),
    ('contacts', 'v_ahead', dict(rows={FOE: at(6, 0, vx=4), ME: dict(vx=1)}), .3),
    ('contacts', 'v_right', foe(vy=-2), .2), ('contacts', 'v_up', foe(vz=1.5), .15),
    ('contacts', 'yaw_cos', foe(hx=.6, hy=.8), .6), ('contacts', 'yaw_sin', foe(hx=.6, hy=.8), -.8),
    ('contacts', 'hp', foe(hp=40), .5), ('contacts', 'heat', foe(heat=20), .25),
    ('contacts', 'stability', foe(stability=30), .3),
    ('contacts', 'fallen', foe(down=2), 1), ('contacts', 'fallen', foe(), 0),
    ('contacts', 'legged', foe(leg=0), 1), ('contacts', 'legged', foe(), 0),
    ('contacts', 'hostile', foe(), 1), ('contacts', 'hostile', dict(slot=N), -1),
    ('contacts', 'scout', first(SCOUT), 1), ('contacts', 'light', first(LIGHT), 1),
    ('contacts', 'medium', first(ME), 1), ('contacts', 'heavy', first(HEAVY), 1),
    ('contacts', 'heavy', first(LIGHT), 0),
    ('contacts', 'painted', foe(painted=3), 1), ('contacts', 'painted', foe(), 0),
    ('contacts', 'focus', dict(rows={FOE: at(6, 0), ME: dict(focus=FOE)}), 1),
    ('contacts', 'focus', dict(rows={FOE: at(6, 0), ME: dict(focus=N)}), 0),
    ('contacts', 'in_sight', foe(), 1), ('contacts', 'in_sight', foe(x=20, y=0) | dict(then=smoke(10, 0)), 0),
    ('contacts', 'age', FAR, .05), ('contacts', 'age', foe(), 0),
    ('contacts', 'closing', near(vx=-4), .4),
    ('contacts', 'can_hit', near(), 1), ('contacts', 'can_hit', foe(x=-6, y=0), 0),
    ('contacts', 'can_hit', foe(x=20, y=0), 0),
    ('contacts', 'nose_on_me', near(), 1), ('contacts', 'nose_on_me', near(hx=1), -1),
    ('contact_mask', '', dict(slot=8), 0), ('contact_mask', '', dict(slot=9), 1),
    ('squad', 'ahead', mate(), 12/33), ('squad', 'right', mate(), 5/33),
    ('squad', 'up', mate(x=3, y=0, z=4), 4/25), ('squad', 'hp', mate(hp=50), .25),
    ('squad', 'heat', mate(heat=13), .1), ('squad', 'stability', mate(stability=30), .3),
    ('squad', 'fallen', mate(down=1), 1), ('squad', 'fallen', mate(), 0),
    ('squad', 'kind', {}, 1), ('squad', 'kind', dict(slot=1), 2/3), ('squad', 'kind', dict(slot=3), 0),
    ('squad', 'engaged', mate(took=1), 1), ('squad', 'engaged', mate(dealt=1), 1),
    ('squad', 'engaged', {}, 0),
    ('squad', 'zone', mate(x=15, y=0) | dict(zone_x=0, zone_y=0, zone_r=5), 10/30),
    ('squad_mask', '', dict(slot=3), 0), ('squad_mask', '', dict(slot=4), 1),
    ('ego', 'hp', mine(hp=75), .5), ('ego', 'legs', mine(leg=15), .2), ('ego', 'heat', mine(heat=120), 1.2),
    ('ego', 'suppressed', mine(suppressed=1), 1), ('ego', 'stability', mine(stability=40), .4),
    ('ego', 'fallen', mine(down=1), 1), ('ego', 'shut', mine(shut=1), 1), ('ego', 'legged', mine(leg=0), 1),
    ('ego', 'v_ahead', mine(hx=0, hy=1, vy=3), .3), ('ego', 'v_right', mine(hx=0, hy=1, vx=2), .2),
    ('ego', 'v_up', mine(vz=-1), -.1), ('ego', 'height', mine(z=4, grounded=0), .5),
    ('ego', 'yaw_cos', mine(hx=.6, hy=.8), .6), ('ego', 'yaw_sin', mine(hx=.6, hy=.8), .8),
    ('ego', 'yaw_cos', dict(rows={N: dict(hx=-1, hy=0)}, row=N), 1),
    ('ego', 'cool_primary', mine(cool0=.3), .5), ('ego', 'cool_secondary', mine(cool1=.05), .25),
    ('ego', 'cool_tertiary', mine(cool2=.1), .1), ('ego', 'cool_special', mine(cool3=1), .2),
    ('ego', 'cool_secondary', dict(rows={SCOUT: dict(cool1=1)}, row=SCOUT), 0),
    ('ego', 'painted', mine(painted=2), 1),
    ('ego', 'targeted', first(HEAVY), 1), ('ego', 'targeted', dict(rows={N: at(6, 0, hx=1)}), 0),
    ('ego', 'under_fire', mine(took=5), 1),
    ('ego', 'fire_ahead', mine(took=5, from_x=3, from_y=-4), .6),
    ('ego', 'fire_right', mine(took=5, from_x=3, from_y=-4), .8),
    ('ego', 'missile', dict(then=homing), 1), ('ego', 'missile', {}, 0),
    ('ego', 'sensor_quality', {}, 1/1.5), ('ego', 'sensor_quality', JAMMED, (1 - .85*JAM)/1.5),
    ('ego', 'jam', JAMMED, JAM),
    ('ego', 'ecm', dict(rows={SCOUT: dict(ecm=1)}, row=SCOUT), 1),
    ('ego', 'eccm', dict(rows={SCOUT: dict(ecm=2)}, row=SCOUT), 1),
    ('ego', 'in_zone', mine(in_zone=1), 1), ('ego', 'zone_ahead', ZONE, 12/33),
    ('ego', 'zone_right', ZONE, 5/33), ('ego', 'zone', ZONE, 10/30),
    ('ego', 'zone', ZONE | dict(zone_r=18), -5/25),
    ('suite_descriptor', 'recon', dict(row=SCOUT), 1), ('suite_descriptor', 'skirmish', dict(row=LIGHT), 1),
    ('suite_descriptor', 'assault', {}, 1), ('suite_descriptor', 'fire_support', dict(row=HEAVY), 1),
    ('suite_descriptor', 'command', dict(row=LEADER), 1), ('suite_descriptor', 'command', {}, 0),
    ('suite_descriptor', 'contact_slots', {}, 8/20), ('suite_descriptor', 'range', dict(row=SCOUT), .75),
    ('suite_descriptor', 'fidelity', {}, .7), ('suite_descriptor', 'squad_slots', {}, 9/12),
    ('suite_descriptor', 'squad_detail', {}, .5), ('suite_descriptor', 'intel_slots', {}, 6/20),
    ('suite_descriptor', 'reports', dict(row=SCOUT), 1), ('suite_descriptor', 'reports', {}, 0),
    ('suite_descriptor', 'orders', dict(row=LEADER), 1), ('suite_descriptor', 'orders', {}, 0),
    ('suite_descriptor', 'link', {}, 1), ('suite_descriptor', 'link', JAMMED, 0),
    ('panel', 'radius', ZONE, .3), ('panel', 'control', dict(holder=0), 1),
    ('panel', 'control', dict(holder=1), -1), ('panel', 'control', dict(holder=0, row=N), -1),
    ('panel', 'score', dict(score0=15), .25), ('panel', 'enemy_score', dict(score1=30), .5),
    ('panel', 'time_left', dict(decision=120), .75), ('panel', 'living', dict(living0=3), .6),
    ('panel', 'living_enemies', foe(alive=0), .8), ('panel', 'alert', {}, 1),
    ('panel', 'alert', dict(rows={N + k: dict(alive=0) for k in range(N)}), 0),
    ('terrain', 'ground', mine(x=1, y=1) | CELL | dict(then=wall), 5/8),
    ('terrain', 'ground', mine(x=1, y=1, z=2) | CELL | dict(then=wall), 3/8),
    ('terrain', 'hidden', mine(x=1, y=1) | CELL | dict(then=wall), 1),
    ('terrain', 'hidden', mine(x=1, y=1, z=3) | CELL | dict(then=wall), .5), ('terrain', 'hidden', CELL, 0),
    ('comm', '', dict(slot=8*LIGHT + 3, then=said), .5), ('comm', '', dict(slot=8*LIGHT + 2, then=said), 0),
    *(('order', name, foe() | dict(then=ordered(k)), 1) for k, name in enumerate(ORDERS)),
    *(('order', name, foe() | dict(then=ordered((k + 1) % 6)), 0) for k, name in enumerate(ORDERS)),
    ('order', 'ahead', foe() | dict(then=ordered(1)), 12/33),
    ('order', 'ahead', foe() | dict(then=ordered(0)), 0),
    ('order', 'right', foe() | dict(then=ordered(3)), 5/33),
    ('order', 'up', foe(x=3, y=0, z=4) | dict(then=ordered(1)), 4/25)]


@pytest.mark.parametrize('field, column, situation, expected', CASES,
                         ids=lambda v: v if isinstance(v, str) else '')
def test_a_column_by_name(field, column, situation, expected):
    where = {k: v for k, v in situation.items() if k in ('row', 'slot')}
    world = stage(**{k: v for k, v in situation.items() if k not in where})
    assert read(world, field, column, **where) == pytest.approx(expected, abs=2e-6)


def test_every_column_is_read_by_name():
    "A new column has no situation above, and fails here"
    assert {f.name for f in EVERYTHING} == set(NAMES)
    assert {(f, c) for f, columns in NAMES.items() for c in columns} == {case[:2] for case in CASES}
    assert ob.layout(EnvConfig()) == ob.LAYOUT and EVERYTHING[:len(ob.LAYOUT)] == ob.LAYOUT


def test_the_dead_see_the_panel_alone():
    world = stage({ME: dict(alive=0), FOE: at(6, 0)}, then=lambda g: (ordered(1)(g), said(g)))
    row = world.obs[0, ME].copy()
    seen = [world.spec.field(n) for n in ('contact_mask', 'squad_mask', 'panel')]
    for f in seen[:2]: assert (row[f.columns] == 1).all()
    assert row[seen[2].columns].any()
    for f in seen: row[f.columns] = 0
    assert not row.any() and (world.game_arrays.slots[0, ME] == -1).all()


# ---- frames and slots

def scatter(world, seed, dead=.2):
    "Everybody somewhere, at any state; nobody is remembered"
    rng, g = np.random.default_rng(seed), world.game_arrays
    m, edge = g.mech, g.world['size'][:, None]/2 - 3
    u = lambda low, high: rng.uniform(low, high, m.shape).astype(np.float32)
    turn, c = u(0, 2*np.pi), g.classes[m['kind']]
    m['x'], m['y'], m['z'] = u(-1, 1)*edge, u(-1, 1)*edge, u(0, 3)
    m['hx'], m['hy'], m['vx'], m['vy'], m['vz'] = np.cos(turn), np.sin(turn), u(-7, 7), u(-7, 7), u(-2, 2)
    m['hp'], m['heat'], m['stability'] = c['hp']*u(.1, 1), c['capacity']*u(0, 1.4), u(0, 100)
    m['took'], m['from_x'], m['from_y'], m['cool0'] = np.maximum(u(-9, 9), 0), u(-9, 9), u(-9, 9), u(0, .5)
    m['painted'], m['down'] = np.maximum(u(-9, 5), 0), np.maximum(u(-9, 3), 0)
    m['alive'], m['ecm'] = rng.random(m.shape) >= dead, rng.integers(0, 3, m.shape)*(m['kind'] == 0)
    for name in ('known', 'tracked'): m[name] = 0
    return rng


def views(world):
    for w in range(world.spec.num_worlds): view(world.game_arrays, w, 0, 1)


@pytest.mark.parametrize('seed', range(4))
def test_a_turn_of_the_world_turns_nothing_that_is_seen(seed):
    "A quarter turn of mechs, zone and ground together leaves every number but the compass"
    world = make('mech', worlds=1, autoreset=False, world=dict(size=60, pool=1, biomes=()), **ON)
    g = world.game_arrays
    rng = scatter(world, seed)
    S = g.relief.shape[1] - 1
    g.relief[0, :S] = rng.integers(0, 12, (S, S)).astype(np.uint64) << np.uint64(40) | rng.integers(
        0, 2**12, (S, S)).astype(np.uint64)
    g.world['zone_x'], g.world['zone_y'] = 5, -3
    g.comm[:], g.option['order'], g.option['ordered'] = .3, 1, 12
    views(world); before = world.obs.copy()
    vectors = [(f'{v}x', f'{v}y', g.mech) for v in ('', 'v', 'h', 'from_')]
    for a, b, table in (*vectors, ('zone_x', 'zone_y', g.world)):
        table[a], table[b] = -table[b].copy(), table[a].copy()
    g.relief[0, :S] = np.flip(g.relief[0, :S].T, 0)
    views(world)
    compass = world.spec.field('ego').offset + np.array([ob.Ego.yaw_cos, ob.Ego.yaw_sin])
    same = world.obs == before
    assert (world.obs[..., compass] != before[..., compass])[g.mech['alive'] != 0].all()
    same[..., compass] = True
    assert same.all(), np.argwhere(~same)[:5]


def keys(g, i, sort):
    "By what contacts of mech `i` come, `[N]`"
    m = g.mech[0]
    far = sum((m[c] - m[c][i])**2 for c in 'xyz').astype(float)
    step = [0*far, 3. - m['kind'], np.floor(10*m['hp']/g.classes['hp'][m['kind']])][sort]
    return list(zip(m['team'] == m['team'][i], step, far.round(3)))


@pytest.mark.parametrize('mode', ['full', 'partial'])
@pytest.mark.parametrize('sort', range(3))
@pytest.mark.parametrize('hostile_only', [0, 1])
def test_slots_are_filled_in_the_chosen_order(mode, sort, hostile_only):
    world = make('mech', worlds=1, autoreset=False, observation_mode=mode, world=dict(size=60, pool=2), **ON)
    g, fields = world.game_arrays, [world.spec.field(n) for n in ('contacts', 'contact_mask', 'squad_mask')]
    mates = 0
    for seed in range(4):
        scatter(world, seed)
        g.option['sort'], g.option['hostile_only'] = sort, hostile_only
        views(world)
        m = g.mech[0]
        for i in np.flatnonzero(m['alive']):
            rows = g.slots[0, i][g.slots[0, i] >= 0]
            key, own = keys(g, i, sort), m['team'][rows] == m['team'][i]
            order = [key[j] for j in rows]
            assert order == sorted(order) and len(set(rows.tolist())) == len(rows) and i not in rows
            contacts, empty, no_mate = (world.obs[0, i, f.columns] for f in fields)
            assert (empty == (np.arange(20) >= len(rows))).all()
            hostile = contacts.reshape(20, -1)[:, ob.Contact.hostile]
            assert (hostile[:len(rows)] == np.where(own, -1, 1)).all() and not hostile[len(rows):].any()
            living = ((m['team'] == m['team'][i]) & (m['alive'] != 0)).sum() - 1
            squad = g.suites['squad'][m['suite'][i]] if mode == 'partial' else 12
            assert (no_mate == (np.arange(12) >= min(living, squad))).all()
            room = g.suites['contacts'][m['suite'][i]] if mode == 'partial' else 20
            if mode == 'full':
                others = (m['alive'] != 0).sum() - 1 - hostile_only*living
                assert len(rows) == min(room, others)
            assert len(rows) <= room and not (hostile_only and own.any())
            mates += own.sum()
    assert hostile_only or mates > 0


def test_sticky_slots_keep_their_contact():
    world = make('mech', worlds=2, autoreset=False, observation_mode='partial', sticky_slots=True,
                 world=dict(size=48, pool=2))
    world.control[:] = 1 + world.spec.scripts.index('heuristic')
    g, kept, holes = world.game_arrays, 0, 0
    for _ in range(120):
        before = g.slots.copy()
        world.step()
        m = g.mech
        for w, i in zip(*np.nonzero(m['alive'])):
            have = m['known'][w, i] | m['tracked'][w, i]
            now, mask = g.slots[w, i], world.obs[w, i, world.spec.field('contact_mask').columns]
            assert ((now < 0) == (mask == 1)).all()
            for k in np.flatnonzero(before[w, i] >= 0):
                j = before[w, i, k]
                if m['team'][w, j] == m['team'][w, i]: continue
                stays = bool(have & bit(j))
                assert (now[k] == j) == stays
                kept += stays
            top = g.suites['contacts'][m['suite'][w, i]]
            foes = bin(int(have)).count('1')
            shown = (now >= 0) & (m['team'][w, now] != m['team'][w, i])
            rumours = bin(int(m['known'][w, i] & ~m['direct'][w, i])).count('1')
            assert shown.sum() >= min(top, foes - rumours)     # no mate stands in an enemy's way
            holes += (np.diff((now < 0).astype(int)) < 0).any()
    assert kept > 1000 and holes > 10


# ---- the fog

def public(world):
    "Columns through which a hidden enemy may be felt, `bool [D]`"
    out = np.zeros(world.spec.obs_dim, bool)
    for f in world.spec.obs:
        for name in ob.PUBLIC.get(f.name, ()):
            assert name in NAMES[f.name]
            out[f.offset + NAMES[f.name].index(name):f.offset + f.size:len(NAMES[f.name])] = True
    return out


SEEN = ('world', 'mech', 'track', 'obs', 'order', 'told', 'slots', 'between', 'action_mask')  # `view` writes


def seen_again(g, w, change=None):
    "A copy of the game at the same moment, with a change, as it is seen"
    g = g._replace(**{name: getattr(g, name).copy() for name in SEEN})
    if change: change(g.mech[w])
    view(g, w, 0, 1)
    return g


def meddled(rng, j):
    "Something else about mech `j` that nobody should know who does not see it"
    kind, u = rng.integers(7), rng.uniform(-1, 1, 3).astype(np.float32)
    turn = rng.uniform(0, 2*np.pi)
    def change(m):
        if kind == 0:
            for name, by in zip('xy', 3*u): m[name][j] = np.clip(m[name][j] + by, -49, 49)
        if kind == 1: m['hx'][j], m['hy'][j] = np.cos(turn), np.sin(turn)
        if kind == 2: m['heat'][j] = 30*abs(u[0])
        if kind == 3: m['hp'][j], m['leg'][j], m['stability'][j] = 1 + 20*abs(u)
        if kind == 4: m['cool0'][j], m['cool1'][j], m['cool2'][j] = abs(u)
        if kind == 5: m['vx'][j], m['vy'][j], m['vz'][j] = 5*u
        if kind == 6: m['alive'][j], m['hp'][j] = 0, 0
    return kind, change


def test_nothing_hidden_shows():
    "Whatever changes about an enemy of whom a mech does not know changes nothing it sees but what is public"
    world = make('mech', worlds=3, seed=8, autoreset=False, observation_mode='partial',
                 world=dict(size=100, pool=3), **ON)
    g, rng, hidden, tracks, leaks = world.game_arrays, np.random.default_rng(1), np.zeros(7, int), 0, 0
    felt, known, moved = public(world), 0, 0
    world.control[:, ::2] = 1 + world.spec.scripts.index('heuristic')
    for t in range(100):
        action = rng.uniform(-1, 1, world.action.shape).astype(np.float32)
        action[..., 0], action[..., 9:] = abs(action[..., 0]), 6*action[..., 9:]
        world.step(action)
        if t % 3: continue
        for w in range(3):
            if g.world['over'][w]: continue
            base = seen_again(g, w)
            for i in np.flatnonzero(base.mech['alive'][w]):
                m = base.mech[w, i]
                j = int(rng.integers(10)) + 10*(1 - m['team'])
                if not base.mech['alive'][w, j]: continue
                kind, change = meddled(rng, j)
                other = seen_again(g, w, change)
                n = other.mech[w, i]
                differs = base.obs[w, i] != other.obs[w, i]
                if m['known'] & bit(j):
                    shown = j in base.slots[w, i] and kind == 0
                    known += shown; moved += shown and differs[~felt].any()
                    continue
                same = (m['known'], m['tracked']) == (n['known'], n['tracked'])
                assert same or kind in (0, 6)             # it walks into sight, or its jammer falls silent
                if not same: continue
                hidden[kind] += 1; tracks += bool(m['tracked'] & bit(j))
                leaks += differs[~felt].any()
                leaks += (base.slots[w, i] != other.slots[w, i]).any()
                leaks += (base.action_mask[w, i] != other.action_mask[w, i]).any()
    assert hidden.min() > 20 and tracks > 10 and leaks == 0, (hidden, tracks, leaks)
    assert known > 50 and moved > .95*known, (known, moved)   # the same eyes find a leak where there is one


def test_a_hidden_jammer_is_felt_where_the_page_says():
    "An enemy scout behind smoke starts to jam: what `PUBLIC` says of jamming moves, nothing else"
    def moment(ecm):
        def then(g):
            smoke(0, 0)(g); said(g); ordered(1)(g)
            g.mech['ecm'][0, N + SCOUT] = ecm
        rows = {ME: at(-44, 0, alive=0), HEAVY: at(-10, 0), LEADER: at(-30, 3), LIGHT: at(-30, 0),
                SCOUT: at(-40, 0), N + SCOUT: at(10, 0), FOE: at(7, -18, painted=5)}
        rows |= {N + k: dict(alive=0) for k in (HEAVY, LEADER, ME)}     # or they were known by reports
        world = stage(rows, then, observation_mode='partial')
        m = world.game_arrays.mech[0]
        assert not (m['known'][HEAVY] | m['tracked'][HEAVY]) & bit(N + SCOUT)
        assert m['known'][HEAVY] & bit(FOE)
        return world, world.obs[0, HEAVY].copy()
    world, calm = moment(0)
    _, jammed = moment(1)
    names = {(f.name, NAMES[f.name][k % len(NAMES[f.name])]) for f in world.spec.obs if f.name != 'terrain'
             for k in range(f.size) if calm[f.offset + k] != jammed[f.offset + k]}
    assert names <= {(f, c) for f, columns in ob.PUBLIC.items() for c in columns}
    assert names >= {('ego', 'jam'), ('ego', 'sensor_quality'), ('suite_descriptor', 'link'), ('comm', ''),
                     ('order', 'focus'), ('contacts', 'can_hit')}


def test_the_panel_knows_what_a_mate_sees():
    "A light that does not report sees an enemy: the others know that somebody is seen, and not who"
    def moment(x, y=40):
        rows = {ME: at(-44, 40), HEAVY: at(-44, -40), LIGHT: at(-20, 40)}
        rows |= {row: dict(alive=0) for row in (LEADER, SCOUT, *range(N, 2*N))} | {FOE: at(x, y, alive=1)}
        return stage(rows, observation_mode='partial')
    seen, alone = moment(30), moment(30).obs.copy()
    known = seen.game_arrays.mech['known'][0]
    assert not known[ME] & bit(FOE) and known[LIGHT] & bit(FOE)
    assert [read(seen, 'panel', name) for name in ('alert', 'living_enemies')] == pytest.approx([1, .2])
    gone = moment(48, -48)   # nobody sees that far
    changed = np.flatnonzero(gone.obs[0, ME] != alone[0, ME])
    first = gone.spec.field('panel').offset
    assert set(changed) == {first + ob.Panel.alert, first + ob.Panel.living_enemies}


# ---- what optional blocks choose and say

def columns(world):
    "First action column, and first mask column, of each block"
    blocks = world.spec.action
    masks = np.cumsum([0] + [b.masks for b in blocks])
    return {b.name: b.column for b in blocks}, {b.name: k for b, k in zip(blocks, masks)}


def act(world, choices):
    "One decision in which `choices[row]` gives numbers by block or core name; others do nothing"
    first, _ = columns(world)
    core = {a.name.lower(): int(a) for a in ActionIndex}
    world.action[:] = 0
    world.action[..., 4:9] = -1
    for row, numbers in choices.items():
        for name, value in numbers.items(): world.action[0, row, core.get(name, first.get(name))] = value
    world.step()
    return world


def slot_of(world, row, other):
    "The choice that means `other`"
    return 1 + world.game_arrays.slots[0, row].tolist().index(other)


def test_the_default_is_the_core():
    assert action_blocks(EnvConfig()) == ACTION
    both = EnvConfig(enable_comm=True, comm_dim=3, enable_orders=True)
    assert [(b.name, b.column, b.columns, b.masks) for b in action_blocks(both)[len(ACTION):]] == [
        ('comm', 9, 3, 0), ('order', 12, 1, 6), ('order_target', 13, 1, 21)]
    names = [b.name for b in action_blocks(EnvConfig(**ON))[len(ACTION):]]
    assert names == ['target', 'sort', 'hostile_only', 'comm', 'order', 'order_target']
    with pytest.raises(ValueError, match='comm_dim = 0'): EnvConfig(comm_dim=0)


def test_masks_of_choices():
    world = make('mech', worlds=1, autoreset=False, observation_mode='partial',
                 world=dict(size=60, pool=2), **ON)
    g, (_, first), leaders = world.game_arrays, columns(world), 0
    part = lambda name, size: world.action_mask[0, :, first[name]:first[name] + size]
    for seed in range(3):
        scatter(world, seed); views(world)
        m, slots = g.mech[0], g.slots[0].astype(int)
        alive, leads = m['alive'] != 0, (m['alive'] != 0) & (m['place'] == 1)
        hostile = (slots >= 0) & (m['team'][slots] != m['team'][:, None])
        assert (part('target', 21) == np.c_[np.ones(20, bool), hostile]).all()
        assert (part('order_target', 21) == np.c_[np.ones(20, bool), (slots >= 0) & leads[:, None]]).all()
        assert (part('order', 6) == np.c_[np.ones(20, bool), np.repeat(leads[:, None], 5, 1)]).all()
        assert (part('sort', 3) == np.c_[np.ones(20, bool), np.repeat(alive[:, None], 2, 1)]).all()
        assert (part('hostile_only', 1)[:, 0] == alive).all()
        leaders += leads.sum()
    assert leaders > 0


def wishes(world):
    "What came of the choices"
    g = world.game_arrays
    return g.mech['focus'][0, ME], *(g.option[0, LEADER][name] for name in ('order', 'ordered', 'sort'))


@pytest.mark.parametrize('wrong', [np.nan, -1, -3., -1e9, -np.inf, -.4])
def test_a_number_that_is_no_choice_counts_as_none(wrong):
    world = stage({N + HEAVY: at(6, 0)})
    act(world, {ME: dict(target=wrong), LEADER: dict(order=wrong, order_target=1, sort=wrong)})
    assert wishes(world) == (-1, 0, -1, 0) and np.isfinite(world.obs).all()
    act(world, {LEADER: dict(order=3, order_target=wrong, sort=2)})
    assert wishes(world) == (-1, 3, -1, 2)


@pytest.mark.parametrize('large', [21, 1e9, np.inf])
def test_a_number_beyond_the_last_choice_counts_as_the_last(large):
    world = stage({N + HEAVY: at(6, 0)})
    act(world, {ME: dict(target=large), LEADER: dict(order=large, order_target=large, sort=large)})
    assert wishes(world) == (-1, 5, -1, 2) and np.isfinite(world.obs).all()   # the last slots are empty


def test_a_masked_choice_counts_as_none():
    world = stage({N + HEAVY: at(6, 0)})
    mate, empty, enemy = slot_of(world, ME, HEAVY), 20, slot_of(world, ME, N + HEAVY)
    for choice, focus in ((mate, -1), (empty, -1), (enemy, N + HEAVY)):
        act(world, {ME: dict(target=choice, order=2, order_target=choice),
                    LEADER: dict(order=2, order_target=empty)})
        assert wishes(world) == (focus, 2, -1, 0) and world.game_arrays.option['order'][0, ME] == 0


@pytest.mark.parametrize('chosen', [None, N + HEAVY, N + LIGHT])
def test_a_chosen_target_goes_before_the_nearest_to_the_nose(chosen):
    world = stage({N + HEAVY: at(6, 0), N + LIGHT: at(5, 4)})
    choice = 0 if chosen is None else slot_of(world, ME, chosen) + .3       # rounded
    before = world.game_arrays.mech['hp'][0].copy()
    act(world, {ME: dict(primary=1, target=choice)})
    m = world.game_arrays.mech[0]
    hurt = np.flatnonzero((m['hp'] < before) & (m['took'] > 0)).tolist()
    assert hurt == [chosen or N + HEAVY] and m['focus'][ME] == (-1 if chosen is None else chosen)
    focus = [read(world, 'contacts', 'focus', slot=slot_of(world, ME, j) - 1) for j in (N + HEAVY, N + LIGHT)]
    assert focus == [chosen == N + HEAVY, chosen == N + LIGHT]


def test_sorting_shows_in_the_next_observation():
    world = stage({N + HEAVY: at(30, 0), N + LIGHT: at(6, 0)})
    g = world.game_arrays
    assert g.slots[0, ME, 0] == N + LIGHT
    act(world, {ME: dict(sort=1, hostile_only=1)})
    assert g.slots[0, ME, 0] == N + HEAVY and (g.slots[0, ME] >= 0).sum() == N and g.slots[0, HEAVY, N] >= 0
    act(world, {})
    assert g.slots[0, ME, 0] == N + LIGHT and (g.slots[0, ME] >= 0).sum() == 2*N - 1


def board(world, row): return world.obs[0, row, world.spec.field('comm').columns].reshape(N, -1)


def test_a_message_is_heard_once_by_the_own_pack():
    world = stage(packs_per_team=2)
    first, n = columns(world)[0]['comm'], 2*N
    act(world, {})
    world.action[0, LIGHT, first:first + 8] = [.5, -.25, 7, -7, np.nan, np.inf, 0, 1]
    world.step()
    heard = [.5, -.25, 1, -1, 0, 1, 0, 1]
    for row in range(N):
        assert (board(world, row)[LIGHT] == heard).all() and not np.delete(board(world, row), LIGHT, 0).any()
    for row in range(N, 2*n): assert not board(world, row).any()
    act(world, {})
    assert not board(world, ME).any()


def test_jamming_cuts_what_is_said():
    "An enemy scout presses its jammer near us; we hear only ourselves, the other pack goes on talking"
    rows = {row: at(10*row, 0) for row in range(N)} | {N + SCOUT: at(20, 5)}
    for jams in (0, 1):
        world = stage(rows)
        target = slot_of(world, LEADER, FOE)
        act(world, {LIGHT: dict(comm=.5), LEADER: dict(order=2, order_target=target),
                    N + SCOUT: dict(secondary=2*jams - 1), N + ME: dict(comm=.25)})
        assert [board(world, row)[LIGHT, 0] for row in (ME, LIGHT)] == [.5*(not jams), .5]
        orders = [read(world, 'order', 'advance', row) for row in (ME, LEADER, N + ME)]
        assert orders == [not jams, 1, 0] and board(world, N + HEAVY)[ME, 0] == .25
        assert (read(world, 'order', 'ahead', ME) != 0) == (not jams)


def test_orders_come_from_the_leader():
    n = 2*N
    foe_row = n + LIGHT
    world = stage({foe_row: at(12, -5)}, packs_per_team=2)
    everybody = {row: dict(order=3, order_target=slot_of(world, row, foe_row)) for row in range(n)}
    everybody[N + LEADER]['order'] = 4
    act(world, everybody)
    option = world.game_arrays.option[0]
    assert np.flatnonzero(option['order']).tolist() == [LEADER, N + LEADER]
    assert option['ordered'][[LEADER, ME]].tolist() == [foe_row, -1]
    for row in range(n):
        assert [read(world, 'order', name, row) for name in ORDERS] == [name == ('hold', 'rally')[row >= N]
                                                                        for name in ORDERS]
    m = world.game_arrays.mech
    m['alive'][0, LEADER] = 0
    views(world)
    assert not world.obs[0, ME, world.spec.field('order').columns].any()
    assert read(world, 'order', 'rally', N + ME) == 1


def test_an_order_points_where_the_leader_thinks():
    "To its own row the leader tells what its contact says, blur and track and all; of the lost, nothing"
    rows = {LEADER: at(0, 10), SCOUT: dict(alive=0), FOE: at(20, 10)}
    world = stage(rows, then=ordered(1), observation_mode='partial')
    k = slot_of(world, LEADER, FOE) - 1
    for name in ('ahead', 'right', 'up'):
        assert read(world, 'order', name, LEADER) == read(world, 'contacts', name, LEADER, k) != 0
    here = {r: tuple(read(world, 'order', c, r) for c in ('ahead', 'right')) for r in (LEADER, ME)}
    place = {}
    for r, (ahead, right) in here.items():
        far = 20/(1 - hypot(ahead, right))
        place[r] = (ahead*far, (10 if r == LEADER else 0) - right*far)
    assert place[ME] == pytest.approx(place[LEADER], abs=.1)
    assert place[ME] != pytest.approx((20, 10), abs=1e-3)
    gone = NO_MATES | {LEADER: at(-44, 0), FOE: at(44, 0), ME: at(-44, 9)}
    def remembered(g): ordered(1)(g); g.mech['known'][0, LEADER] = bit(FOE)
    assert read(stage(gone, remembered, observation_mode='partial'), 'order', 'ahead') > .5
    assert read(stage(gone, ordered(1), observation_mode='partial'), 'order', 'ahead') == 0
    assert read(stage(gone, ordered(1), observation_mode='partial'), 'order', 'focus') == 1


def test_without_a_medium_nobody_orders():
    world = make('mech', worlds=1, pack=(2, 0, 1, 0), world=dict(size=60, pool=1, biomes=()), **ON)
    first, masks = columns(world)
    world.action[..., first['order']] = 2
    world.step()
    assert not world.obs[..., world.spec.field('order').columns].any()
    assert not world.game_arrays.option['order'].any()
    assert not world.action_mask[..., masks['order'] + 1:masks['order'] + 6].any()


@pytest.mark.parametrize('ewar', [True, False])
def test_jammers_can_be_turned_off(ewar):
    world = stage(enable_ewar=ewar)
    assert world.action_mask[0, SCOUT, 2:4].tolist() == [ewar, ewar] and world.action_mask[0, SCOUT, 4]
    for button, device in (('secondary', 1), ('tertiary', 2)):
        act(world, {SCOUT: {button: 1}})
        assert world.game_arrays.mech['ecm'][0, SCOUT] == device*ewar


# ---- all of it together

ALL = ON | dict(observation_mode='partial', sticky_slots=True, world=dict(size=60, pool=4), pack=(1, 2, 1, 1),
                packs_per_team=2)


def wild(rng, world):
    "Numbers that a policy might draw, choices in and out of range among them"
    a = rng.uniform(-1, 1, world.action.shape).astype(np.float32)
    a[..., 0] = abs(a[..., 0])
    for b in world.spec.action:
        if b.kind == 'categorical': a[..., b.column] = rng.integers(-1, b.choices + 1, a.shape[:2])
    return a


@pytest.mark.parametrize('mode', ['full', 'partial'])
def test_a_saved_battle_goes_on_elsewhere(mode):
    config = ALL | dict(observation_mode=mode)
    a, b = make('mech', worlds=3, seed=1, **config), make('mech', worlds=3, seed=2, **config)
    rng = np.random.default_rng(0)
    for t in range(90):
        if t % 15 == 7: b.load_state(a.state())
        action = wild(rng, a)
        a.step(action)
        if t >= 7:
            b.step(action)
            assert (a.digest() == b.digest()).all() and (a.obs == b.obs).all(), t
            assert (a.action_mask == b.action_mask).all()


@pytest.mark.parametrize('name, value', [('sort', 3), ('hostile_only', -1), ('order', 6), ('ordered', 20),
                                         ('slots', 20), ('slots', -2), ('comm', np.nan), ('comm', 1.5)])
def test_foreign_choices_are_refused(name, value):
    world = arena(json.dumps(ALL))
    state = world.state()
    array = state[name] if name in state else state['option'][name]
    array.flat[7] = value
    with pytest.raises(ValueError, match='state: choices, contact slots or messages'): world.load_state(state)


def test_without_options_the_state_is_what_it_was():
    plain = make('mech', worlds=1, world=dict(size=60, pool=1, biomes=()), pack=(0, 1, 0, 0))
    assert set(arena(json.dumps(ALL)).state()) - set(plain.state()) == {'option', 'slots', 'comm'}


def mirrored(world, rows):
    "What the mirror images of mechs would observe"
    out = rows.copy()
    for f in world.spec.obs:
        for k, name in enumerate(NAMES[f.name]):
            if name in ('right', 'v_right', 'yaw_sin', 'fire_right', 'zone_right'):
                out[..., f.offset + k:f.offset + f.size:len(NAMES[f.name])] *= -1
    patch, shape = world.spec.field('terrain').columns, rows.shape[:-1]
    out[..., patch] = rows[..., patch].reshape(*shape, 2, 11, 11)[..., ::-1].reshape(*shape, -1)
    return out


@pytest.mark.parametrize('mode', ['full', 'partial'])
def test_mirrored_play_stays_mirrored(mode):
    world = make('mech', worlds=3, seed=3, autoreset=False, **ALL | dict(observation_mode=mode))
    rng, g, n, orders = np.random.default_rng(1), world.game_arrays, world.spec.num_agents//2, 0
    other = lambda rows: np.where(rows < 0, -1, (rows + n) % (2*n))
    for _ in range(120):
        action = wild(rng, world)
        action[:, n:] = action[:, :n]
        action[:, n:, [ActionIndex.STRAFE, ActionIndex.YAW]] *= -1
        world.step(action)
        o = g.option
        assert (mirrored(world, world.obs[:, :n]) == world.obs[:, n:]).all()
        assert (other(g.slots[:, :n]) == g.slots[:, n:]).all() and (g.comm[:, :n] == g.comm[:, n:]).all()
        assert (other(o['ordered'][:, :n]) == o['ordered'][:, n:]).all()
        assert all((o[name][:, :n] == o[name][:, n:]).all() for name in ('sort', 'hostile_only', 'order'))
        assert (world.action_mask[:, :n] == world.action_mask[:, n:]).all()
        orders += (o['ordered'] >= 0).sum()
    assert orders > 50 and (g.mech['hp'] < g.classes['hp'][g.mech['kind']]).any()


@pytest.mark.parametrize('toggles', [{}, ON, ON | dict(sticky_slots=True),
                                     dict(enable_comm=True, comm_dim=32)])
def test_no_action_makes_a_number_that_is_none(toggles):
    world = make('mech', worlds=4, seed=5, observation_mode='partial', world=dict(size=48, pool=2),
                 pack=(1, 1, 1, 1), packs_per_team=2, **toggles)
    rng, bad = np.random.default_rng(2), np.float32([np.nan, np.inf, -np.inf, 1e30, -1e30, 0, -.5, 20.6])
    low, high = (np.concatenate([
        np.tile([getattr(c, side) for c in TABLES[f.name]], f.size//len(TABLES[f.name])) if f.name in TABLES
        else np.full(f.size, getattr(f, side)) for f in world.spec.obs]) for side in ('low', 'high'))
    for _ in range(120):
        action = wild(rng, world)
        poison = rng.random(action.shape) < .3
        action[poison] = rng.choice(bad, poison.sum())
        world.step(action)
        assert np.isfinite(world.obs).all() and np.isfinite(world.reward).all()
        assert ((low - 1e-6 <= world.obs) & (world.obs <= high + 1e-6)).all()
    assert world.stats['nan'].sum() > 0
