"""The rules of combat once more, in slow plain Python, written from the text alone.

A `Battle` is loaded from the state of one world before a tick, advances it, and says which of its decisions
were too close to call for numbers of single precision (`close`): a mech by its row, a shot as
('shot', row, slot), a voxel as ('voxel', a, b, z), in the sensors a pair as ('pair', row, row of the enemy).
"""
import math
from collections import Counter, namedtuple
from types import SimpleNamespace

import numpy as np

from echelon.core import draw
from echelon.sim.voxels import CODES, TABLE

EPS = 1e-4                     # nearer to a threshold than this (relative above 1) is a close call
MOST_HEAT = 1.4                # shares of the capacity: never hotter after cooling, ...
AWAKE_HEAT = .8                # ... cool enough to wake up, and hot enough to glow
DOWN, STEADY, STOOD = 3., 2., .5  # s on the ground, s safe after it, share of stability then
REGENERATION = 10.             # stability/s
STANDING = .5                  # vox/s, slower is not moving
LAVA_HEAT, WATER_COOL, LAVA_DAMAGE = 40., 30., 5.   # per s
GRAVITY, DRIVE_TAU = 9.81, .15
JET_HEAT, JET_CEILING = 40., 8.
STEP_UP, TOLERANCE = 1.1, 1e-4
SAFE_FALL, JOLT = 6., 8.       # vox/s, stability per vox/s above it
LOCK, OWN_SIGHT = .70, 12.     # quality for a missile on paint; vox of one without
LOFT, LOFT_SHARE, TURN_GAIN = 12., .8, 4.
CLOUD, CLOUD_SECONDS = 4., 10.
AMS_REACH, AMS_WAIT, AMS_CHANCE = 5.5, 1., .60
REAR, REAR_FACTOR, PAINT_FACTOR = math.cos(math.radians(45)), 1.5, 1.1
LEGS, SPREAD = .3, .5
PAINTED, SUPPRESSED = 5., 1.2
SIGHT, RADAR, GLOW = 60., 14., 50.
SUITE_RANGE = dict(scout=1.5, light=1.2, medium=1., heavy=.8)
COMM, TRACK = .5, 5.
HITSCAN, STRAIGHT = ('laser', 'flamer', 'painter'), ('autocannon', 'smoke')
NOSE = ('gauss', 'autocannon', 'smoke')
PUBLIC = ('x', 'y', 'z', 'vx', 'vy', 'vz', 'hx', 'hy')
SINGLE = lambda v: float(np.float32(v))

Dose = namedtuple('Dose', 'row name damage stability direct legs dx dy')


def records(array):
    "Rows of a structured array as objects with plain numbers"
    return [SimpleNamespace(**dict(zip(array.dtype.names, row))) for row in array.tolist()]


def unit(*v):
    "A vector of length 1, or of length 0 where there is no direction"
    length = math.hypot(*v)
    return [c/length if length else 0. for c in v]


def share(p, q, low, high):
    "From which to which share of the way p → q it is inside a box; the second is less where it passes by"
    t0, t1 = 0., 1.
    for a, b, l, h in zip(p, q, low, high):
        if a == b:
            if not l <= a < h: return 1., 0.
            continue
        u, v = (l - a)/(b - a), (h - a)/(b - a)
        t0, t1 = max(t0, min(u, v)), min(t1, max(u, v))
    return t0, t1


