"What guards the rules of combat: the simulator does what a second, slow text of the rules says."
import inspect
import math
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from echelon.config import EnvConfig
from echelon.sim.mech import CLOUD, MECH, SHOT, WORLD
from echelon.sim.sim import tick
from echelon.sim.voxels import CODES, TABLE, alter, current
from echelon.world import make

from oracle import Battle

BATTLES, DECISIONS, SCATTER = 20, 100, 20   # decisions of a battle; until all are set up anew
LITTER = 150                                # voxels thrown about at every set-up
RARE = 1e-4                                 # of all decisions may differ where they are too close to call
KINDS = ('scout', 'light', 'medium', 'heavy')
LASTING = ('dealt', 'friendly', 'kills', 'alive')
LAST = ('x', 'y', 'z', 'hp', 'vx', 'vy', 'vz', 'ecm', 'down', 'deaths', 'took', 'hurt', 'taken', 'died')
ALIVE = ('hx', 'hy', 'leg', 'heat', 'stability', 'cool0', 'cool1', 'cool2', 'cool3', 'ams', 'painted',
         'painter', 'suppressed', 'steady', 'jolt', 'shut', 'grounded', 'overheats', 'lost', 'fired',
         'from_x', 'from_y')
FLYING = ('x', 'y', 'z', 'vx', 'vy', 'vz', 'left', 'weapon', 'target')
BURST = ('x', 'y', 'z', 'struck', 'a', 'b', 'c')
HAPPENS = [
    'stood up', 'vent', 'water', 'lava', 'ecm', 'eccm', 'shutdown', 'restart', 'knockdown', 'held up', 'jets',
    'too high for jets', 'step up', 'refused', 'push', 'hard landing', 'head hit', 'missile on paint',
    'focus', 'along the nose', 'expired', 'burst at mech', 'burst at voxel', 'burst at edge', 'smoke',
    'line cut by smoke', 'intercept', 'ams missed', 'rear', 'painted bonus', 'splash', 'splash hidden',
    'splash on own side', 'legs hit', 'voxel damaged', 'voxel broken', 'death', 'wreck',
    'no room for a wreck',
    *(f'fired {w}' for w in EnvConfig().weapons), *(f'hit by {w}' for w in EnvConfig().weapons)]


PER_TICK = len(inspect.signature(getattr(tick, 'py_func', tick)).parameters) == 4   # the world tells the time
machine = numba.njit(error_model='numpy')   # not cached: what it calls may have changed

if not PER_TICK:
    @machine
    def one(g, w, t): tick(g, w, t, 0, 1)
else:
    @machine
    def one(g, w, t): tick(g, w, 0, 1)


# ---- battles

PACKS = (1, 1, 1, 1), (2, 0, 1, 0), (0, 2, 1, 1), (1, 2, 0, 0), (1, 0, 2, 1)
BIOMES = (('volcanic_ridge', 'sunken_canal'), (), ('barrens', 'mining_pit'),
          ('urban_residential', 'arcology_spire'), ('dense_jungle', 'glass_desert'))


