"""Cases worked out by hand, and some random ones, of heat, weapons and sensors.

With `NUMBA_DISABLE_JIT=1` the kernels run as plain Python, in seconds: so `make mutants` asks, for many
small changes of the three modules, whether anything here notices."""
from math import hypot

import numba
import numpy as np
import pytest

from echelon.config import EnvConfig
from echelon.core import draw
from echelon.sim.mech import new_game
from echelon.sim.sim import sights
from echelon.sim.voxels import CODES, TABLE, Maps, alter, current
from test_oracle import (FAR, Field, KINDS, adopt, judge, machine, mech_faults, one, sensor_faults,
                         shot_faults,
                         track_faults, voxel_faults, widened)

HITS, SHOWN = ([f'{name}{k}' for k in range(4)] for name in ('hit', 'shown'))
WEAPON = {name: k for k, name in enumerate(EnvConfig().weapons)}
CLASS = EnvConfig().classes
SUITE = {name: k for k, name in enumerate(EnvConfig().suites)}


# ---- kernels, compiled or as plain Python

class Record:
    "A row of a structured array as kernels see it: fields are attributes"
    __slots__ = 'row',
    def __init__(self, row): object.__setattr__(self, 'row', row)
    def __getattr__(self, name): return self.row[name]
    def __setattr__(self, name, value): self.row[name] = value


class Records:
    "A structured array whose elements are `Record`s of the same memory"
    def __init__(self, array): self.array, self.shape = array, array.shape
    def __len__(self): return len(self.array)
    def __getitem__(self, key):
        found = self.array[key]
        return Records(found) if isinstance(found, np.ndarray) else Record(found)


def run(kernel, g, *args):
    "A kernel on world 0"
    if numba.config.DISABLE_JIT:
        g = g._replace(**{name: Records(a) for name, a in g._asdict().items() if a.dtype.names})
    with np.errstate(all='ignore'): kernel(g, 0, *args)
    return g.mech[0]


@machine
def senses(g, w): sights(g, w, 0, 1)


def tick(g, count=1):
    "Ticks of the simulator; returns the mechs"
    for _ in range(count): run(one, g, 0)
    return g.mech[0]


def look(g):
    "The sensors at the end of a decision; returns the mechs"
    run(senses, g)
    return g.mech[0]


# ---- battles on a bare floor