class Battle:
    "One world"
    def __init__(self, config,    # EnvConfig
                 mech,            # MECH [N]
                 shot,            # SHOT [N,8]
                 cloud,           # CLOUD [N]
                 world,           # a WORLD record
                 voxels,          # uint8 [S,S,H]: materials as they are now
                 hp=None):        # (a, b, z) → hit points left, of damaged voxels
        self.config, self.names, self.seen = config, list(config.weapons), Counter()
        self.weapons, self.classes = list(config.weapons.values()), list(config.classes.values())
        self.mechs, self.clouds = records(mech), records(cloud)
        self.shots = [records(row) for row in shot]
        self.key, self.size, self.n = np.uint64(world['key']), int(world['size']), len(mech)//2
        self.voxels, self.hp, self.H = voxels.copy(), dict(hp or {}), voxels.shape[2]
        self.move, self.sight = TABLE['move'][voxels], TABLE['sight'][voxels]
        self.dt = SINGLE(config.dt_sim)
        self.widest = max(c.width for c in self.classes)/2
        self.close, self.decisions, self.t = set(), 0, 0
        for i, m in enumerate(self.mechs): self.know(i, m)

    def know(self, i, m):
        "What follows from the class of a mech"
        c = self.classes[m.kind]
        m.row, m.c, m.half, m.height = i, c, c.width/2, c.height
        m.slots = [s if s in self.names else '' for s in (c.primary, c.secondary, c.tertiary, c.special)]
        m.defends = bool(getattr(c, 'ams', list(self.config.classes)[m.kind] == 'heavy'))
        m.burst = m.died = 0

    # ---- comparisons, counted

    def less(self, a, b, *who, near=EPS):
        "Whether a < b; a close call for `who` it concerns"
        self.decisions += 1
        if abs(a - b) < near*max(1., abs(b)): self.close.update(who)
        return a < b

    def floor(self, v, *who):
        "Which cell a coordinate is in; whole numbers are exact"
        self.decisions += 1
        if 0 < abs(v - round(v)) < EPS: self.close.update(who)
        return math.floor(v)

    def ceil(self, v, *who): return -self.floor(-v, *who)

    def chance(self, m, purpose):
        "The only source of chance"
        return float(draw(self.key, self.t, m.place, purpose))

    # ---- who and where

    def awake(self, m): return bool(m.alive and not m.shut and m.down <= 0)
    def living(self): return [m for m in self.mechs if m.alive]
    def enemies(self, m): return [o for o in self.mechs if o.team != m.team and o.alive]
    def middle(self, m): return m.x, m.y, m.z + m.height/2
    def box(self, m): return (m.x - m.half, m.y - m.half, m.z), (m.x + m.half, m.y + m.half, m.z + m.height)

    def most(self, m): return 50. if m.leg <= 0 else 100.

    def turns(self):
        "Rows in the order place 0 blue, place 0 red, place 1 blue, …"
        return [self.mechs[side*self.n + place] for place in range(self.n) for side in (0, 1)]

    # ---- lines

    def inner(self, p): return p[0] + self.size/2, p[1] + self.size/2, p[2]

    def passed(self, p, q, blocks, grow):
        "Voxels whose cells, larger by `grow` on every side, the segment p → q (indices) passes: (t, cell)"
        top, out = (self.size, self.size, self.H), []
        low = [max(0, math.floor(min(c) - grow)) for c in zip(p, q)]
        high = [min(s, math.floor(max(*c) + grow) + 1) for s, *c in zip(top, p, q)]
        if any(l >= h for l, h in zip(low, high)): return out
        if not blocks[low[0]:high[0], low[1]:high[1], low[2]:high[2]].any(): return out
        for a in range(low[0], high[0]):
            t0, t1 = share(p[:1], q[:1], (a - grow,), (a + 1 + grow,))
            if t0 > t1: continue
            ends = [p[1] + (q[1] - p[1])*t for t in (t0, t1)]
            b0, b1 = math.floor(min(ends) - grow), math.floor(max(ends) + grow) + 1
            for b in range(max(low[1], b0), min(high[1], b1)):
                out += self.stack(p, q, blocks, a, b, low[2], high[2], grow)
        return out

    def stack(self, p, q, blocks, a, b, z0, z1, grow):
        "The same in one column"
        if not blocks[a, b, z0:z1].any(): return []
        out = []
        for cell in ((a, b, k) for k in range(z0, z1) if blocks[a, b, k]):
            t0, t1 = share(p, q, [c - grow for c in cell], [c + 1 + grow for c in cell])
            if t0 < t1: out.append((t0, cell))
        return out

    def free(self, p, q, blocks, *who):
        "Whether no voxel lies on a line"
        self.decisions += 1
        p, q = self.inner(p), self.inner(q)
        if not self.passed(p, q, blocks, EPS): return True
        if self.passed(p, q, blocks, -EPS): return False
        self.close.update(who)
        return not self.passed(p, q, blocks, 0.)

    def clear(self, p, q, *who):
        "Whether no smoke cuts a line (the section on smoke and lines)"
        for c in self.clouds:
            if c.left <= 0: continue
            d, e = [b - a for a, b in zip(p, q)], [o - a for a, o in zip(p, (c.x, c.y, c.z))]
            length = sum(k*k for k in d)
            t = min(1., max(0., sum(k*l for k, l in zip(d, e))/length)) if length else 0.
            if self.less(math.dist([a + k*t for a, k in zip(p, d)], (c.x, c.y, c.z)), CLOUD, *who):
                self.seen['line cut by smoke'] += 1
                return False
        return True

    def visible(self, m, o, *who):
        "A free line from middle to middle: no voxel that blocks sight and no smoke"
        p, q = self.middle(m), self.middle(o)
        return self.free(p, q, self.sight, *who) and self.clear(p, q, *who)

    # ---- A: timers and heat

    def down_to_zero(self, t): return SINGLE(t - self.dt if t - self.dt > self.dt/2 else 0.)

    def cool_down(self):
        "Phase A"
        for c in self.clouds: c.left = self.down_to_zero(c.left)
        for m in self.living():
            for name in ('cool0', 'cool1', 'cool2', 'cool3', 'ams', 'painted', 'suppressed'):
                setattr(m, name, self.down_to_zero(getattr(m, name)))
            if m.painted == 0: m.painter = -1
            self.rise(m)
            if m.down <= 0: self.regenerate(m)
            self.heat_up(m)
            self.shut_down(m)
            if not self.awake(m): m.ecm = 0

    def rise(self, m):
        "A2: time on the ground, and after it"
        if m.down <= 0:
            m.steady = self.down_to_zero(m.steady)
            return
        m.down = self.down_to_zero(m.down)
        if m.down == 0:
            m.stability, m.steady = STOOD*self.most(m), STEADY
            self.seen['stood up'] += 1

    def regenerate(self, m):
        "A3, A4: stability comes back"
        moving = self.less(STANDING, math.hypot(m.vx, m.vy), m.row)
        rate = max(.1, 1 - .5*(m.leg <= 0) - .5*moving - .75*(m.suppressed > 0))
        m.stability = min(self.most(m), m.stability + self.dt*REGENERATION*rate)

    def heat_up(self, m):
        "A5: what heats, then what cools"
        added = {0: 0., 1: 3., 2: 2.}[m.ecm] + {0: 0., 1: -WATER_COOL, 2: LAVA_HEAT}[m.liquid]
        vents = m.vent and not m.shut and m.down <= 0 and not (m.jet > 0 and m.c.jet > 0)
        happened = dict(vent=vents, water=m.liquid == 1, lava=m.liquid == 2, ecm=m.ecm == 1, eccm=m.ecm == 2)
        for name, fact in happened.items(): self.seen[name] += bool(fact)
        hot = min(m.heat + added*self.dt, MOST_HEAT*m.c.capacity)
        m.heat = max(0., hot - m.c.cooling*(3 if vents else 1)*self.dt)

    def shut_down(self, m):
        "A6"
        if not m.shut and self.less(m.c.capacity, m.heat, m.row):
            m.shut, m.overheats = 1, m.overheats + 1
            self.seen['shutdown'] += 1
        elif m.shut and self.less(m.heat, AWAKE_HEAT*m.c.capacity, m.row):
            m.shut = 0
            self.seen['restart'] += 1

    # ---- B, C: motion

    def footprint(self, m, x, y):
        "Columns that a box touches: a0, a1, b0, b1, the ends excluded"
        half = self.size//2
        ends = (self.floor, -m.half), (self.ceil, m.half)
        return [f(c + h, m.row) + half for c in (x, y) for f, h in ends]

    def outside(self, a0, a1, b0, b1): return a0 < 0 or b0 < 0 or a1 > self.size or b1 > self.size

    def fits(self, m, x, y, z):
        "No movement-blocking voxel in the box"
        a0, a1, b0, b1 = ends = self.footprint(m, x, y)
        if self.outside(*ends) or z < 0: return False
        k0, k1 = self.floor(z, m.row), min(self.ceil(z + m.height, m.row), 32)
        return not self.move[a0:a1, b0:b1, k0:k1].any()

    def ground(self, m, x, y, z):
        "Top of the highest movement-blocking voxel below floor(z) under the footprint"
        a0, a1, b0, b1 = ends = self.footprint(m, x, y)
        k = self.floor(z, m.row)
        if self.outside(*ends): return float(k)
        blocked = np.flatnonzero(self.move[a0:a1, b0:b1, :k].any((0, 1)))
        return float(blocked[-1] + 1) if len(blocked) else 0.

    def drive(self):
        "Phase B"
        for m in self.living(): self.steer(m)
        for m in self.living():
            feet = self.walk(m)
            self.land(m, feet)

    def steer(self, m):
        "Wishes become velocities; reads nothing of others"
        dt, awake = self.dt, self.awake(m)
        m.ox, m.oy, m.oz = m.x, m.y, m.z
        floor_z = m.z if m.grounded else self.ground(m, m.x, m.y, m.z)
        forward, strafe = (m.forward, m.strafe) if awake else (0., 0.)
        if awake:
            angle = m.turn*m.c.yaw_rate*dt
            c, s = math.cos(angle), math.sin(angle)
            m.hx, m.hy = m.hx*c - m.hy*s, m.hx*s + m.hy*c
        top = m.c.speed*(.4 if m.leg <= 0 else 1)*(.6 if m.liquid == 1 else 1)
        s, blend = top/max(math.hypot(forward, strafe), 1.), 1 - math.exp(-dt/DRIVE_TAU)
        m.vx += ((forward*m.hx + strafe*m.hy)*s - m.vx)*blend
        m.vy += ((forward*m.hy - strafe*m.hx)*s - m.vy)*blend
        m.vz -= GRAVITY*dt
        if awake and m.jet > 0 and m.c.jet > 0: self.thrust(m, floor_z)

    def thrust(self, m, floor_z):
        "Jets"
        m.heat += JET_HEAT*m.jet*self.dt
        if self.less(JET_CEILING, m.z - floor_z, m.row): self.seen['too high for jets'] += 1
        else: m.vz += m.c.jet*m.jet*self.dt*(.5 if m.leg <= 0 else 1)
        self.seen['jets'] += 1

    def neighbours(self, m):
        "Other living mechs near enough to matter"
        reach = m.half + self.widest + 1
        near = lambda o: abs(o.ox - m.ox) < reach and abs(o.oy - m.oy) < reach
        return [o for o in self.living() if o is not m and near(o)]

    def overlaps(self, m, o, x, y):
        "How far the boxes of m at (x, y) and o overlap along x and y, or None; heights as before the tick"
        px, py = (m.half + o.half - abs(d) for d in (x - o.ox, y - o.oy))
        apart = [self.less(0., v, m.row) for v in (px, py, o.oz + o.height - m.oz, m.oz + m.height - o.oz)]
        return (px, py) if all(apart) else None

    def crowded(self, m, near, x, y):
        "Whether a place lets an overlap grow"
        for o in near:
            new, old = (self.overlaps(m, o, *at) for at in ((x, y), (m.ox, m.oy)))
            before = (min(old) if old else 0.) + TOLERANCE
            if new and self.less(before, min(new), m.row, near=TOLERANCE/3): return True
        return False

    def stand(self, m, near, x, y):
        "Height of the feet at a place, or None for a refusal"
        feet = m.oz if self.fits(m, x, y, m.oz) else None
        up = self.floor(m.oz, m.row) + 1.
        if feet is None and m.grounded and not self.less(STEP_UP, up - m.oz, m.row):
            feet = up if self.fits(m, x, y, up) else None
            self.seen['step up'] += feet is not None
        return None if feet is None or self.crowded(m, near, x, y) else feet

    def walk(self, m):
        "Try the way, then its parts along x and y; then the push of neighbours. Returns the feet's height"
        near = self.neighbours(m)
        m.nx, m.ny, feet = m.ox, m.oy, None
        x, y = m.ox + m.vx*self.dt, m.oy + m.vy*self.dt
        for nx, ny, kx, ky in ((x, y, 1, 1), (x, m.oy, 1, 0), (m.ox, y, 0, 1)):
            feet = self.stand(m, near, nx, ny)
            if feet is None: continue
            m.nx, m.ny, m.vx, m.vy = nx, ny, m.vx*kx, m.vy*ky
            break
        else:
            m.vx, m.vy, feet = 0., 0., m.oz
            self.seen['refused'] += 1
        self.push(m, near, feet)
        return feet

    def push(self, m, near, feet):
        "Half of every overlap at the old place, along its shorter side"
        sx = sy = 0.
        for o in near:
            over = self.overlaps(m, o, m.ox, m.oy)
            if not over: continue
            px, py = over
            dx, dy = m.ox - o.ox, m.oy - o.oy
            if not self.less(py, px, m.row): sx += .5*px*((dx > 0) - (dx < 0))
            else: sy += .5*py*((dy > 0) - (dy < 0))
        if (sx or sy) and self.fits(m, m.nx + sx, m.ny + sy, feet):
            m.nx, m.ny = m.nx + sx, m.ny + sy
            self.seen['push'] += 1

    def land(self, m, feet):
        "Gravity and the ground under the final place"
        floor = self.ground(m, m.nx, m.ny, feet)
        m.nz = feet + m.vz*self.dt
        if not self.less(floor, m.nz, m.row):
            if self.less(m.vz, -SAFE_FALL, m.row):
                m.jolt += JOLT*(-m.vz - SAFE_FALL)
                self.seen['hard landing'] += 1
            m.grounded, m.nz, m.vz = 1, floor, 0.
            return
        m.grounded = 0
        if m.vz > 0 and not self.fits(m, m.nx, m.ny, m.nz):
            m.nz, m.vz = feet, 0.
            self.seen['head hit'] += 1

    def arrive(self):
        "Phase C"
        for m in self.living(): m.x, m.y, m.z = m.nx, m.ny, m.nz

    # ---- D: fire

    def fire(self):
        "Phase D"
        for m in self.mechs:
            m.fired, m.hits = 0, [-1]*4
        for m in self.mechs:
            if not self.awake(m) or m.vent: continue
            for slot, name in enumerate(m.slots):
                ready = getattr(m, f'cool{slot}') == 0
                if name and ready and getattr(m, f'fire{slot}'): self.shoot(m, slot, name)

    def bearing(self, m, o, weapon):
        "Cosine of the bearing of an enemy and the distance in the plane; None out of range or arc"
        dx, dy = o.x - m.x, o.y - m.y
        away = math.hypot(dx, dy)
        cos = (dx*m.hx + dy*m.hy)/max(away, 1e-6)
        if self.less(weapon.range + m.half + o.half, away, m.row): return None
        return (cos, away) if self.less(math.cos(math.radians(weapon.arc/2)), cos, m.row) else None

    def reachable(self, m, o, name, away):
        "Whether an enemy within the bearing can be hit"
        if name == 'missiles':
            if o.painted > 0 and not self.less(m.quality, LOCK, m.row):
                self.seen['missile on paint'] += 1
                return True
            return not self.less(OWN_SIGHT + m.half + o.half, away, m.row) and self.visible(m, o, m.row)
        if not self.visible(m, o, m.row): return False
        return name not in HITSCAN or self.free(self.middle(m), self.middle(o), self.move, m.row)

    def target(self, m, name):
        "The focus if it can be hit, else the enemy nearest to the nose that can"
        weapon = self.config.weapons[name]
        able = [(o, *b) for o in self.enemies(m) if (b := self.bearing(m, o, weapon))]
        for o, cos, away in able:
            if o.row == m.focus and self.reachable(m, o, name, away):
                self.seen['focus'] += 1
                return o
        best = None
        for o, cos, away in sorted(able, key=lambda k: (-k[1], k[0].row)):
            if best and cos < best[1] - EPS: break
            if not self.reachable(m, o, name, away): continue
            if best: self.close.add(m.row)
            best = best or (o, cos)
        return best[0] if best else None

    def shoot(self, m, slot, name):
        "One trigger"
        weapon, o = self.config.weapons[name], self.target(m, name)
        if o is None and name not in NOSE: return
        m.heat, m.fired = m.heat + weapon.heat, m.fired + 1
        setattr(m, f'cool{slot}', weapon.cooldown)
        self.seen[f'fired {name}'] += 1
        if name in HITSCAN: m.hits[slot] = o.row
        else: self.launch(m, name, weapon, o)

    def launch(self, m, name, weapon, o):
        "A projectile in the lowest free slot"
        slot = next((s for s in self.shots[m.row] if s.state == 0), None)
        if slot is None:
            m.lost += 1
            self.seen['lost shot'] += 1
            return
        slot.x, slot.y, slot.z = self.middle(m)
        slot.weapon, slot.target, slot.state = self.names.index(name), o.row if o else -1, 1
        slot.left = SINGLE(weapon.range/weapon.speed)
        slot.vx, slot.vy, slot.vz = self.aim(m, name, weapon, o)
        self.seen['along the nose'] += o is None

    def aim(self, m, name, weapon, o):
        "Velocity of a new projectile"
        start = self.middle(m)
        if name == 'missiles':
            dx, dy = unit(o.x - m.x, o.y - m.y)
            return weapon.speed*dx*.8, weapon.speed*dy*.8, weapon.speed*.6
        p = [start[0] + m.hx*10, start[1] + m.hy*10, start[2]]
        if o:
            to = self.middle(o)
            t = math.dist(start, to)/weapon.speed
            p = [to[0] + o.vx*t, to[1] + o.vy*t, to[2]]
        way = [b - a for a, b in zip(start, p)]
        v = [weapon.speed*c for c in unit(*way)]
        if name == 'gauss': v[2] += .5*GRAVITY*math.hypot(*way)/weapon.speed
        return v

    # ---- E: flight

    def fly(self):
        "Phase E"
        for m in self.mechs:
            for k, s in enumerate(self.shots[m.row]):
                if s.state == 1: self.advance(m, k, s)

    def advance(self, m, k, s):
        "One shot"
        name = self.names[s.weapon]
        s.left = self.down_to_zero(s.left)
        if s.left <= 0:
            self.seen['expired'] += 1
            if name == 'smoke': self.burst(m, s, -1, (-1, -1, -1))
            else: s.state = 0
            return
        if name == 'missiles': self.home(s)
        if name == 'gauss': s.vz -= GRAVITY*self.dt
        p0 = s.x, s.y, s.z
        p1 = tuple(p + v*self.dt for p, v in zip(p0, (s.vx, s.vy, s.vz)))
        self.decisions += 1
        t, row, cell = self.first(m, p0, p1, 0.)
        if any(self.first(m, p0, p1, grow)[1:] != (row, cell) for grow in (EPS, -EPS)):
            self.close.add(('shot', m.row, k))
        s.x, s.y, s.z = (a + (b - a)*min(t, 1.) for a, b in zip(p0, p1))
        if t <= 1: self.burst(m, s, row, cell)

    def home(self, s):
        "A missile turns toward a living target"
        speed, o = self.weapons[s.weapon].speed, self.mechs[s.target]
        if s.target < 0 or not o.alive: return
        to = [b - a for a, b in zip((s.x, s.y, s.z), self.middle(o))]
        to[2] += min(LOFT, LOFT_SHARE*math.hypot(*to[:2]))
        v = [v + (speed*w - v)*TURN_GAIN*self.dt for v, w in zip((s.vx, s.vy, s.vz), unit(*to))]
        s.vx, s.vy, s.vz = (speed*c for c in unit(*v))

    def first(self, m, p0, p1, grow):
        "What a shot of m meets first on its way: share of the way (2 nothing), row, cell"
        met, none = [], (-1, -1, -1)
        for o in self.enemies(m):
            low, high = self.box(o)
            t0, t1 = share(p0, p1, [c - grow for c in low], [c + grow for c in high])
            if t0 <= t1: met.append((t0, 0, o.row, none))
        met += [(t, 1, -1, cell) for t, cell in self.passed(self.inner(p0), self.inner(p1), self.move, grow)]
        met += [(t, 2, -1, none) for t in self.leaves(p0, p1, grow)]
        t, _, row, cell = min(met, default=(2., 0, -1, none))
        return t, row, cell

    def leaves(self, p0, p1, grow):
        "Shares of the way at which it leaves the world: through the sides or the ground"
        edge = self.size/2 - grow
        sides = [(p0[k], p1[k], edge, side) for k in (0, 1) for side in (1, -1)]
        for a, b, wall, side in [*sides, (p0[2], p1[2], -grow, -1)]:
            if b*side > wall: yield max(0., (wall - a*side)/(b*side - a*side)) if a != b else 0.

    def burst(self, m, s, row, cell):
        "It stays where it met something, for this tick"
        s.state, s.struck, (s.a, s.b, s.c) = 2, row, cell
        name = self.names[s.weapon]
        kind = 'mech' if row >= 0 else 'voxel' if cell[0] >= 0 else 'edge'
        self.seen[f'burst at {kind}'] += 1
        if name != 'smoke': return
        c = self.clouds[m.row]
        c.x, c.y, c.z, c.left = s.x, s.y, s.z, CLOUD_SECONDS
        self.seen['smoke'] += 1

    # ---- F: point defence

    def point_defence(self):
        "Phase F"
        doomed = [s for m in self.mechs if m.defends and self.awake(m) and m.ams == 0 for s in self.pick(m)]
        for s in doomed:
            s.state = 0
            self.seen['intercept'] += 1

    def pick(self, m):
        "The missile that a mech chose and hit, if any"
        near = []
        for o in self.mechs:
            if o.team == m.team: continue
            for k, s in enumerate(self.shots[o.row]):
                if s.state != 1 or self.names[s.weapon] != 'missiles': continue
                away = math.dist(self.middle(m), (s.x, s.y, s.z))
                if not self.less(AMS_REACH, away, m.row, ('shot', o.row, k)): near.append((away, o.row, k, s))
        if not near: return []
        near.sort(key=lambda k: k[:3])
        for one, two in zip(near, near[1:]):
            if two[0] - near[0][0] < EPS: self.close.update((m.row, ('shot', *one[1:3]), ('shot', *two[1:3])))
        m.ams = AMS_WAIT
        hit = self.chance(m, 40) < AMS_CHANCE
        self.seen['ams missed'] += not hit
        return [near[0][3]] if hit else []

    # ---- G: victims gather

    def suffer(self):
        "Phase G"
        self.doses = {m.row: self.gather(m) for m in self.living()}
        for m in self.living(): self.bear(m, self.doses[m.row])

    def gather(self, m):
        "Doses of one victim: own side first, hitscan slots, then shots"
        out = []
        for o in sorted(self.mechs, key=lambda o: (o.team != m.team, o.row)):
            out += [self.beam(m, o, slot) for slot in range(4) if o.hits[slot] == m.row]
            for k, s in enumerate(self.shots[o.row]):
                if s.state == 2: out += self.blast(m, o, k, s)
        return out

    def dose(self, m, o, name, damage, stability, direction, direct, legs):
        "Rear arc and paint"
        dx, dy = unit(*direction)
        if self.less(REAR, dx*m.hx + dy*m.hy, m.row):
            damage, stability = damage*REAR_FACTOR, stability*REAR_FACTOR
            self.seen['rear'] += 1
        if m.painted > 0 and o.team != m.team:
            damage *= PAINT_FACTOR
            self.seen['painted bonus'] += 1
        self.seen[f'hit by {name}' if direct else 'splash'] += 1
        self.seen['legs hit'] += legs
        return Dose(o.row, name, damage, stability, direct, legs, dx, dy)

    def low(self, m, o, height, purpose):
        "Whether a direct hit at a share of the height hits the legs"
        return self.less(height + (self.chance(o, purpose) - .5)*SPREAD, LEGS, m.row)

    def beam(self, m, o, slot):
        "Dose of a hitscan weapon"
        name = o.slots[slot]
        w, way = self.config.weapons[name], (m.x - o.x, m.y - o.y)
        return self.dose(m, o, name, w.damage, w.stability, way, True, self.low(m, o, .5, 32 + slot))

    def blast(self, m, o, k, s):
        "Dose of a shot that bursts, direct or splash, in a list"
        w, name = self.weapons[s.weapon], self.names[s.weapon]
        if s.struck == m.row:
            legs = self.low(m, o, (s.z - m.z)/m.height, 48 + k)
            return [self.dose(m, o, name, w.damage, w.stability, (s.vx, s.vy), True, legs)]
        if not w.splash or not w.damage: return []
        low, high = self.box(m)
        q = math.hypot(*(max(l - c, 0., c - h) for c, l, h in zip((s.x, s.y, s.z), low, high)))
        if not self.less(q, w.splash, m.row): return []
        back = [c - .05*d for c, d in zip((s.x, s.y, s.z), unit(s.vx, s.vy, s.vz))]
        if not self.free(back, self.middle(m), self.move, m.row):
            self.seen['splash hidden'] += 1
            return []
        part = w.splash_share*(1 - q/w.splash)
        self.seen['splash on own side'] += o.team == m.team
        return [self.dose(m, o, name, w.damage*part, w.stability*part, (m.x - s.x, m.y - s.y), False, False)]

    def bear(self, m, doses):
        "What the doses do to their victim"
        m.hurt = LAVA_DAMAGE*self.dt if m.liquid == 2 else 0.
        for d in doses:
            harm = d.damage/2 if d.legs else d.damage
            if d.legs: m.leg = max(0., m.leg - d.damage)
            m.hurt += harm
            m.from_x, m.from_y = m.from_x - d.dx*harm, m.from_y - d.dy*harm
            if d.direct: self.mark(m, d)
        m.taken = min(m.hurt, m.hp)
        m.died = int(not self.less(m.hurt, m.hp, m.row))
        m.hp, m.took = m.hp - m.taken, m.took + m.taken
        self.stagger(m, sum(d.stability for d in doses) + m.jolt)
        m.jolt = 0.

    def mark(self, m, d):
        "Heat, paint and suppression of a direct hit"
        m.heat += self.config.weapons[d.name].target_heat
        if d.name == 'painter': m.painted, m.painter = PAINTED, d.row
        if d.name == 'autocannon': m.suppressed = SUPPRESSED

    def stagger(self, m, loss):
        "Stability, and the fall"
        if m.down > 0: return
        m.stability -= loss
        falls = loss > 0 and not self.less(0., m.stability, m.row)
        m.stability = max(0., m.stability)
        if falls and m.steady == 0:
            m.down, m.knocked = DOWN, getattr(m, 'knocked', 0) + 1
            self.seen['knockdown'] += 1
        elif falls: self.seen['held up'] += 1

    # ---- H: credit

    def credit(self):
        "Phase H"
        for m in self.living():
            for d in self.doses[m.row]:
                o, part = self.mechs[d.row], (d.damage/2 if d.legs else d.damage)/m.hurt if m.hurt > 0 else 0.
                if o.team != m.team: o.dealt, o.kills = o.dealt + part*m.taken, o.kills + part*m.died
                elif o is not m: o.friendly += part*m.taken
        for m in self.living():
            m.heat = min(m.heat, MOST_HEAT*m.c.capacity)
            if m.died: self.die(m)

    def die(self, m):
        "An end"
        m.alive = m.ecm = 0
        m.hp = m.vx = m.vy = m.vz = m.down = 0.
        m.deaths += 1
        self.seen['death'] += 1

    # ---- I: voxel damage

    def break_voxels(self):
        "Phase I"
        for m in self.turns():
            for s in self.shots[m.row]:
                if s.state == 2: self.crack(s)
        for row in self.shots:
            for s in row: s.burst, s.state = s.state == 2, s.state % 2

    def crack(self, s):
        "What a burst does to the landscape"
        w, met, at = self.weapons[s.weapon], (s.a, s.b, s.c), self.inner((s.x, s.y, s.z))
        if not w.damage: return
        if s.a >= 0: self.strike(met, w.damage)
        if not w.splash: return
        ends = [range(max(0, math.floor(c - w.splash)), min(top, math.ceil(c + w.splash)))
                for c, top in zip(at, (self.size, self.size, self.H))]
        for cell in ((a, b, z) for a in ends[0] for b in ends[1] for z in ends[2]):
            away = math.dist(at, [c + .5 for c in cell])
            if cell != met and self.voxels[cell] and self.less(away, w.splash, ('voxel', *cell)):
                self.strike(cell, w.damage*w.splash_share*(1 - away/w.splash))

    def left(self, cell): return self.hp.get(cell, float(TABLE['hp'][self.voxels[cell]]))

    def strike(self, cell, damage):
        "A blow to a voxel; of at least the hit points left it breaks"
        left = self.left(cell)
        if left <= 0 or math.isinf(left): return
        if self.less(damage, left, ('voxel', *cell)): self.hp[cell] = left - damage
        else: self.alter(cell, TABLE['ruin'][self.voxels[cell]])
        self.seen['voxel broken' if cell not in self.hp else 'voxel damaged'] += 1

    def alter(self, cell, code):
        "A new, whole voxel"
        self.voxels[cell], self.move[cell], self.sight[cell] = code, TABLE['move'][code], TABLE['sight'][code]
        self.hp.pop(cell, None)

    # ---- J: wrecks

    def bury(self):
        "Phase J"
        for m in self.turns():
            if not m.died: continue
            code = CODES['heavy_debris' if list(self.config.classes)[m.kind] == 'heavy' else 'debris']
            for a in self.under(m, m.x):
                for b in self.under(m, m.y):
                    for k in range(int(.4*m.height + .5)): self.heap(m, a, b, math.floor(m.z) + k, code)

    def under(self, m, v):
        "Indices of the columns whose centre lies under a box, along one axis"
        low, high = self.ceil(v - m.half - .5, m.row), self.floor(v + m.half + .5, m.row)
        return [a for a in range(low + self.size//2, high + self.size//2) if 0 <= a < self.size]

    def heap(self, m, a, b, z, code):
        "A piece of a wreck falls into place"
        solid = lambda k: k < self.H and self.move[a, b, k]
        while z > 0 and not solid(z - 1): z -= 1
        while solid(z): z += 1
        if z >= self.H: return
        low = (a - self.size/2, b - self.size/2, z)
        for o in self.living():
            inside = [self.less(p, h + 1, ('voxel', a, b, z)) and self.less(h, q, ('voxel', a, b, z))
                      for h, p, q in zip(low, *self.box(o))]
            if all(inside):
                self.seen['no room for a wreck'] += 1
                return
        self.alter((a, b, z), code)
        self.seen['wreck'] += 1

    def tick(self, t):
        "One tick, the `t`th since the game opened; returns the close calls"
        self.t, self.close = t, set()
        for phase in (self.cool_down, self.drive, self.arrive, self.fire, self.fly, self.point_defence,
                      self.suffer, self.credit, self.break_voxels, self.bury): phase()
        return self.close

    # ---- after the ticks of a decision

    def column(self, v, *who):
        "Index of the column of a coordinate, counted outward from the middle"
        if abs(v - round(v)) < EPS: self.close.update(who)
        return self.size//2 + (int(v) if v >= 0 else -1 - int(-v))

    def liquid(self, m):
        "What a living mech stands in: 0, 1 water, 2 lava"
        z = self.floor(m.z + .1, m.row)
        if z >= self.H: return 0
        code = self.voxels[self.column(m.x, m.row), self.column(m.y, m.row), z]
        return 1 if code == CODES['water'] else 2 if code == CODES['lava'] else 0

    def apart(self, m, o): return math.dist(self.middle(m), self.middle(o))

    def range(self, m): return SUITE_RANGE[list(self.config.classes)[m.kind]]

    def leads(self, m):
        "The first medium of a pack"
        return m.place % sum(self.config.pack) == self.config.pack[0] and self.config.pack[1] > 0

    def tune(self, m):
        "Jamming, counter-jamming, quality"
        best = lambda mechs: max((max(0., 1 - self.apart(m, o)/50) for o in mechs), default=0.)
        m.jam = best([o for o in self.enemies(m) if o.ecm == 1])
        m.eccm = best([o for o in self.living() if o.team == m.team and o.ecm == 2])
        m.quality = min(1.5, max(.25, 1 - .85*m.jam + .65*m.eccm))

    def sights(self, m, o, who):
        "A free line within sight range"
        far = self.less(SIGHT*self.range(m), math.hypot(o.x - m.x, o.y - m.y), who)
        return not far and self.visible(m, o, who)

    def direct(self, m, o, who):
        "How m itself may know of an enemy, without seeing it"
        away = self.apart(m, o)
        if not self.less(RADAR*m.quality*self.range(m)*(.5 if m.ecm else 1), away, who): return 'radar'
        loud = o.ecm or self.less(AWAKE_HEAT*o.c.capacity, o.heat, who)
        near = loud and not self.less(GLOW, away, who)
        if near and self.clear(self.middle(m), self.middle(o), who): return 'glow'
        return 'paint' if o.painted > 0 else ''

    def sensors(self):
        "What every living mech knows: quality, jam and eccm in the mechs; contact and sight bits by row"
        self.close, self.known, self.sees, direct = set(), {}, {}, {}
        for m in self.living(): self.tune(m)
        for m in self.living():
            foes, who = self.enemies(m), ('pair', m.row)
            seen = [o for o in foes if self.sights(m, o, (*who, o.row))]
            other = [(o, self.direct(m, o, (*who, o.row))) for o in foes]
            for o, how in other: self.seen[how or 'unheard'] += 1
            direct[m.row] = sum(1 << o.row for o, how in other if how or o in seen)
            mates = sum(1 << o.row for o in self.living() if o.team == m.team)
            self.sees[m.row] = mates | sum(1 << o.row for o in seen)
        for m in self.living(): self.known[m.row] = direct[m.row] | self.reported(m, direct)
        return self.close

    def reported(self, m, direct):
        "Contacts that mates tell of"
        out = 0
        if self.less(m.quality, COMM, m.row): return out
        for o in self.living():
            reports = list(self.config.classes)[o.kind] == 'scout' or self.leads(o)
            if o is m or o.team != m.team or not reports: continue
            if not self.less(o.quality, COMM, m.row): out |= direct[o.row]
        self.seen['report'] += bool(out & ~direct[m.row])
        return out

    def public(self, m):
        "What a track keeps of a mech"
        shares = dict(hp=m.hp/m.c.hp, heat=m.heat/m.c.capacity, stability=m.stability/100)
        return {name: getattr(m, name) for name in PUBLIC} | shares

    def follow(self, tracks,    # (observer, enemy row) → (public state, age), changed in place
               known,           # row → contact bits of the decision before
               public):         # row → public state at the decision before
        "Tracks: what was a contact and is none keeps its last state, for five seconds"
        for m in self.living():
            for o in self.mechs:
                if o.team == m.team: continue
                at, contact = (m.row, o.row), self.known[m.row] >> o.row & 1
                lost = not contact and known.get(m.row, 0) >> o.row & 1
                if lost and o.alive: tracks[at] = public[o.row], 0.
                if at not in tracks: continue
                state, age = tracks.pop(at)
                age += self.dt*self.config.decision_repeat
                if not contact and o.alive and age < TRACK - EPS: tracks[at] = state, age