class Field:
    "A world of the simulator, and the hand that sets up battles in it"
    def __init__(self, number):
        pack, biomes = PACKS[number % 5], BIOMES[number//5 % 5]
        if number % 20 == 19: pack = (1, 5, 3, 1)
        self.rng = np.random.default_rng(number)
        self.world = make('mech', worlds=1, seed=number, pack=pack, autoreset=False,
                          observation_mode='partial',
                          world=dict(size=60 if sum(pack) == 10 else 40, pool=1, biomes=biomes))
        self.g, self.config, self.wild = self.world.game_arrays, self.world.config, number % 3 == 0
        self.size, self.n = int(self.g.world['size'][0]), sum(pack)

    def load(self):
        "The oracle's copy of the state"
        g, done = self.g, self.g.changes[0, :self.g.changed[0, 0]]
        left = {(a, b, z): hp for a, b, z, hp in done[['a', 'b', 'z', 'hp']].tolist()}
        voxels = current(g, 0, self.size)
        return Battle(self.config, g.mech[0], g.shot[0], g.cloud[0], g.world[0], voxels, left)

    def scatter(self):
        "Everybody alive, near each other, in all states of repair"
        g, rng = self.g, self.rng
        g.shot[0], g.cloud[0] = np.zeros((), SHOT), np.zeros((), CLOUD)
        g.world['living0'] = g.world['living1'] = self.n
        edge = rng.uniform() < .3
        self.centre = rng.uniform(-1, 1, 2)*(self.size/2 - (2 if edge else 8))
        gap = rng.choice([3., 6., 10.])
        if rng.uniform() < .7: self.litter()
        b = self.load()
        for k, m in enumerate(g.mech[0]):
            self.repair(m, b.mechs[k].c)
            self.place(b, k, m, gap)
        for m in g.mech[0]: self.face(m)

    def litter(self):
        "Throw half-broken voxels about: things to hide behind, to shoot down and to bump a head on"
        for a, b in np.rint(self.rng.normal(self.centre + self.size/2, 5, (LITTER, 2))).astype(int):
            code, z = self.rng.integers(1, len(TABLE)), self.rng.integers(7)
            whole, part = TABLE['hp'][code], self.rng.uniform(.05, 1)
            hp = np.float32(whole*part if np.isfinite(whole) else whole)
            if 0 <= min(a, b) and max(a, b) < self.size: self.alter(a, b, z, np.uint8(code), hp)

    def alter(self, *voxel): alter(self.g, 0, *voxel)

    def repair(self, m, c):
        "A random state"
        rng = self.rng
        timer = lambda chance, most: rng.uniform(0, most)*(rng.uniform() < chance)
        m['alive'], m['shut'], m['hp'], m['leg'] = 1, 0, c.hp*rng.uniform(.1, 1), timer(.8, c.leg)
        m['heat'], most = c.capacity*rng.uniform(0, 1.1), 50 if m['leg'] == 0 else 100
        m['stability'] = rng.uniform(1, most)
        m['down'], m['steady'], m['suppressed'] = timer(.1, 3), timer(.2, 2), timer(.2, 1.2)
        m['painted'], m['ams'], m['jolt'], m['painter'] = timer(.3, 5), timer(.5, 1), 0, -1
        m['ecm'] = m['died'] = m['lost'] = m['flying'] = m['bursting'] = 0
        if m['painted'] > 0: m['painter'] = (1 - m['team'])*self.n
        for k in range(4): m[f'cool{k}'] = timer(.7, 1)
        m['vx'], m['vy'], m['vz'] = rng.uniform(-5, 5), rng.uniform(-5, 5), 0

    def place(self, b, k, m, gap):
        "Somewhere it fits, on a ground or in the air"
        rng, o = self.rng, b.mechs[k]
        for tries in range(200):
            side = 2*m['team'] - 1 if self.rng.uniform() < .8 else 0
            x, y = np.float32(self.centre + rng.normal(0, 1 + gap/2 + tries/20, 2) + (side*gap/2, 0))
            z = np.float32(rng.choice([0., 1., 3., b.H]) + rng.uniform(0, 1)*(rng.uniform() < .3))
            if not b.fits(o, float(x), float(y), float(z)): continue
            low = b.ground(o, float(x), float(y), float(z))
            m['grounded'] = rng.uniform() < .8
            if m['grounded']: z = low
            else: m['vz'] = rng.uniform(-12, 6)
            m['x'], m['y'], m['z'] = x, y, z
            return
        raise AssertionError('no room')

    def face(self, m):
        "Turn it to a random enemy, more or less"
        o = self.rng.choice(self.g.mech[0][self.g.mech[0]['team'] != m['team']])
        angle = math.atan2(o['y'] - m['y'], o['x'] - m['x']) + self.rng.normal(0, .3)
        m['hx'], m['hy'] = math.cos(angle), math.sin(angle)

    def wish(self):
        "What everybody wants during the next decision, and what the sensors would have left"
        rng, g, b = self.rng, self.g, self.load()
        for m, o in zip(g.mech[0], b.mechs):
            foes = b.enemies(o)
            if not o.alive or not foes: continue
            near = min(foes, key=lambda f: b.apart(o, f))
            dx, dy = near.x - o.x, near.y - o.y
            turn = math.atan2(o.hx*dy - o.hy*dx, o.hx*dx + o.hy*dy)
            m['turn'], m['forward'] = np.clip(turn*3 + rng.normal(0, .3), -1, 1), rng.uniform(-.6, 1)
            m['strafe'], m['jet'] = rng.uniform(-1, 1), rng.uniform(0, 1)*(rng.uniform() < .4)
            length = max(1., math.hypot(m['forward'], m['strafe']))    # as wishes are decoded
            m['forward'], m['strafe'] = m['forward']/length, m['strafe']/length
            for k in range(4): m[f'fire{k}'] = rng.uniform() < (.85 if k < 3 else .05)
            m['vent'], m['focus'] = rng.uniform() < .08, rng.integers(2*self.n) if rng.uniform() < .4 else -1
            m['ecm'] = rng.integers(3) if b.awake(o) else 0
            m['quality'] = rng.uniform(.25, 1.5)
            m['liquid'] = rng.integers(3) if self.wild and rng.uniform() < .2 else b.liquid(o)


def apart(mine, other): return not abs(mine - other) <= 1e-4*max(1., abs(other))


def rows(key, got, want, names):
    "Differing fields of one record"
    for name in names:
        a, b = got[name].item(), getattr(want, name)
        if apart(a, b): yield key, f'{name}: {a!r}, expected {b!r}'


def mech_faults(before, got, battle):
    for i, m in enumerate(battle.mechs):
        names = LASTING + (LAST if before['alive'][i] else ()) + (ALIVE if m.alive else ())
        yield from rows(i, got[i], m, names)
        if before['alive'][i]:
            hits = [got[f'hit{k}'][i].item() for k in range(4)]
            if hits != m.hits: yield i, f'hit: {hits}, expected {m.hits}'
            if 'knocked' in got.dtype.names: yield from rows(i, got[i], m, ['knocked'])


def shot_faults(g, battle):
    for i, row in enumerate(battle.shots):
        for k, s in enumerate(row):
            names = ('state', *(FLYING if s.state == 1 else BURST if s.burst else ()))
            yield from rows(('shot', i, k), g.shot[0, i, k], s, names)
        flying, m = sum(1 << k for k in range(8) if g.shot[0, i, k]['state'] == 1), g.mech[0, i]
        if m['flying'] != flying: yield None, f"flying of row {i}: {m['flying']}, expected {flying}"
    for i, c in enumerate(battle.clouds):
        yield from rows(('cloud', i), g.cloud[0, i], c, ('left', *('xyz' if c.left > 0 else '')))


def voxel_faults(g, battle):
    now = current(g, 0, battle.size)
    for cell in np.argwhere(now != battle.voxels).tolist():
        got, want = now[tuple(cell)], battle.voxels[tuple(cell)]
        yield ('voxel', *cell), f'material: {got}, expected {want}'
    for a, b, z, hp in g.changes[0, :g.changed[0, 0]][['a', 'b', 'z', 'hp']].tolist():
        if hp != (left := battle.left((a, b, z))) and apart(hp, left):
            yield ('voxel', a, b, z), f'hp: {hp}, expected {left}'


def judge(faults, close):
    "The first fault that nothing explains, and how many calls were too close and fell differently"
    own = {f[0] for f in faults if f[0] in close}
    if faults and not own: return faults[0], 0
    return None, len(own)


@cache
def fight(number):
    "One battle tick by tick; what happened, and the first unexplained difference"
    field, out = Field(number), SimpleNamespace(seen=Counter(), decisions=0, close=0, explained=0, fault='')
    g = field.g
    for d in range(DECISIONS):
        if d % SCATTER == 0: field.scatter()
        field.wish()
        for t in range(5):
            when, before = 5*d + t, g.mech[0].copy()
            g.world['tick'] = when if PER_TICK else 5*d
            battle = field.load()
            close = battle.tick(when)
            one(g, 0, t)
            faults = [*mech_faults(before, g.mech[0], battle), *shot_faults(g, battle)]
            faults += voxel_faults(g, battle)
            bad, explained = judge(faults, close)
            out.seen += battle.seen
            out.decisions, out.close = out.decisions + battle.decisions, out.close + len(close)
            out.explained += explained
            if bad:
                out.fault = f'battle {number}, tick {when}, {bad[0]}: {bad[1]} ({len(faults)}: {faults})'
                return out
    assert g.changed[0, 1] == 0, 'the list of changes is full: choose a smaller battle'
    return out


def examine(number):
    result = fight(number)
    assert not result.fault, result.fault[:2000]


def rarely(numbers):
    total = [sum(getattr(fight(k), name) for k in numbers) for name in ('decisions', 'close', 'explained')]
    print('{} decisions, {} close, {} differ'.format(*total))
    assert total[2] <= total[0]*RARE


@pytest.mark.parametrize('number', range(BATTLES))
def test_the_simulator_follows_the_rules(number): examine(number)


@pytest.mark.deep
@pytest.mark.parametrize('number', range(BATTLES, BATTLES + 200))
def test_the_simulator_follows_the_rules_for_long(number): examine(number)


def test_differences_are_rare(): rarely(range(BATTLES))


@pytest.mark.deep
def test_differences_are_rare_for_long(): rarely(range(BATTLES, BATTLES + 200))


def test_everything_happened():
    "The battles above show every kind of event, else they would show nothing"
    seen = sum((fight(k).seen for k in range(BATTLES)), Counter())
    print(dict(seen))
    assert not [name for name in HAPPENS if not seen[name]]


# ---- sensors

def bits(row): return [k for k in range(64) if row >> k & 1]


def sensor_faults(g, battle):
    for m in battle.living():
        i, own = m.row, 1 << m.row
        yield from rows(i, g.mech[0, i], m, ('quality', 'jam', 'eccm'))
        for name, mine in (('known', battle.known), ('sees', battle.sees)):
            got = int(g.mech[0, i][name]) & ~own
            for j in bits(got ^ (mine[i] & ~own)):
                yield ('pair', i, j), f'{name}: {bits(got)}, expected {bits(mine[i] & ~own)}'
        if g.mech[0, i]['liquid'] != battle.liquid(m): yield i, f"liquid: {g.mech[0, i]['liquid']}"


def track_faults(g, battle, tracks):
    n = battle.n
    for m in battle.living():
        for o in (o for o in battle.mechs if o.team != m.team and o.alive):
            if battle.known[m.row] >> o.row & 1: continue
            got, (state, age) = g.track[0, o.row % n, m.row], tracks.get((m.row, o.row), ({}, -1.))
            pair, kept = ('pair', m.row, o.row), int(g.mech[0, m.row]['tracked']) >> o.row & 1
            mine = got['age'].item() if kept else -1.
            if apart(mine, age): yield pair, f'age: {mine}, expected {age}'
            else: yield from rows(pair, got, SimpleNamespace(**state), state)


def adopt(g, n):
    "The tracks of the simulator, as the oracle keeps them"
    names, of = [name for name in g.track.dtype.names if name not in ('age', 'flags')], g.track[0]
    rows = [(i, (1 - i//n)*n + k, of[k, i]) for i in range(2*n) for k in range(n)]
    return {(i, j): ({name: t[name].item() for name in names}, t['age'].item())
            for i, j, t in rows if int(g.mech[0, i]['tracked']) >> j & 1}


def widened(close, rows):
    "A close call about a mech concerns all reports; one about who sees whom concerns all who are told"
    pairs = {(k[2] if isinstance(k, tuple) else None) for k in close}
    return close | {('pair', i, j) for i in rows for j in rows if j in pairs or None in pairs}


def watch(number, decisions=60):
    "Sensors of one battle, decision by decision"
    field, tracks, known, public = Field(number), {}, {}, {}
    seen, g, rng, n = Counter(), field.g, field.rng, field.n
    field.scatter()
    for d in range(decisions):
        action = rng.uniform(-1, 1, field.world.action.shape).astype(np.float32)
        action[..., 0] = abs(action[..., 0])
        field.world.step(action)
        if g.world['over'][0]: break
        battle = field.load()
        close = widened(battle.sensors(), range(2*n))
        faults = list(sensor_faults(g, battle))
        if d:
            battle.follow(tracks, known, public)
            faults += track_faults(g, battle, tracks)
        bad, _ = judge(faults, close)
        assert not bad, f'battle {number}, decision {d}, {bad[0]}: {bad[1]} ({len(faults)} differences)'
        seen += battle.seen + Counter(track=len(tracks))
        known, public = dict(enumerate(g.mech[0]['known'].tolist())), [battle.public(m) for m in battle.mechs]
        if faults or not d: tracks = adopt(g, n)
    return seen


def test_sensors_follow_the_rules():
    seen = sum((watch(k) for k in (0, 1, 2, 3, 4, 7, 15, 19)), Counter())
    print(dict(seen))
    for name in ('radar', 'glow', 'paint', 'report', 'track', 'unheard'): assert seen[name], name


# ---- the oracle itself, by hand

def stage(*mechs,        # class, team, x, y and what else differs
          voxels=None):  # uint8 [S,S,H]
    "A battle of mechs that stand on a bare floor and look along x; place 0 of each team, place 1, …"
    rows = np.zeros(len(mechs), MECH)
    for m, (kind, x, y, more) in zip(rows, mechs):
        c = EnvConfig().classes[kind]
        m['kind'], m['x'], m['y'] = KINDS.index(kind), x, y
        m['hx'] = m['alive'] = m['grounded'] = 1
        m['hp'], m['leg'], m['stability'], m['quality'] = c.hp, c.leg, 100, 1
        m['painter'] = m['focus'] = -1
        for name, value in more.items(): m[name] = value
    n = len(mechs)//2
    rows['team'], rows['place'] = np.arange(2*n)//n, np.arange(2*n) % n
    world = np.zeros(1, WORLD)[0]
    world['key'], world['size'] = 7, 40
    voxels = np.zeros((40, 40, 20), np.uint8) if voxels is None else voxels
    return Battle(EnvConfig(), rows, np.zeros((2*n, 8), SHOT), np.zeros(2*n, CLOUD), world, voxels)


def play(battle, ticks):
    for t in range(ticks): battle.tick(t)
    return battle.mechs


FAR = dict(alive=0)   # somebody who is not there


def flat(dose): return round(dose.damage, 4), round(dose.stability, 4), dose.direct, dose.legs


def test_heat_after_a_second():
    "Scout: 13/s of cooling, venting thrice that; ECM heats by 3/s, lava by 40/s, water cools by 30/s"
    for more, heat in ((dict(), 37.), (dict(vent=1), 11.), (dict(ecm=1), 40.), (dict(liquid=2), 77.),
                       (dict(liquid=1), 7.)):
        m, _ = play(stage(('scout', -10, 0, dict(heat=50., **more)), ('scout', 10, 0, FAR)), 20)
        assert m.heat == pytest.approx(heat, abs=1e-4), more
    m, _ = play(stage(('scout', 0, 0, dict(heat=200.)), ('scout', 10, 0, FAR)), 1)
    assert m.heat == pytest.approx(1.4*75 - .65, abs=1e-4) and m.shut


def test_a_shutdown_lasts_until_80_percent():
    "From 1.4 × 130 = 182 down to 104 at 10/s: 7.8 s"
    battle, ticks = stage(('heavy', -10, 0, dict(heat=200., forward=1.)), ('heavy', 10, 0, FAR)), 0
    m, _ = play(battle, 1)
    while m.shut:
        assert m.x == -10
        ticks, _ = ticks + 1, play(battle, 1)
    assert ticks in (155, 156) and m.x > -10 and m.overheats == 1


def test_a_knockdown():
    "Down for 60 ticks, up at half stability; safe for 40 ticks more"
    battle = stage(('medium', -10, 0, dict(stability=4., jolt=9., forward=1.)), ('medium', 10, 0, FAR))
    m = battle.mechs[0]
    play(battle, 1)
    assert m.down == 3 and m.stability == 0
    play(battle, 59)
    assert 0 < m.down < .06 and m.stability == 0 and abs(m.vx) < .01
    x = m.x
    play(battle, 2)
    assert m.down == 0 and m.x > x and m.steady == pytest.approx(2, abs=.06) and 50 <= m.stability < 51.1
    m.jolt = 80.
    play(battle, 1)
    assert m.stability == 0 and m.down == 0 and battle.seen['held up'] == 1
    m.steady, m.jolt = 0., 80.
    play(battle, 1)
    assert m.down == 3


def test_stability_comes_back():
    "10/s standing, 5 legged, 2.5 suppressed, 1 for both at once; never above 50 when legged"
    both = dict(suppressed=2., leg=0.)
    for more, gain in (({}, 10), (dict(leg=0.), 5), (dict(suppressed=2.), 2.5), (both, 1)):
        m, _ = play(stage(('medium', 0, 0, dict(more, stability=20.)), ('medium', 10, 0, FAR)), 20)
        assert m.stability == pytest.approx(20 + gain, abs=1e-3), more
    assert play(stage(('medium', 0, 0, dict(leg=0.)), ('medium', 10, 0, FAR)), 1)[0].stability == 50


def shell(battle, name, owner, x, y, z, v, struck):
    "A shot that has just burst"
    s = battle.shots[owner][0]
    s.weapon, s.state, s.struck, s.a = battle.names.index(name), 2, struck, -1
    s.x, s.y, s.z, (s.vx, s.vy, s.vz) = x, y, z, v
    for m in battle.mechs: m.hits = [-1]*4
    return s


def test_splash_falls_off():
    "A missile that struck another: half of 40 and 15, less with distance to the box; not through a wall"
    voxels = np.zeros((40, 40, 20), np.uint8)
    voxels[20, 24, 0:4] = CODES['solid']
    battle = stage(*(('scout', x, y, {}) for x, y in ((0, 0), (0, 6), (2.2, 0), (9, 9))), voxels=voxels)
    m, behind = battle.mechs[:2]
    shell(battle, 'missiles', 3, 1.6, 0., 1., (-12., 0., 0.), 2)          # 1.0 from the box of m
    dose, = battle.gather(m)
    assert flat(dose) == (40*.5*.6, 15*.5*.6, False, False) and (dose.dx, dose.dy) == (-1, 0)
    battle.mechs[2].hx = -1.
    assert flat(battle.gather(battle.mechs[2])[0])[:3] == (60., 22.5, True)
    shell(battle, 'missiles', 3, 0., 3.5, 1., (0., -12., 0.), -1)
    assert not battle.gather(behind) and battle.seen['splash hidden'] == 1
    shell(battle, 'autocannon', 3, 1.6, 0., 1., (-12., 0., 0.), 2)
    assert not battle.gather(m)


def test_rear_and_paint():
    "From behind half as much again, if within 45° of where it looks; on paint a tenth more"
    for vx, vy, damage in ((25., 0., 12.), (-25., 0., 8.), (20., 19., 12.), (19., 20., 8.)):
        battle = stage(('scout', 0, 0, {}), ('scout', 9, 9, {}))
        shell(battle, 'autocannon', 1, 0., 0., 1.8, (vx, vy, 0.), 0)
        assert flat(battle.gather(battle.mechs[0])[0]) == (damage, damage*5/8, True, False), (vx, vy)
        battle.mechs[0].painted = 1.
        assert battle.gather(battle.mechs[0])[0].damage == pytest.approx(damage*1.1)


def test_a_leg_hit():
    "Legs take all, the body half"
    battle = stage(('scout', 0, 0, dict(leg=5.)), ('scout', 9, 9, {}))
    shell(battle, 'autocannon', 1, 0., 0., .01, (-25., 0., 0.), 0)
    m = battle.mechs[0]
    battle.suffer()
    battle.credit()
    assert battle.doses[0][0].legs and (m.leg, m.hp, m.suppressed, m.stability) == (0, 56, 1.2, 95)
    assert battle.mechs[1].dealt == 4 and (m.from_x, m.from_y) == (4, 0)


def test_smoke_cuts_a_line():
    "A ball of radius 4"
    battle = stage(('medium', -6, 0, dict(fire0=1)), ('medium', 5, 0, dict(hx=-1)))
    blue, red = battle.mechs
    cloud = battle.clouds[0]
    for y, free in ((3.99, False), (4.01, True)):
        cloud.x, cloud.y, cloud.z, cloud.left = 0., y, 1.5, 1.
        assert battle.visible(blue, red) == free
    cloud.y, blue.x = 3.9, -4.
    battle.tick(0)
    assert blue.fired == 0 and blue.heat == 0
    cloud.left = .01
    battle.tick(1)
    assert blue.fired == 1 and blue.heat == 22 and red.hp == 136 and red.heat == 6


def test_a_wall_cuts_a_line():
    "Solid cuts sight and fire, glass fire alone, foliage sight alone, water nothing"
    for name, sees, hits in (('solid', 0, 0), ('glass', 1, 0), ('foliage', 0, 1), ('water', 1, 1)):
        voxels = np.zeros((40, 40, 20), np.uint8)
        voxels[20, 20, 1] = CODES[name]
        battle = stage(('medium', -4, .5, dict(fire0=1)), ('medium', 4, .5, {}), voxels=voxels)
        assert battle.visible(*battle.mechs) == sees
        assert battle.free(*map(battle.middle, battle.mechs), battle.move) == hits
        assert battle.tick(0) is not None and battle.mechs[0].fired == (name == 'water')


def test_a_gauss_slug_flies_and_breaks_things():
    "Two voxels a tick; it drops onto what it aimed at; it cracks a wall"
    battle = stage(('heavy', -15, 0, dict(fire2=1)), ('heavy', 0, 0, dict(hx=-1)))
    play(battle, 8)
    red = battle.mechs[1]
    assert red.hp in (150, 175) and red.stability < 100 and battle.seen['burst at mech'] == 1
    voxels = np.zeros((40, 40, 20), np.uint8)
    voxels[20, 20, 2], voxels[20, 20, 3] = CODES['solid'], CODES['glass']
    battle = stage(('heavy', -5, .5, dict(fire2=1, z=.5)), ('heavy', 15, 15, {}), voxels=voxels)
    play(battle, 8)
    assert battle.left((20, 20, 2)) == 50 and 3 < battle.left((20, 20, 3)) < 5
    assert battle.seen['along the nose'] == 1


def test_a_wreck():
    "A medium leaves a layer of debris in 3 × 3 columns, on what stands there, not where somebody stands"
    voxels = np.zeros((40, 40, 20), np.uint8)
    voxels[20, 20, 0] = CODES['solid']
    battle = stage(('medium', .5, .5, dict(hp=.1, liquid=2, z=1.)), ('scout', 2.4, .5, {}), voxels=voxels)
    battle.tick(0)
    laid = set(map(tuple, np.argwhere(battle.voxels == CODES['debris']).tolist()))
    assert laid == {(19, 19, 0), (19, 20, 0), (19, 21, 0), (20, 19, 0), (20, 20, 1), (20, 21, 0)}
    assert battle.seen['no room for a wreck'] == 3
    assert not battle.mechs[0].alive and battle.mechs[0].took == pytest.approx(.1)


def test_sensors_by_hand():
    "ECM at 25 of 50: quality 1 − .85/2; radar of a scout 14 × 1.5 × quality, halved by its own emission"
    battle = stage(('scout', -12.5, 0, {}), ('scout', 12.5, 0, dict(ecm=1)))
    battle.sensors()
    blue, red = battle.mechs
    assert blue.jam == .5 and blue.quality == pytest.approx(.575) and red.quality == 1
    assert battle.known == {0: 2, 1: 1} and battle.sees == {0: 3, 1: 3}
    battle.sight[20] = True
    battle.sensors()
    assert battle.sees == {0: 1, 1: 2} and battle.known == {0: 2, 1: 0}
    red.ecm, red.painted = 0, 1.
    battle.sensors()
    assert battle.known == {0: 2, 1: 0}
    red.painted = 0.
    battle.sensors()
    assert battle.known == {0: 0, 1: 0}