def bare(n, size=40, **config):
    "A game of one world, `n` mechs a team, that nobody has entered yet"
    zeros = lambda kind, *shape: np.zeros(shape, kind)
    columns, square = ('u4', 1, size, size), (1, size, size)
    maps = Maps(zeros('u1', *square, 20), zeros(*columns), zeros(*columns), zeros(*columns),
                zeros('u8', 1, size//2, size//2), zeros('u2', *square), zeros('f4', 1, 3),
                zeros('f4', 1, n, 2),
                np.full(1, size, np.int32))
    g = new_game(EnvConfig(**dict(pack=(0, 0, 0, n)) | config), maps)
    world, rows = g.world[0], g.mech[0]
    world['key'], world['size'], world['team_size'] = 7, size, n
    rows['team'], rows['place'] = np.arange(2*n)//n, np.arange(2*n) % n
    for name in ('painter', 'marked', 'focus', 'shot_at', *HITS, *SHOWN): rows[name] = -1
    return g


def stage(*mechs,        # class, x, y and what else differs; the first half is blue
          walls=(),      # material, column, column, height
          shots=(),      # row, weapon, where, velocity and what else differs; slot 0, 1, … of that row
          size=40, **config):
    "A game of mechs that stand on a bare floor and look along x"
    g = bare(len(mechs)//2, size, **config)
    for m, (kind, x, y, more) in zip(g.mech[0], mechs):
        c, m['kind'] = CLASS[kind], KINDS.index(kind)
        values = dict(x=x, y=y, hx=1, alive=1, grounded=1, hp=c.hp, leg=c.leg, stability=100, quality=1)
        for name, value in (values | dict(suite=SUITE[c.suite]) | more).items(): m[name] = value
    for name, *cell in walls: run(alter, g, *cell, CODES[name], TABLE['hp'][CODES[name]])
    for row, weapon, at, v, more in shots: shell(g, row, weapon, at, v, **more)
    return g


def shell(g, row, weapon, at, v, **more):
    "A shot in the air, in the next slot"
    m = g.mech[0, row]
    s = bin(m['flying']).count('1')
    q = g.shot[0, row, s]
    values = dict(zip(('x', 'y', 'z', 'vx', 'vy', 'vz'), (*at, *v)), weapon=WEAPON[weapon], target=-1,
                  state=1,
                  struck=-1, a=-1, b=-1, c=-1, left=9.)
    for name, value in (values | more).items(): q[name] = value
    m['flying'] |= 1 << s


def near(x, tolerance=1e-4): return pytest.approx(x, abs=tolerance, rel=tolerance)


# ---- at random, against the other text of the rules

class Yard(Field):
    "A bare map in which battles are set up"
    def __init__(self, number, size=40):
        self.rng, self.size, self.n, self.wild = np.random.default_rng(number), size, 4, number % 2
        self.g = bare(4, size, pack=(1, 1, 1, 1), observation_mode='partial')
        self.config = EnvConfig(pack=(1, 1, 1, 1), observation_mode='partial')
        m = self.g.mech[0]
        m['kind'] = [3, 2, 1, 0]*2
        m['suite'] = [3, 4, 1, 0]*2

    def alter(self, *voxel): run(alter, self.g, *voxel)


@pytest.mark.parametrize('number', range(8))
def test_ticks_follow_the_rules(number):
    field = Yard(number)
    g = field.g
    for t in range(20):
        if t % 10 == 0: field.scatter(); g.mech['near'] = 0
        if t % 3 == 0: field.wish()
        g.world['tick'], before = t, g.mech[0].copy()
        battle = field.load()
        with np.errstate(over='ignore'): close = battle.tick(t)
        tick(g)
        faults = [*mech_faults(before, g.mech[0], battle), *shot_faults(g, battle), *voxel_faults(g, battle)]
        assert not judge(faults, close)[0], (t, faults)


@pytest.mark.parametrize('number', range(4))
def test_sensors_follow_the_rules(number):
    field, tracks, known, public = Yard(number, size=120), {}, {}, []
    g, rng = field.g, field.rng
    m = g.mech[0]
    field.scatter()
    for d in range(14):
        some = lambda chance: rng.uniform(size=8) < chance
        if d % 7 == 0:
            m['x'], m['y'], m['alive'] = rng.uniform(-40, 40, 8), rng.uniform(-40, 40, 8), 1
            g.cloud[0]['left'] = g.world[0]['smoke'] = 0
        m['x'] += rng.normal(0, 6, 8); m['y'] += rng.normal(0, 6, 8); m['z'] = rng.uniform(0, 12, 8)
        for axis in 'xy': m[axis] = m[axis].clip(-58, 58)
        m['ecm'], m['painted'], m['alive'] = rng.integers(0, 3, 8)*some(.5), some(.15), m['alive']*~some(.03)
        m['heat'] = [CLASS[KINDS[k]].capacity*rng.uniform(0, 1.1) for k in m['kind']]
        g.cloud[0]['x'], g.cloud[0]['y'], g.cloud[0]['left'] = rng.uniform(-30, 30, (3, 8))
        g.world[0]['smoke'] = sum(1 << i for i in range(8) if g.cloud[0, i]['left'] > 0)
        look(g)
        battle = field.load()
        close = widened(battle.sensors(), range(8))
        faults = list(sensor_faults(g, battle))
        if d:
            battle.follow(tracks, known, public)
            faults += track_faults(g, battle, tracks)
        assert not judge(faults, close)[0], (d, faults)
        known, public = dict(enumerate(m['known'].tolist())), [battle.public(o) for o in battle.mechs]
        if faults or not d: tracks = adopt(g, 4)


# ---- heat and balance, by hand

@pytest.mark.parametrize('kind, more, heat', [
    ('scout', dict(), 50 - .65), ('scout', dict(vent=1), 50 - 1.95),
        ('heavy', dict(vent=1, jet=1.), 50 - 1.5),
    ('scout', dict(ecm=1), 50 - .65 + .15), ('scout', dict(ecm=2), 50 - .65 + .1),
    ('scout', dict(liquid=1), 50 - .65 - 1.5), ('scout', dict(liquid=2), 50 - .65 + 2),
    ('scout', dict(vent=1, jet=1.), 50 - .65 + 2), ('scout', dict(vent=1, down=1.), 50 - .65),
    ('scout', dict(vent=1, shut=1, heat=70.), 70 - .65), ('scout', dict(heat=.5), 0),
    ('scout', dict(heat=200.), 1.4*75 - .65), ('scout', dict(ecm=1, shut=1, heat=70.), 70 - .5)])
def test_heat(kind, more, heat):
    "13/s of cooling for a scout, 10/s for a heavy; thrice that for who vents and has no jets on"
    m = tick(stage((kind, 0, 0, dict(heat=50.) | more), ('scout', 15, 0, FAR)))[0]
    assert m['heat'] == near(heat) and m['alive'] == 1


def test_shutdown_and_waking():
    "Off above the capacity of 75, on below 80 % of it; ECM goes off with the mech"
    g = stage(('scout', 0, 0, dict(heat=75.7, ecm=1)), ('scout', 0, 9, dict(heat=75.5, ecm=2)),
              ('scout', 15, 0, dict(shut=1, heat=60.7)), ('scout', 15, 9, dict(shut=1, heat=60.6)))
    m = tick(g)
    assert m['shut'].tolist() == [1, 0, 1, 0] and m['slept'].tolist() == [1, 0, 0, 0]
    assert m['overheats'].tolist() == [1, 0, 0, 0] and m['ecm'].tolist() == [0, 2, 0, 0]
    assert [m[0]['stir'] != 0, m[1]['stir']] == [True, 0] and g.world[0]['noted'] == 1
    m = tick(g)
    assert m['slept'].tolist() == [0, 0, 0, 0] and m['overheats'].tolist() == [1, 0, 0, 0]
    assert m[0]['shut'] == 1


def test_timers():
    "A tick is .05 s; what is below half of one is over; the dead have none, but their smoke has"
    names = 'cool0', 'cool1', 'cool2', 'cool3', 'ams', 'painted', 'suppressed', 'steady'
    for t, left in ((1., .95), (.1, .05), (.076, .026), (.074, 0), (.05, 0)):
        blue = dict.fromkeys(names, t) | dict(painter=1)
        g = stage(('heavy', 0, 0, blue), ('scout', 15, 0, FAR | dict(cool0=1.)))
        g.cloud['left'], g.world['smoke'] = t, 3
        m = tick(g)
        assert [m[0][name] for name in names] == [near(left)]*8
        assert g.cloud['left'][0].tolist() == [near(left)]*2
        assert m[0]['painter'] == (1 if left else -1) and m[1]['cool0'] == 1
        assert g.world[0]['smoke'] == (3 if left else 0)


def test_a_dead_mech_does_nothing():
    g = stage(('scout', 0, 0, FAR | dict(slept=1, fell=1, jolt=1., fire0=1, heat=9.)), ('scout', 3, 0, {}))
    m = tick(g)[0]
    assert [m[name] for name in ('slept', 'fell', 'jolt', 'fired', 'heat')] == [0, 0, 0, 0, 9]


def test_names_of_foes_are_kept_for_five_seconds():
    "Every 100 ticks those of this time become those of before"
    g = stage(('scout', 0, 0, dict(foes=6, foes_before=8)), ('scout', 15, 0, dict(foes=1)))
    g.world['tick'] = 99
    assert (tick(g)['foes'].tolist(), g.mech[0]['foes_before'].tolist()) == ([6, 1], [8, 0])
    assert (tick(g)['foes'].tolist(), g.mech[0]['foes_before'].tolist()) == ([0, 0], [6, 1])
    assert (tick(g)['foes'].tolist(), g.mech[0]['foes_before'].tolist()) == ([0, 0], [6, 1])
    g.world['tick'] = 200
    assert not tick(g)['foes_before'].any()


@pytest.mark.parametrize('more, gain', [
    ({}, .5), (dict(vx=.55), .25), (dict(vy=-.51), .25), (dict(vx=.45), .5), (dict(vx=.4, vy=.4), .25),
    (dict(leg=0.), .25), (dict(leg=0., vx=9.), .05), (dict(suppressed=1.), .125),
    (dict(suppressed=.05), .5), (dict(suppressed=1., vx=9.), .05), (dict(down=1.), 0),
        (dict(stability=99.8), .2),
    (dict(leg=0., stability=49.9), .1)])
def test_stability_comes_back(more, gain):
    "10/s, half of it gone for moving and for lost legs, three quarters for being suppressed; a tenth remains"
    before = dict(stability=20.) | more
    m = tick(stage(('medium', 0, 0, before), ('scout', 15, 15, FAR)))[0]
    assert m['stability'] == near(before['stability'] + gain)


def test_getting_up():
    "Up with half of what it can have, and half a point of this tick; safe for 2 s"
    for leg, most in ((9., 100), (0., 50)):
        m = tick(stage(('medium', 0, 0, dict(stability=0., down=.05, leg=leg)), ('scout', 15, 15, FAR)))[0]
        assert (m['down'], m['steady'], m['stability']) == (0, 2, near(most/2 + .5*(.5 if leg == 0 else 1)))
    m = tick(stage(('medium', 0, 0, dict(stability=0., down=.1, steady=1.)), ('scout', 15, 15, FAR)))[0]
    assert (m['down'], m['steady'], m['stability']) == (near(.05), 1, 0)


# ---- weapons, by hand

def fired(g):
    "Whom row 0 hits at once in a tick, by slots"
    m = tick(g)[0]
    return [m[f'hit{k}'].item() for k in range(4)]


def test_the_focus_goes_first():
    "The enemy nearest to the nose, of equals the first; the focus, if it is an enemy that can be hit"
    reds = ('scout', 5, 1, {}), ('scout', 5, -1, {}), ('scout', 5, 3, {})
    blues = ('medium', -15, 15, {}), ('medium', -15, -15, {})
    for focus, hit in ((-1, 3), (3, 3), (4, 4), (5, 5), (0, 3), (1, 3)):
        g = stage(('medium', 0, 0, dict(fire0=1, focus=focus)), *blues, *reds)
        assert fired(g) == [hit, -1, -1, -1] and g.mech[0, 0]['shown0'] == hit, focus
        assert g.mech[0, hit]['foes'] == 1 and g.mech[0]['foes'].sum() == 1
        assert g.mech[0, 0]['heat'] == 22 and g.mech[0, hit]['heat'] == 6 and g.mech[0, 0]['fired'] == 1
        assert g.mech[0, 0]['cool0'] == near(.6) and g.mech[0, 0]['dealt'] in (10.5, 21)
    g = stage(('medium', 0, 0, dict(fire0=1, focus=4)), *blues, reds[0], ('scout', 5, -1, FAR), reds[2])
    assert fired(g)[0] == 3


@pytest.mark.parametrize('kind, slot, heat',
                         [('light', 0, 10), ('light', 1, 22), ('light', 2, 5), ('medium', 1, 6),
                                              ('heavy', 1, 45), ('heavy', 2, 15), ('scout', 3, 10)])
def test_a_trigger(kind, slot, heat):
    "It costs heat and time once; without a target, only what flies along the nose is fired; shut ones do not"
    g = stage((kind, 0, 0, {f'fire{slot}': 1}), ('medium', 4, 0, {}))
    name = getattr(CLASS[kind], ('primary', 'secondary', 'tertiary', 'special')[slot])
    m, hits = g.mech[0, 0], fired(g)
    assert (m['heat'], m['fired'], m[f'cool{slot}']) == (heat, 1, near(EnvConfig().weapons[name].cooldown))
    assert hits == [1 if k == slot and name in ('laser', 'flamer', 'painter') else -1 for k in range(4)]
    assert [m[f'shown{k}'].item() for k in range(4)] == hits
    tick(g)
    assert (m['fired'], m[f'hit{slot}']) == (0, -1)
    for more in (dict(shut=1, heat=200.), dict(down=1.), dict(vent=1), {f'cool{slot}': .2}):
        g = stage((kind, 0, 0, {f'fire{slot}': 1} | more), ('medium', 4, 0, {}))
        assert fired(g) == [-1]*4 and g.mech[0, 0]['fired'] == 0 and not g.mech[0, 0]['flying'], more
    g = stage((kind, 0, 0, {f'fire{slot}': 1}), ('medium', -9, 0, {}))
    assert fired(g) == [-1]*4 and g.mech[0, 0]['fired'] == (name in ('gauss', 'autocannon', 'smoke'))


@pytest.mark.parametrize('x, y, hit',
                         [(10.49, 0, 1), (10.51, 0, 0), (4., 6.9, 1), (4., 7., 0), (0, 5, 0), (-4, 0, 0)])
def test_reach_and_arc_of_a_laser(x, y, hit):
    "8 vox and half of both boxes, 60° to either side"
    g = stage(('medium', 0, 0, dict(fire0=1)), ('medium', x, y, {}))
    assert fired(g)[0] == (1 if hit else -1)


def test_missiles_lock_on_paint():
    "Within 12 vox and the boxes on own sight, within 50 on paint with sensors of .7, even through a wall"
    wall = [('solid', 20, b, z) for b in range(15, 25) for z in range(8)]
    for x, more, paint, walls, starts in (
            (15.4, {}, 0, (), 1), (15.6, {}, 0, (), 0), (15.6, {}, 1, (), 1),
                (15.6, dict(quality=.69), 1, (), 0),
            (15.6, dict(quality=.7), 1, (), 1), (15.4, dict(quality=.3), 1, (), 1), (10., {}, 0, wall, 0),
            (10., {}, 1, wall, 1), (53.4, {}, 1, (), 1), (53.6, {}, 1, (), 0)):
        g = stage(('heavy', -3, 0, dict(fire1=1) | more), ('heavy', x - 3, 0, dict(painted=paint)),
                  walls=[(n, a + 40, b + 40, z) for n, a, b, z in walls], size=120)
        assert (tick(g)[0]['fired'], x, more) == (starts, x, more)
        if starts: assert g.shot[0, 0, 0]['target'] == 1 and g.mech[0, 0]['cool1'] == 3


def aimed(g, slot, k=0):
    "Velocity and the rest of a shot after its first tick"
    tick(g)
    return g.shot[0, 0, k], [g.shot[0, 0, k][v].item() for v in ('vx', 'vy', 'vz')]


def test_where_shots_start():
    "Lead: 10 vox at 40 vox/s are .25 s; a slug starts higher by half of what it falls; a missile climbs"
    g = stage(('heavy', 0, 0, dict(fire2=1)), ('heavy', 10, 0, dict(vx=2., vy=4., forward=1.)))
    o = g.mech[0, 1]
    o['x'], o['vx'], o['vy'] = 10 - .05*2, 0, 0
    q, v = aimed(g, 2)
    dx, dy = o['x'] + o['vx']*(o['x']/40), o['y'] + o['vy']*(o['x']/40)
    d = hypot(dx, dy)
    assert v == [near(40*dx/d), near(40*dy/d), near(.5*9.81*d/40 - 9.81*.05)]
    assert (q['x'], q['z'], q['left'], q['weapon'], q['state'], q['target']) == (
        near(v[0]*.05), near(2 + v[2]*.05), near(.45), WEAPON['gauss'], 1, 1)
    _, v = aimed(stage(('medium', 0, 0, dict(fire1=1, hx=.6, hy=.8)),
                       ('medium', 6, 8, dict(z=5., grounded=0))), 1)
    z = 5 - 9.81*.05**2
    assert v == [near(25*c/hypot(6, 8, z)) for c in (6, 8, z)]
    _, v = aimed(stage(('medium', 0, 0, dict(fire1=1, hx=.6, hy=.8)), ('medium', -9, 0, {})), 1)
    assert v == [near(15), near(20), near(0)]
    q, v = aimed(stage(('heavy', 0, 0, dict(fire1=1)), ('heavy', 6, 8, {})), 1)
    far, want = hypot(6, 8, 8), [12*c for c in (6, 8, 8)]    # it starts toward 8 above the target
    turned = [s + (w/far - s)*.2 for s, w in zip((12*.8*.6, 12*.8*.8, 12*.6), want)]
    assert v == [near(12*c/hypot(*turned)) for c in turned] and q['left'] == near(50/12 - .05)


def test_slots_for_shots():
    "The lowest that is free; the ninth shot is lost, but paid"
    far = [(0, 'smoke', (-15., 15., 5.), (0., 0., 0.), {})]*8
    g = stage(('medium', 0, 0, dict(fire1=1, lost=2)), ('medium', -15, -15, {}), shots=far)
    m = tick(g)[0]
    assert (m['lost'], m['fired'], m['heat'], m['flying']) == (3, 1, 6, 255)
    m['flying'], m['cool1'] = 0b11111011, 0
    tick(g)
    assert (m['lost'], m['flying'], g.shot[0, 0, 2]['weapon']) == (3, 255, WEAPON['autocannon'])


def test_walls_stop_shots():
    "A slug of 2 vox a tick; where it enters the voxel, also through the floor, the edge and from above"
    def met(at, v, *walls, weapon='gauss', **more):
        g = stage(('heavy', -15, 15, {}), ('scout', 15, 15, {}), shots=[(0, weapon, at, v, more)],
                  walls=[('reinforced', *w) for w in walls])
        tick(g)
        q = g.shot[0, 0, 0]
        return [*(q[c].item() for c in ('a', 'b', 'c', 'x', 'y', 'z')), g.mech[0, 0]['flying'].item()]
    straight = dict(weapon='autocannon')
    assert met((.5, .5, 2.5), (40, 0, 0), (22, 20, 2), **straight) == [22, 20, 2, 2, .5, 2.5, 0]
    assert met((.5, .5, 2.5), (-40, 0, 0), (19, 20, 2), **straight) == [19, 20, 2, 0, .5, 2.5, 0]
    assert met((.5, .5, 2.5), (0, 40, 0), (20, 21, 2), (20, 22, 2), **straight) == [20, 21, 2, .5, 1, 2.5, 0]
    assert met((.5, .5, 2.5), (0, -40, 0), (20, 18, 2), **straight) == [20, 18, 2, .5, near(-1), 2.5, 0]
    assert met((.5, .5, 2.5), (0, 0, 40), (20, 20, 4), **straight) == [20, 20, 4, .5, .5, near(4), 0]
    assert met((.5, .5, 4.5), (0, 0, -40), (20, 20, 2), **straight) == [20, 20, 2, .5, .5, near(3), 0]
    assert met((.5, .5, 4.5), (0, 0, -40), (20, 20, 3), **straight) == [20, 20, 3, .5, .5, near(4), 0]
    assert met((.5, .5, 5.5), (0, 0, -80), (20, 20, 2), (20, 20, 3), **straight)[2] == 3
    assert met((.5, .5, 2.5), (0, 0, 80), (20, 20, 5), (20, 20, 6), **straight)[2] == 5
    assert met((.5, .5, 2.5), (40, 40, 0), (22, 22, 2), **straight) == [22, 22, 2, near(2), near(2), 2.5, 0]
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        slow = met((.5, .5, 2.5), (15*dx, 15*dy, 0), (20 + dx, 20 + dy, 2), **straight)
        assert slow == [20 + dx, 20 + dy, 2, near(.5 + .5*dx), near(.5 + .5*dy), 2.5, 0]
    for at, v in (((-19.5, .5, 2.5), (-40, 4, 0)), ((.5, -19.5, 2.5), (4, -40, 0)),
                  ((.5, .5, .5), (4, 4, -20)),
                  ((19.5, .5, 2.5), (40, 4, 0)), ((.5, 19.5, 2.5), (4, 40, 0))):
        *cell, x, y, z, flies = met(at, v, **straight)
        assert cell == [-1]*3 and flies == 0 and (max(abs(x), abs(y)) == near(20) or z == 0), at
    assert met((.5, .5, .5), (15, 1, 0), (21, 20, 0), **straight)[:3] == [21, 20, 0]
    for x in (0., 1.):                                   # along a border: the lower column is met
        assert met((x, .5, 2.5), (0, 40, 0), (19 + int(x), 21, 2), **straight)[:3] == [19 + int(x), 21, 2]
        assert met((x, .5, 2.5), (0, 40, 0), (20 + int(x), 21, 2), **straight)[:3] == [-1]*3
    assert met((.5, .5, 2.5), (40, 0, 40), (21, 20, 3), **straight)[:3] == [21, 20, 3]
    assert met((.5, .5, 2.5), (40, 0, 0), (20, 20, 2), **straight) == [20, 20, 2, .5, .5, 2.5, 0]
    assert met((.5, .5, 2.5), (40, 0, 0), (20, 20, 3), (21, 21, 2), **straight) == [-1]*3 + [2.5, .5, 2.5, 1]
    assert met((19.5, .5, 2.5), (40, 0, 0), **straight) == [-1]*3 + [near(20, 2e-4), .5, 2.5, 0]
    assert met((.5, -19.5, 2.5), (0, -40, 0), **straight) == [-1]*3 + [.5, near(-20, 2e-4), 2.5, 0]
    assert met((.5, .5, .5), (20, 0, -20), **straight) == [-1]*3 + [near(1), .5, 0, 0]
    assert met((.5, .5, 40.), (40, 0, 0), (20, 20, 19), **straight) == [-1]*3 + [2.5, .5, 40, 1]
    assert met((.5, .5, 2.5), (40, 0, 0), left=.1) == [-1]*3 + [2.5, .5, near(2.5 - 9.81*.05**2), 1]
    assert met((.5, .5, 2.5), (40, 0, 0), left=.05) == [-1]*3 + [.5, .5, 2.5, 0]


def test_smoke():
    "It stands for 10 s where it bursts, also at its end in the air; the owner may be dead"
    for v, left, x in ((0., .05, 3.), (40., 9., 4.)):
        g = stage(('scout', -15, 0, FAR), ('scout', 15, 0, {}), walls=[('solid', 24, 20, 2)],
                  shots=[(0, 'smoke', (3., .5, 2.5), (v, 0., 0.), dict(left=left))])
        tick(g)
        c = g.cloud[0, 0]
        assert [c[k].item() for k in ('x', 'y', 'z', 'left')] == [near(x), .5, 2.5, 10]
        assert g.world[0]['smoke'] == 1 and not g.mech[0, 0]['flying'] and g.mech[0, 0]['loud'] == 0
        assert g.mech[0, 0]['bursting'] == 0 and g.shot[0, 0, 0]['state'] == 0


def test_a_shot_meets_the_first_enemy():
    "The nearest box on the way, of equals the first; mates are passed; height counts"
    for y, z, v, struck in ((0., 1., 100., 2), (0., 2.5, 100., 3), (0., 3.5, 100., -1), (1.3, 1., 100., -1),
                            (1., 1., 100., 3), (0., 1., -100., -1), (0., 1., 30., -1)):
        g = stage(('medium', -1, 0, {}), ('scout', -15, 15, {}), ('scout', 1.5, 0, {}),
                  ('medium', 3.5, 0, {}),
                  shots=[(0, 'autocannon', (-1., y, z), (v, 0., 0.), {})])
        tick(g)
        q = g.shot[0, 0, 0]
        assert q['struck'] == struck, (y, z, v)
        if struck >= 0: assert q['x'] == near((.9, 2.25)[struck - 2]) and g.mech[0, struck]['hurt'] in (12, 6)
    g = stage(('medium', -15, 0, {}), ('scout', -15, 15, {}), ('scout', 1.5, 0, FAR), ('scout', 1.5, 0, {}),
              shots=[(0, 'autocannon', (.3, 0., 1.), (40., 0., 0.), {})])
    tick(g)
    assert g.shot[0, 0, 0]['struck'] == 3 and g.mech[0, 3]['suppressed'] == near(1.2)
    assert g.mech[0, 3]['foes'] == 1
    assert g.mech[0, 0]['loud'] == 1 and g.world[0]['loud'] == 1


def test_the_end_of_a_way():
    "What it reaches in the last moment of a tick is met; what is not smoke ends in the air without a burst"
    g = stage(('heavy', -15, 15, {}), ('heavy', 3.75, 0, {}),
              shots=[(0, 'missiles', (0., 0., 2.), (40., 0., 0.), {})])
    assert tick(g)[1]['hurt'] > 0 and g.shot[0, 0, 0]['x'] == 2
    g = stage(('heavy', -15, 15, {}), ('heavy', 2, 0, {}), walls=[('foliage', 19, 20, 2)],
              shots=[(0, 'missiles', (0., 0., 2.), (40., 0., 0.), dict(left=.05))])
    m = tick(g)
    assert m[1]['hurt'] == m[0]['stir'] == g.world[0]['noted'] == 0
    assert current(g, 0, 40)[19, 20, 2] == CODES['foliage']


    g = stage(('heavy', -15, 15, {}), ('heavy', 2, 0, {}),
              shots=[(0, 'autocannon', (0., -1.75, 2.), (40., 0., 0.), {})])
    assert tick(g)[1]['hurt'] > 0, 'the low side of a box belongs to it'


def test_red_hits_row_0():
    "Row 0 is a row like others: with all three guns that hit at once"
    g = stage(('heavy', 0, 0, {}), ('light', 4, 0, dict(hx=-1, fire0=1, fire1=1, fire2=1)))
    m = tick(g)
    assert [m[1][name].item() for name in (*HITS, *SHOWN)] == [0, 0, 0, -1]*2
    assert m[0]['foes'] == 2 and m[0]['heat'] == 21 and m[1]['loud'] == 1 and m[1]['fired'] == 3
    assert m[1]['dealt'] == m[0]['taken'] > 0 and g.world[0]['noted'] == 3


def test_point_defence():
    "The nearest enemy missile within 5.5 of the middle; then a pause of a second; six of ten are hit"
    fly = lambda x, weapon='missiles', row=1, z=2.: (row, weapon, (x, 0., z), (0., 0., 0.), {})
    def play(*shots, key=7, **more):
        g = stage(('heavy', 0, 0, more), ('heavy', 15, 15, {}), shots=shots)
        g.world['key'] = key
        m = tick(g)
        return g, m
    for shot in fly(-5.6), fly(-3., z=7.):
        g, m = play(shot)
        assert m[0]['ams'] == 0 and m[0]['shot_at'] == -1 and m[1]['flying'] == 1
    for more in (dict(shut=1, heat=120.), dict(down=1.), dict(ams=.2)):
        assert play(fly(-5.), **more)[1][1]['flying'] == 1
    assert play(fly(-5., 'autocannon'))[1][0]['ams'] == 0 and play(fly(-5., row=0))[1][0]['ams'] == 0
    hits = 0
    for key in range(40):
        g, m = play(fly(-5.45), fly(-5.), fly(-5.2), key=key)
        with np.errstate(over='ignore'): hit = draw(np.uint64(key), 0, 0, 40) < .6
        hits += hit
        assert m[0]['ams'] == 1 and m[0]['shot_at'] == (8*1 + 1 if hit else -1)
        assert m[1]['flying'] == (0b101 if hit else 0b111) and g.shot[0, 1, 1]['state'] == (0 if hit else 1)
        assert (m[0]['stir'] != 0) == hit and g.world[0]['noted'] == hit
    assert 18 <= hits <= 30


def test_the_point_defence_of_red():
    "It finds slot 0 of row 0 too, whether or not others fly"
    hits = set()
    for key in range(12):
        names = ('missiles', 'smoke')[:1 + key % 2]
        g = stage(('heavy', -15, 15, {}), ('heavy', 0, 0, {}),
                  shots=[(0, name, (-5., 0., 2.), (0., 0., 0.), {}) for name in names])
        g.world['key'] = key
        m = tick(g)
        hits.add(m[1]['shot_at'].item())
        assert m[1]['ams'] == 1 and m[0]['flying'] == 2*(key % 2) + (m[1]['shot_at'] != 0)
    assert hits == {0, -1}


def splashed(x, y, *walls, z=1., weapon='missiles', **more):
    "A shot that bursts at a wall at (0, 0); how much a medium at a place feels of it"
    g = stage(('heavy', -15, 15, {}), ('medium', x, y, dict(hx=0, hy=1) | more),
              walls=[('reinforced', 20, 20, 1), *walls], shots=[(0, weapon, (-.5, .5, z), (40., 0., 0.), {})])
    return tick(g)[1], g


def test_splash():
    "Half of 40 and 15 at the burst, nothing at 2.5 vox from the box; nothing behind a wall"
    for x, y, share in ((-2.25, .5, .6), (-3.25, .5, .2), (-3.74, .5, .004), (-3.76, .5, 0),
                        (-1.25, -2.75, .2)):
        m, g = splashed(x, y)
        away = max(hypot(max(-1.25 - x, 0), max(abs(.5 - y) - 1.25, 0)), 0)
        part = .5*max(0, 1 - away/2.5)
        assert (m['hurt'], m['shove']) == (near(40*part, 1e-3), near(15*part, 1e-3)), (x, y)
        assert m['foes'] == (part > 0) and g.mech[0, 0]['dealt'] == near(40*part, 1e-3) and m['leg'] == 75
    assert splashed(-2.25, -2.25)[0]['hurt'] > 0
    assert splashed(-2.25, -2.25, *(('solid', 18, 19, z) for z in range(4)))[0]['hurt'] == 0
    assert splashed(-2.25, .5, weapon='smoke')[0]['hurt'] == 0
    assert splashed(-2.25, .5, hx=-1, hy=0)[0]['hurt'] == near(1.5*40*.5*.6, 1e-3)


def test_legs_rear_and_paint():
    "A missile of 40 from behind half more, on paint a tenth more; below .3 of the height half, and legs"
    for z, hx, paint, hurt, leg in ((2., -1, 0, 40, 75), (2., 1, 0, 60, 75), (2., -1, 1, 44, 75),
                                    (.1, -1, 0, 20, 35),
                                    (.1, 1, 1, 33, 75 - 66), (2., .70, 0, 40, 75), (2., .715, 0, 60, 75)):
        g = stage(('heavy', -15, 15, {}),
                  ('medium', 2, 0, dict(hx=hx, hy=(1 - hx*hx)**.5, painted=paint, painter=0)),
                  shots=[(0, 'missiles', (0., 0., z), (40., 0., 0.), {})])
        m = tick(g)[1]
        assert (m['hurt'], m['leg'], m['shove']) == (near(hurt), near(leg),
                                                     near(15*(1.5 if hx > .71 else 1))), (z, hx)
        assert (m['from_x'], m['from_y'], m['foes']) == (near(-hurt), 0, 1)
        assert (m['took'], m['taken'], m['hp']) == (near(hurt), near(hurt), near(150 - hurt))
        b = g.mech[0, 0]
        assert (b['dealt'], b['aided'], b['friendly']) == (near(hurt), 0, 0)
        assert m['marked'] == (0 if paint else -1)


def test_paint():
    g = stage(('scout', 0, 0, dict(fire0=1)), ('medium', -9, 0, {}), ('medium', 5, 0, {}),
              ('medium', 0, 15, {}))
    m = tick(g)[2]
    assert (m['painted'], m['painter'], m['foes'], m['hurt'], m['marked']) == (5, 0, 1, 0, -1)
    g.mech[0, 0]['fire0'], g.mech[0, 1]['x'], g.mech[0, 1]['fire0'] = 0, 0, 1
    m = tick(g)
    assert m[2]['marked'] == 0 and m[2]['foes'] == 3
    assert (m[1]['dealt'], m[0]['aided'], m[1]['aided'], m[0]['dealt']) == (near(15.4*1.5), near(15.4*1.5),
                                                                            0, 0)


def test_knockdown():
    "At no stability left, unless it is safe; a landing counts; the fallen lose nothing; lava burns"
    for more, left, down in ((dict(stability=14.), 0, 3), (dict(stability=15.), .5, 0),
                             (dict(stability=14., steady=1.), 0, 0),
                             (dict(stability=14., down=1.), 14, .95)):
        g = stage(('heavy', -15, 15, {}), ('medium', 2, 0, dict(hx=-1) | more),
                  shots=[(0, 'missiles', (0., 0., 2.), (40., 0., 0.), {})])
        m = tick(g)[1]
        assert (m['stability'], m['down'], m['fell']) == (near(left), near(down),
                                                          left == 0 and down == 3), more
        assert m['shove'] == 15 and m['stir'] == (left == 0 and down == 3)
    g = stage(('heavy', -15, 15, {}), ('medium', 2, 0, dict(z=.1, grounded=0, vz=-11.)))
    m = tick(g)[1]
    assert m['shove'] == near(8*(11 + 9.81*.05 - 6)) and m['stability'] == near(100 - m['shove'])
    assert m['jolt'] == 0
    m = tick(stage(('heavy', -15, 15, {}), ('medium', 2, 0, dict(liquid=2))))[1]
    assert (m['hurt'], m['hp'], m['took']) == (near(.25), near(149.75), near(.25))


@pytest.mark.parametrize('before, late', [(8, 1), (0, 0)])
def test_credit(before, late):
    "What a blow took, shared by damage; a kill by all who hit in that tick, an assist by who did before"
    g = stage(('medium', 0, 0, dict(fire0=1)), ('medium', 0, 3, dict(fire0=1)), ('scout', 0, 9, {}),
              ('scout', 0, -9, {}),
              ('medium', 6, 0, dict(hx=-1, hp=7., foes=0b101, foes_before=before, painted=1., painter=2)),
              ('medium', 15, 15, FAR), ('medium', 15, 12, FAR | dict(foes=15)),
              ('medium', 15, 9, dict(foes=15)))
    g.world['tick'], g.mech[0, 2]['assists'] = 1, 2
    m = tick(g)
    legs = m[4]['leg'] < 75
    assert m[4]['alive'] == 0 and m[4]['hp'] == 0 and m[4]['died'] == 1 and m[4]['deaths'] == 1
    assert m[4]['took'] == 7
    assert m['dealt'][:2].sum() == near(7) and m['kills'][:2].sum() == near(1)
    assert m['prey'].tolist() == [16, 16] + [0]*6
    assert m[4]['hurt'] in (near(15.4*2), near(15.4*1.5), near(15.4)) and legs == (m[4]['hurt'] < 30)
    assert m['assists'].tolist() == [0, 0, 3, late, 0, 0, 0, 0]
    assert m['helped'].tolist() == [0, 0, 16, 16*late, 0, 0, 0, 0]
    assert m['aided'].tolist() == [0, 0, near(7), 0, 0, 0, 0, 0] and m[2]['stir'] == 1
    assert m[3]['stir'] == late
    assert m[4]['vx'] == m[4]['down'] == m[4]['ecm'] == 0 and not m['friendly'].any()
    m = tick(g)
    assert not m['prey'].any() and not m['helped'].any() and m['assists'].sum() == 3 + late
    assert not m['died'].any()


def test_friendly_fire():
    "Splash hurts mates and oneself: `friendly` for mates alone, and no foe"
    g = stage(('heavy', -3, .5, {}), ('medium', -2, -2.5, dict(painted=1., painter=2)),
              ('scout', 15, 15, {}), ('scout', 15, 9, {}),
              walls=[('reinforced', 20, 20, 1)], shots=[(0, 'missiles', (-.5, .5, 1.), (40., 0., 0.), {})])
    m = tick(g)
    assert m[0]['taken'] > 0 and m[1]['taken'] > 0 and m[0]['friendly'] == near(m[1]['taken'])
    assert m[0]['dealt'] == 0
    assert not m['foes'].any() and m[1]['marked'] == 2 and m[2]['aided'] == near(m[1]['taken'])


def test_heat_of_hits_ends_at_the_most():
    m = tick(stage(('light', 0, 0, dict(fire0=1)), ('scout', 3, 0, dict(heat=104.))))
    assert m[1]['heat'] == 105 and m[0]['heat'] == 10


def test_the_ground_suffers():
    "A slug of 50 cracks what it meets; around it half of that and less, up to 1.5 vox from the burst"
    wall = [('solid', 20 + a, 20 + b, 1 + c) for a in (0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)]
    g = stage(('heavy', -15, 15, {}), ('scout', 15, 15, {}), walls=[*wall, ('foliage', 19, 20, 2)],
              shots=[(0, 'gauss', (-.6, .6, 1.6), (40., 0., 0.), {})])
    tick(g)
    q, left = g.shot[0, 0, 0], {tuple(c.tolist())[:3]: c['hp'].item() for c in g.changes[0, :g.changed[0, 0]]}
    at = 20 + q['x'], 20 + q['y'], q['z']
    for _, *cell in wall:
        away = hypot(*(c + .5 - p for c, p in zip(cell, at)))
        harm = 50 if cell == [20, 20, 1] else 25*max(0, 1 - away/1.5)
        assert left[tuple(cell)] == near(100 - harm), cell
    assert current(g, 0, 40)[19, 20, 2] == CODES['air'] and sum(hp < 100 for hp in left.values()) > 4


# ---- sensors, by hand

def test_quality():
    "Jamming 1 − d/50 of the nearest takes .85 of it, clearing gives .65; between .25 and 1.5"
    def tuned(d, e, ecm=1, eccm=2, **more):
        g = stage(('scout', 0, 0, more), ('scout', 0, e, dict(ecm=eccm)), ('scout', d, 0, dict(ecm=ecm)),
                  ('scout', 59, 59, {}),
                  size=120)
        m = look(g)[0]
        return m['jam'].item(), m['eccm'].item(), m['quality'].item()
    assert tuned(25, 10) == (near(.5), near(.8), near(1 - .425 + .52)) and tuned(55, 55) == (0, 0, 1)
    assert tuned(5, 55) == (near(.9), 0, .25) and tuned(55, 1) == (0, near(.98), 1.5)
    assert tuned(25, 10, 2, 1) == (0, 0, 1) and tuned(25, 10, eccm=0, ecm=0) == (0, 0, 1)
    assert tuned(25, 55, ecm=1) == (near(.5), 0, near(.575)) and tuned(25, 10, alive=0) == (0, 0, 1)


@pytest.mark.parametrize('kind, d, mine, other, known', [
    ('scout', 20.9, {}, {}, 1), ('scout', 21.1, {}, {}, 0), ('scout', 10.4, dict(ecm=1), {}, 1),
    ('scout', 10.6, dict(ecm=1), {}, 0), ('scout', 15.6, dict(ecm=2), {}, 1),
    ('scout', 15.9, dict(ecm=2), {}, 0), ('heavy', 11.1, {}, dict(kind=3), 1),
        ('heavy', 11.3, {}, dict(kind=3), 0),
    ('scout', 49, {}, dict(heat=61.), 1), ('scout', 51, {}, dict(heat=61.), 0),
        ('scout', 49, {}, dict(heat=59.), 0),
    ('scout', 49, {}, dict(ecm=2), 1), ('scout', 51, {}, dict(ecm=2), 0),
        ('scout', 80, {}, dict(painted=.1), 1),
    ('scout', 20, dict(alive=0), {}, 0), ('scout', 20, {}, dict(alive=0), 0)])
def test_who_is_noticed(kind, d, mine, other, known):
    "Behind a wall: radar of 14 vox times the suite's range, half of it for emitters; heat at 50; paint"
    g = stage((kind, -50, .5, mine), ('scout', d - 50, .5, other), size=120, observation_mode='partial',
              walls=[('solid', 15, 60, z) for z in range(12)])
    m = look(g)
    assert (m[0]['direct'], m[0]['known'], m[0]['sees']) == (2*known, 2*known, 0)


def test_smoke_hides_the_heat():
    for left, smoke, known in ((1., 1, 0), (0., 1, 2), (1., 0, 2)):
        g = stage(('scout', -20, .5, {}), ('scout', 20, .5, dict(heat=70.)), size=120,
                  observation_mode='partial',
                  walls=[('solid', 70, 60, z) for z in range(12)])
        g.cloud[0, 0]['left'], g.world['smoke'] = left, smoke
        assert look(g)[0]['direct'] == known


def test_reports():
    "A scout and a leader tell what they notice themselves; sensors of both ends need a quality of a half"
    def heard(suite, ecm=0, d=100., **more):
        g = stage(('heavy', -50, 0, {}), ('scout', 30, .5, dict(suite=suite) | more), ('scout', 40, .5, {}),
                  ('scout', -50 + d, 10, dict(ecm=ecm)), size=160, observation_mode='partial',
                  walls=[('solid', 75, 80, z) for z in range(12)])
        m = look(g)
        return int(m[0]['known'] & 4), m['quality'][:2].tolist()
    assert heard(0)[0] == heard(4)[0] == 4 and heard(2)[0] == heard(0, alive=0)[0] == 0
    for d, told in ((28., 4), (18.1, 4), (17.8, 0), (10., 0)):   # 1 − .85·(1 − hypot(d, 10, 1.1)/50)
        told_now, (mine, _) = heard(0, 1, d)
        assert (told_now, mine >= .5) == (told, told == 4), (d, mine)


def test_all_is_known_without_partial_observation():
    g = stage(('scout', -50, 0, {}), ('scout', -50, 9, FAR | dict(known=4, tracked=8)), ('scout', 50, 0, {}),
              ('scout', 50, 9, FAR),
              size=120, observation_mode='full')
    m = look(g)
    assert m['known'].tolist() == [4, 0, 1, 0] and m['direct'].tolist() == [0]*4 and not m['tracked'].any()


def test_a_track_lasts_five_seconds():
    "What was last seen, and how long ago; 20 decisions of .25 s; who dies in sight is forgotten, unseen not"
    def lost(**more):
        g = stage(('scout', -10, 0, {}),
                  ('scout', 10, 0, dict(painted=1., down=1., leg=0., heat=15., hp=30., stability=50.,
                  vx=1., vy=2., vz=3., hx=.6, hy=.8) | more), size=200, observation_mode='partial')
        look(g)
        g.mech[0, 1]['x'], g.mech[0, 1]['y'], g.mech[0, 1]['painted'] = 95, 9, 0
        g.mech[0, 0]['x'] = -95
        return g, g.track[0, 0, 0]
    g, t = lost()
    for k in range(1, 20):
        m = look(g)[0]
        assert (m['known'], m['tracked'], t['age']) == (0, 2, near(.25*k))
    assert [t[name].item() for name in ('x', 'y', 'z', 'vx', 'vy', 'vz', 'hx', 'hy', 'hp', 'heat',
                                        'stability', 'flags')] == [
        near(v) for v in (10, 0, 0, 1, 2, 3, .6, .8, .5, .2, .5, 7)]
    assert g.world[0]['known0'] == 2 and look(g)[0]['tracked'] == 0 and g.world[0]['known0'] == 0
    g, t = lost(painted=0., leg=1., down=0.)
    look(g)
    assert t['flags'] == 0
    g.mech[0, 1]['alive'] = 0
    for k in range(2, 20): assert look(g)[0]['tracked'] == 2 and t['age'] == near(.25*k)
    assert look(g)[0]['tracked'] == 0
    g = stage(('scout', -10, 0, {}), ('scout', 10, 0, {}), size=200, observation_mode='partial')
    assert look(g)[0]['known'] == 2
    g.mech[0, 1]['alive'] = 0
    assert look(g)[0]['tracked'] == 0 == g.mech[0, 0]['known']


def test_what_teams_know():
    "Known or remembered by anybody; at whom missiles fly; whether anybody sees an enemy"
    shot = lambda row, weapon, at: (row, weapon, (0., 0., 9.), (1., 0., 0.), dict(target=at))
    g = stage(('scout', -50, 0, {}), ('scout', -50, 9, {}), ('scout', 50, 0, dict(painted=1.)),
              ('scout', 50, 9, {}), size=120, observation_mode='partial',
              walls=[('solid', 60, b, z) for b in range(50, 80) for z in range(16)],
              shots=[shot(0, 'smoke', 2), shot(0, 'smoke', 2), shot(0, 'missiles', 3), shot(0, 'smoke', 2),
                     shot(2, 'missiles', 1), shot(2, 'missiles', 0), shot(1, 'missiles', -1)])
    told = lambda: [g.world[0][name].item() for name in ('known0', 'known1', 'hunted', 'alert0', 'alert1')]
    look(g)
    assert told() == [4, 0, 8 | 2 | 1, 0, 0]
    g.mech[0, 1]['tracked'], g.mech[0, 3]['tracked'] = 8, 0
    g.mech[0, 3]['x'] = -45
    look(g)
    assert told() == [12, 3, 11, 1, 1]
