"The swarm against another library, what it keeps, its rules worked by hand, and whatever anybody does."
import numba
import numpy as np
import pymunk
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.core import kernel
from echelon.swarm import lidar
from echelon.swarm.physics import ARENAS, SLOTS, SwarmConfig, rolled, staged
from echelon.training.evaluation import evaluate
from echelon.training.trainer import TrainConfig, settled
from echelon.world import make

torch.set_num_threads(1)
BOX = (500., 400.)
FREE = dict(robot=dict(damping=.5, turn_damping=.5))   # as little damping as there may be
KEEP = np.exp(-.5/60)                                  # of the speed, in a substep, with it


# ---- the same scene in Pymunk, built from the rules and from nothing of ours

def munk(places, headings=0., speeds=(0., 0.), walls=(), arena=BOX, motors=(0., 0.), substeps=60,
         rates=(2., 8.), legacy=False):
    "x, y, vx, vy, turning of each robot before and after each substep, `[T+1,N,5]`"
    space, (w, h), n = pymunk.Space(), arena, len(places)
    space.iterations, space.collision_slop, space.damping = 50, .01, .5 if legacy else 1.
    rim = [((0, 0), (w, 0)), ((w, 0), (w, h)), ((w, h), (0, h)), ((0, h), (0, 0))]
    for a, b in rim + [((x*w, y*h), (u*w, v*h)) for x, y, u, v in walls]:
        wall = pymunk.Segment(space.static_body, a, b, 0)
        wall.elasticity, wall.friction = .5, .5
        space.add(wall)

    def damped(body, gravity, damping, dt):
        kept, turned = np.exp(-np.array(rates)*dt).tolist()
        body.velocity = body.velocity*kept + body.force/body.mass*(1 - kept)/rates[0]
        body.angular_velocity = body.angular_velocity*turned + body.torque/body.moment*(1 - turned)/rates[1]
        body.force, body.torque = (0, 0), 0

    bodies = []
    for at, angle, speed in zip(places, np.broadcast_to(headings, n), np.broadcast_to(speeds, (n, 2))):
        body = pymunk.Body(1, 50)
        body.position, body.angle, body.velocity = tuple(map(float, at)), float(angle), tuple(speed.tolist())
        if not legacy: body.velocity_func = damped
        disc = pymunk.Circle(body, 10)
        disc.elasticity, disc.friction = .2, .7
        space.add(body, disc)
        bodies.append(body)
    told = lambda: [(*b.position, *b.velocity, b.angular_velocity) for b in bodies]
    moments, motors = [told()], np.broadcast_to(np.array(motors, float), (substeps, n, 2))
    for k in range(substeps):
        for body, pair in zip(bodies, motors[k].tolist()):
            for power, y in zip(pair, (10, -10)):       # left and right of the middle
                force = power*(1000*(k % 3 == 0) if legacy else 150)
                body.apply_force_at_local_point((force, 0), (0, y))
        space.step(1/60)
        moments.append(told())
    return np.array(moments)


def course(g, substeps=60, left=0., right=0.):
    "The robots of a staged game before and after each substep, `ROBOT [T+1,N]`"
    g.robot['left'], g.robot['right'] = left, right
    moments = [g.robot[0].copy()]
    for _ in range(substeps): rolled(g, 1); moments.append(g.robot[0].copy())
    return np.array(moments)


def numbers(m): return np.stack([m[name] for name in ('x', 'y', 'vx', 'vy', 'w')], -1).astype(float)


def both(places, substeps=60, motors=(0., 0.), **scene):
    "The course of a scene with us and with them"
    theirs = munk(places, motors=motors, substeps=substeps, **scene)
    shared = {k: v for k, v in scene.items() if k not in ('rates', 'legacy')}
    if 'rates' in scene: shared['robot'] = dict(damping=scene['rates'][0], turn_damping=scene['rates'][1])
    return numbers(course(staged(places, **{'speeds': 0., **shared}), substeps, *motors)), theirs


SINGLE = dict(
    head_on=dict(places=[(200, 200), (250, 200)], speeds=[(100, 0), (-100, 0)]),
    one_stands=dict(places=[(200, 200), (260, 200)], speeds=[(140, 0), (0, 0)]),
    oblique=dict(places=[(200, 195), (250, 205)], speeds=[(100, 0), (-80, 0)]),
    graze=dict(places=[(200, 193), (260, 207)], speeds=[(100, 0), (-60, 0)]),
    into_wall=dict(places=[(450, 200)], speeds=[(140, 0)]),
    along_wall=dict(places=[(440, 200)], speeds=[(100, 90)]),
    floor=dict(places=[(250, 40)], speeds=[(-50, -120)]),
    inner_wall=dict(places=[(200, 100)], speeds=[(120, 30)], walls=((.5, 0., .5, .6),)),
    end_of_a_wall=dict(places=[(200, 200)], speeds=[(140, 0)], walls=((.5, 0., .5, .49),)))


@pytest.mark.parametrize('name', SINGLE)
def test_a_single_hit_is_pymunks(name):
    ours, theirs = both(**SINGLE[name], rates=(.5, .5))
    kick = abs(np.diff(theirs[..., 2:4], axis=0)).max((1, 2))
    k = int(np.flatnonzero(kick > 5)[0]) + 1                     # the substep of the hit
    assert abs(ours[k - 1] - theirs[k - 1]).max() < 1e-3         # until then, nothing but damping
    top = np.linalg.norm(theirs[k - 1, :, 2:4], axis=-1).max()
    skew = name in ('oblique', 'graze')      # two rims meet half-way with us, and each in the other with them
    assert abs(ours[k, :, 2:4] - theirs[k, :, 2:4]).max() < (.02 if skew else .01)*top
    for axis in (2, 3, 4):                                       # which way, and which way round
        clear = abs(theirs[k, :, axis]) > .5
        assert (np.sign(ours[k, :, axis]) == np.sign(theirs[k, :, axis]))[clear].all()
    energy = lambda a: (.5*(a[k, :, 2:4]**2).sum() + 25*(a[k, :, 4]**2).sum())
    assert abs(energy(ours)/energy(theirs) - 1) < (.06 if skew else .03)
    assert energy(ours) < energy(ours[k - 1:k].repeat(k + 1, 0))
    assert abs(ours[-1, :, :2] - theirs[-1, :, :2]).max() < 1    # u, a second on


@pytest.mark.parametrize('name, scene, motors', [
    ('against a wall', dict(places=[(440, 150)]), (1., 1.)),
    ('into a corner', dict(places=[(440, 360)], headings=.6), (1., .97)),
    ('a row at rest', dict(places=[(100, 200), (180, 200), (200.5, 200), (221, 200)],
                           speeds=[(140, 0), (0, 0), (0, 0), (0, 0)]), (0., 0.))])
def test_they_come_to_rest_where_pymunk_has_them(name, scene, motors):
    ours, theirs = both(**scene, motors=motors, substeps=300)
    assert abs(theirs[-1, :, 2:4]).max() < 3, name               # they do rest
    assert abs(ours[-1, :, 2:4]).max() < 3 and abs(ours[-1, :, :2] - theirs[-1, :, :2]).max() < 1


def test_a_row_that_runs_into_a_wall_stays_a_row():
    m = course(staged([(250 + 20*k, 200) for k in range(8)]), 400, 1., 1.)
    assert (np.diff(m['x']) > 16).all() and m['x'].max() < 493          # nobody goes through anybody
    assert abs(m['x'][-1] - (350 + 20*np.arange(8))).max() < .5 and abs(m['vx'][-1]).max() < .1
    assert m['contacts'][-1].tolist() == [1, *[2]*7]


@pytest.mark.parametrize('legacy', [False, True])
def test_free_motion_is_pymunks(legacy):
    rng, n = np.random.default_rng(1), 6
    places = np.array([(700 + 120*i, 1000) for i in range(n)], float)
    headings, motors = rng.uniform(-3, 3, n), rng.uniform(-.5, 1, (20, n, 2))
    world = arranged(places, headings, arena=(2000, 2000), legacy=legacy)
    ours = [numbers(world.swarm.robot[0])]
    for pair in motors: world.step(np.float32(pair[None])); ours.append(numbers(world.swarm.robot[0]))
    theirs = munk(places, headings, arena=(2000, 2000), motors=motors.repeat(3, 0), legacy=legacy)[::3]
    way = np.linalg.norm(theirs[-1, :, :2] - places, axis=-1)
    assert way.max() > 10 and (world.swarm.robot['contacts'] == 0).all()
    gap = np.linalg.norm(np.array(ours)[..., :2] - theirs[..., :2], axis=-1)
    assert (gap <= 1e-3*np.maximum(1, way)).all()
    assert abs(np.array(ours)[..., 2:] - theirs[..., 2:]).max() < 1e-3*abs(theirs[..., 2:]).max()


def test_a_legacy_robot_that_spins_like_a_top_keeps_its_heading():
    world = arranged([(1000, 1000)], arena=(2000, 2000), legacy=True)
    for _ in range(200): world.step(np.float32([[[-1, 1]]]))
    m = world.swarm.robot[0, 0]
    assert 150 < m['w'] < 240 and abs(m['c']**2 + m['s']**2 - 1) < 1e-5


# ---- what is kept

def crowd(n, seed, spread=21., speed=100., **config):
    "Robots close together in the middle of a wide arena, in a hurry toward each other"
    rng, side = np.random.default_rng(seed), int(np.ceil(np.sqrt(n)))
    places = np.array([(x, y) for x in range(side) for y in range(side)], float)[:n]*spread
    places += 1000 - places.mean(0) + rng.uniform(-.4, .4, (n, 2))
    inward = (1000 - places)/np.linalg.norm(1000 - places, axis=-1, keepdims=True)
    return staged(places, rng.uniform(-3, 3, n), speed*inward + rng.normal(0, speed/2, (n, 2)),
                  rng.normal(0, 4, n), arena=(2000, 2000), **config)


def overlap(m):
    "The deepest overlap of two robots, u"
    at = np.stack([m['x'], m['y']], -1).astype(float)
    return 20 - (np.linalg.norm(at[:, None] - at[None], axis=-1) + 1e3*np.eye(len(at))).min()


def energy(m):
    vx, vy, w = (m[name].astype(float) for name in ('vx', 'vy', 'w'))
    return (.5*(vx*vx + vy*vy) + 25*w*w).sum()


@pytest.mark.parametrize('n', [30, 200])
@pytest.mark.parametrize('rim', [dict(), dict(bounce=1.), dict(bounce=.8, grip=2.), dict(grip=0.)], ids=str)
def test_contacts_keep_momentum_and_make_no_energy(n, rim):
    for seed in range(3):
        g = crowd(n, seed, robot=FREE['robot'] | rim)
        m = course(g, 60)
        assert m['contacts'][-1].sum() > n/2 and m['near'].max() < SLOTS    # no list is full
        speed = np.stack([m['vx'], m['vy']], -1).astype(float)
        momentum, size = speed.sum(1), np.linalg.norm(speed, axis=-1).sum(1)
        gap = np.linalg.norm(momentum[1:] - KEEP*momentum[:-1], axis=-1)
        assert (gap < 1e-5*size[:-1]).all()                      # some roundings of a float each
        e = np.array([energy(k) for k in m])
        gain = .1 if rim.get('bounce') == 1 else 1e-6            # where many that lose nothing meet at once
        assert (e[1:] <= e[:-1]*(1 + gain)).all() and e[-1] < e[0]
        assert max(overlap(k) for k in m) < 6


def test_a_perfect_rim_gives_all_of_it_back():
    g = staged([(200, 200), (240, 200)], speeds=[(100, 0), (-60, 0)], robot=FREE['robot'] | dict(bounce=1.))
    m = course(g, 30)
    k = int(np.flatnonzero(m['contacts'][:, 0])[0])
    assert np.allclose(m['vx'][k], m['vx'][k - 1][::-1], rtol=5e-3)


@pytest.mark.parametrize('legacy', [False, True])
def test_nobody_leaves_and_nobody_lies_on_another(legacy):
    rng = np.random.default_rng(2)
    world = make('swarm', worlds=2, seed=3, robots=120, legacy=legacy)
    deepest, fullest = 0., 0
    for t in range(200):
        push = [1, 1] if t % 100 < 50 and not legacy else rng.uniform(-1, 1, (2, 120, 2))
        world.step(np.broadcast_to(np.float32(push), (2, 120, 2)))
        m, a = world.swarm.robot, world.swarm.arena[:, None]
        assert ((0 <= m['x']) & (m['x'] <= a['width']) & (0 <= m['y']) & (m['y'] <= a['height'])).all()
        deepest, fullest = max(deepest, *map(overlap, m)), max(fullest, m['near'].max())
    assert deepest < (20 if legacy else 5) and fullest < SLOTS


# ---- mirrored, turned

def scattered(seed=0, n=30):
    rng = np.random.default_rng(seed)
    places = np.array([(x, y) for x in range(60, 460, 60) for y in range(60, 360, 60)], float)[:n]
    return places + rng.uniform(-15, 15, (n, 2)), rng.uniform(-3, 3, n), rng.uniform(-1, 1, (2, n))


MIRROR = dict(place=lambda p: p*[1, -1] + [0, 400], angle=lambda a: -a, motors=lambda m: m[::-1],
              wall=lambda q: (q[0], 1 - q[1], q[2], 1 - q[3]), arena=BOX)
QUARTER = dict(place=lambda p: p[..., ::-1]*[-1, 1] + [400, 0], angle=lambda a: a + np.pi/2,
               motors=lambda m: m, wall=lambda q: (1 - q[1], q[0], 1 - q[3], q[2]), arena=BOX[::-1])


@pytest.mark.parametrize('how', [MIRROR, QUARTER], ids=['mirror', 'quarter'])
@pytest.mark.parametrize('seed', range(3))
def test_an_image_takes_the_image_of_the_course(how, seed):
    places, angles, motors = scattered(seed)
    wall = (.3, .45, .7, .55)
    one = course(staged(places, angles, walls=(wall,)), 60, *motors)
    two = course(staged(how['place'](places), how['angle'](angles), walls=(how['wall'](wall),),
                        arena=how['arena']), 60, *how['motors'](motors))
    at = [np.stack([m['x'], m['y']], -1) for m in (one, two)]
    assert one['contacts'][-1].sum() > 4
    assert np.linalg.norm(how['place'](at[0]) - at[1], axis=-1).max() < 2e-2      # u, after 60 substeps


def seen(places, angles, **scene):
    g = staged(places, angles, **scene)
    rolled(g, 1); lidar.scanned(g)
    return g.obs[0, :, :32].copy()


@pytest.mark.parametrize('n', [30, 3])
def test_the_lidar_of_an_image_is_the_image_of_the_lidar(n):
    places, angles, _ = scattered(4, n)
    wall = (.1, .2, .8, .9)
    rays = seen(places, angles, walls=(wall,))
    mirrored = seen(MIRROR['place'](places), -angles, walls=(MIRROR['wall'](wall),))
    turned = seen(QUARTER['place'](places), angles + np.pi/2, walls=(QUARTER['wall'](wall),), arena=BOX[::-1])
    assert (rays < 1).mean() > .3
    for image in (np.roll(mirrored[:, ::-1], 1, 1), turned):     # a ray may just miss what its image hits
        assert (abs(rays - image) < 1e-3).mean() > .995


@kernel
def everybody(g, w):
    "What all lidars say when they ask everybody"
    R = g.rules[0].radius
    for i in range(g.robot.shape[1]):
        ray = g.obs[w, i]
        lidar.sides(g, w, i, ray)
        for k in range(g.wall.shape[1]): lidar.inner_wall(g, w, i, k, ray)
        for j in range(g.robot.shape[1]): lidar.echo(g, w, i, j, ray)
        for k in range(lidar.RAYS): ray[k] = min(max((ray[k] - R)/lidar.RANGE, 0), 1)


@pytest.mark.parametrize('n', [lidar.FEW, lidar.FEW + 1, 1000])
def test_looking_around_sees_what_looking_at_everybody_sees(n):
    rng = np.random.default_rng(n)
    lattice = np.array([(x, y) for x in range(15, 1186, 26) for y in range(15, 886, 26)], float)
    places = rng.permutation(lattice)[:n] + rng.uniform(-2, 2, (n, 2))
    g = staged(places, rng.uniform(-3, 3, n), arena=(1200, 900), walls=((.2, .1, .25, .8),))
    rolled(g, 1); lidar.scanned(g)
    rings = g.obs[0].copy()
    everybody(g, 0)
    assert (rings == g.obs[0]).all() and .2 < (rings[:, :32] < 1).mean()


@pytest.mark.parametrize('angle', np.arange(8)*np.pi/4)
def test_rays_along_the_sides_are_no_special_case(angle):
    g = staged([(250, 200)], angle)
    g.robot['c'], g.robot['s'] = np.round([np.cos(angle), np.sin(angle)], 7)
    if abs(np.sin(2*angle)) < 1e-6: g.robot['c'], g.robot['s'] = np.round([np.cos(angle), np.sin(angle)])
    rolled(g, 1); lidar.scanned(g)
    way = angle + 2*np.pi*np.arange(32)/32
    with np.errstate(divide='ignore'):
        exact = np.minimum(250/abs(np.cos(way)), 200/abs(np.sin(way))) - 10
    assert abs(g.obs[0, 0, :32] - np.minimum(exact/300, 1)).max() < 1e-5


# ---- whatever anybody does

ODD = np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 0, 1e-40, 1, -1])


@st.composite
def configs(draw):
    "A swarm of any kind, with short games"
    c = dict(robots=draw(st.integers(1, 60)), difficulty=draw(st.integers(1, 3)), slides=draw(st.booleans()),
             legacy=draw(st.booleans()), message_dim=draw(st.integers(0, 3)), hears=draw(st.integers(1, 8)),
             metric=draw(st.sampled_from(['progress', 'distance'])), max_episode_seconds=1.5)
    share = st.floats(0, 1)
    if not c['legacy']: c['walls'] = tuple(draw(st.lists(st.tuples(share, share, share, share), max_size=5)))
    return c


def within(world):
    "Whether all that a world shows is finite and in its stated range"
    m, a = world.swarm.robot, world.swarm.arena[:, None]
    good = np.isfinite(world.reward).all() and np.isfinite(world.obs).all()
    good &= ((0 <= m['x']) & (m['x'] <= a['width']) & (0 <= m['y']) & (m['y'] <= a['height'])).all()
    good &= ((0 <= m['goal_x']) & (m['goal_x'] <= a['width']) & (0 <= m['goal_y'])).all()
    for f in world.spec.obs:
        part = world.obs[..., f.columns]
        good &= bool(((f.low - 1e-5 <= part) & (part <= f.high + 1e-5)).all())
    return good


@settings(max_examples=40, deadline=None)
@given(config=configs(), seed=st.integers(0, 2**32 - 1))
def test_whatever_anybody_does(config, seed):
    world, rng, nans = make('swarm', worlds=2, seed=seed, **config), np.random.default_rng(seed), 0
    for t in range(40):
        action = rng.uniform(-1, 1, world.action.shape).astype(np.float32)
        odd = rng.random(action.shape) < .3
        action[odd] = rng.choice(ODD, odd.sum())
        if t % 4 > 1: action[0] = 1                        # all at full power
        nans += np.isnan(action).sum()
        world.step(action)
        assert within(world) and not world.terminated.any()
    assert world.stats['nan'].sum() == nans and (world.stats['games'] == 1).all()


@pytest.mark.parametrize('wrong', [
    dict(robots=251), dict(robots=0), dict(arena=(199, 400)), dict(arena=(800, 20_000)), dict(hears=9),
    dict(robot=dict(radius=30)), dict(robot=dict(push=200, damping=.5)), dict(robot=dict(inertia=1.)),
    dict(walls=((0, 0, 1, 1.1),)), dict(legacy=True, walls=((0, 0, 1, 1),)), dict(metric='speed'),
    dict(goal_radius=60), dict(robot=dict(mass=float('nan')))], ids=str)
def test_configs_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError) as error: make('swarm', worlds=1, **wrong)
    name, value = next(iter(wrong.items()))
    if name == 'robot' and len(value) == 1 and 'inertia' not in value: name = next(iter(value))
    assert len(str(error.value).splitlines()) == 1 and name in str(error.value)


@pytest.mark.parametrize('config', [
    dict(arena=(200, 200), goal_radius=50, robots=6, robot=dict(radius=24)),
    dict(arena=(200, 1000), difficulty=3), dict(goal_radius=50, robots=40), dict(robots=250)], ids=str)
def test_the_tightest_arenas_have_room_and_goals(config):
    world = make('swarm', worlds=8, seed=2, **config)
    r, m = world.config.robot.radius, world.swarm.robot
    for w in range(8):
        at = np.stack([m[w]['x'], m[w]['y']], -1).astype(float)
        gap = np.linalg.norm(at[:, None] - at[None], axis=-1) + 1e3*np.eye(len(at))
        assert gap.min() >= 2*r and (m[w]['way'] > r + world.config.goal_radius).all()
    assert within(world)


# ---- the same again

def driven(world, steps, seed=0, watch=None):
    "So many decisions of actions that depend on a world's place in the list no more than `watch` says"
    for t in range(steps):
        row = np.random.default_rng((seed, t)).uniform(-1, 1, world.action.shape[1:]).astype(np.float32)
        world.step(np.broadcast_to(row, world.action.shape))
        if watch: watch(t)
    return world


CROWD = dict(robots=40, message_dim=2, walls=((.2, .5, .8, .5),), max_episode_seconds=2.)


def test_threads_and_company_change_nothing():
    seeds, prints = np.array([5, 6, 7, 8, 9], np.uint64), []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try: prints.append(driven(make('swarm', worlds=5, seed=seeds, **CROWD), 60).digest())
        finally: numba.set_num_threads(before)
    assert (prints[0] == prints[1]).all() and len(set(prints[0].tolist())) == 5
    for order in ([2], [4, 2, 0], [0, 1, 2, 3, 4]):
        assert (driven(make('swarm', worlds=len(order), seed=seeds[order], **CROWD), 60).digest()
                == prints[0][order]).all()


def test_the_same_seed_is_the_same_game_and_another_is_not():
    a, b, c = (driven(make('swarm', worlds=2, seed=s, **CROWD), 50).digest() for s in (1, 1, 2))
    assert (a == b).all() and (a != c).all()


def test_autoreset_changes_nothing_before_the_end_and_the_next_game_is_the_next_game():
    one, two = (make('swarm', worlds=3, seed=4, autoreset=auto, **CROWD) for auto in (True, False))
    driven(one, 39); driven(two, 39)
    assert (one.digest() == two.digest()).all()
    one.step(); two.step()
    assert one.truncated.all() and two.truncated.all() and one.first.all()
    assert (one.final_obs == two.obs).all()
    kept = two.digest()
    two.step()
    assert (two.digest() == kept).all() and two.truncated.all() and (two.reward == 0).all()
    assert (two.stats['decisions'] == 40).all() and (two.stats['games'] == 1).all()
    two.reset()
    assert (one.digest() == two.digest()).all() and (one.obs == two.obs).all()


@settings(max_examples=15, deadline=None)
@given(at=st.integers(0, 50), more=st.integers(1, 30), seed=st.integers(0, 99))
def test_a_state_goes_on_anywhere(at, more, seed):
    one = driven(make('swarm', worlds=2, seed=seed, **CROWD), at)
    two = driven(make('swarm', worlds=2, seed=seed + 1, **CROWD), 7, seed=3)
    state = one.state()
    two.load_state(state)
    for world in (one, two): driven(world, more, seed=8)
    assert (one.digest() == two.digest()).all()
    assert all((getattr(one, name) == getattr(two, name)).all() for name in ('obs', 'reward', 'truncated'))
    assert all((v == two.stats[k]).all() for k, v in one.stats.items())


def test_openings_open_the_same_game():
    many = driven(make('swarm', worlds=3, seed=6, difficulty=2, **CROWD), 45)
    alone = make('swarm', worlds=1, seed=1, difficulty=2, **CROWD)
    assert many.opening(1) == dict(seed=int(many.seeds[1]), game=1, difficulty=2, contact=-.5)
    alone.reopen(many.opening(1))
    assert alone.swarm.arena['key'][0] == many.swarm.arena['key'][1]
    again = make('swarm', worlds=3, seed=6, difficulty=2, **CROWD)
    again.reset()                                             # the second games
    assert again.digest([1]) == alone.digest()


# ---- states of strangers

def refused(world, state):
    before = world.digest()
    with pytest.raises(ValueError) as error: world.load_state(state)
    assert (world.digest() == before).all() and len(str(error.value).splitlines()) == 1
    return str(error.value)


SMALL = dict(robots=6, message_dim=1, walls=((.4, .4, .6, .6),))
WRONG = [('arena', 'level', 0), ('arena', 'level', 4), ('arena', 'width', np.nan), ('arena', 'width', 400),
         ('arena', 'width', 700), ('arena', 'height', 300), ('arena', 'height', 5e4), ('arena', 'columns', 3),
         ('arena', 'rows', 99), ('arena', 'tick', -1), ('arena', 'decision', -1), ('arena', 'decision', 1201),
         ('arena', 'contact', np.nan), ('arena', 'contact', -2e3), ('contacts', None, np.inf),
         ('tally', None, np.nan),
         *[('robot', name, x) for name in ('x', 'y', 'goal_x', 'goal_y') for x in (-1, 900, np.nan)],
         *[('robot', name, x) for name in ('vx', 'vy', 'w', 'way', 'spot_x', 'nx', 'nw', 'left', 'price')
           for x in (np.nan, np.inf, -2e5)],
         ('robot', 'c', 2.), ('robot', 's', np.nan), ('robot', 'cell', -1), ('robot', 'cell', 10**6),
         ('robot', 'goals', -1), ('near', None, 12), ('near', None, -12), ('near', None, -2**15),
         ('levels', None, 0), ('levels', None, 4), ('message', None, 1.5), ('message', None, np.nan),
         ('impulse', None, 2e5), ('impulse', None, np.nan)]


@pytest.mark.parametrize('part, name, value', WRONG)
def test_a_swarm_that_cannot_be_is_refused(part, name, value):
    world = driven(make('swarm', worlds=2, seed=1, **SMALL), 5)
    state = world.state()
    array = state[part] if name is None else state[part][name]
    array[(1, *[0]*(array.ndim - 1))] = value
    assert refused(world, state).startswith('state: ')


def test_states_of_another_kind_are_refused():
    world = driven(make('swarm', worlds=2, seed=1, **SMALL), 5)
    other = lambda worlds=2, **config: make('swarm', worlds=worlds, seed=1, **SMALL | config).state()
    assert 'another config' in refused(world, other(repeat=4))
    assert 'shape' in refused(world, other(worlds=1))
    state = world.state()
    del state['near']
    assert 'near' in refused(world, state)
    state = world.state()
    state['robot'] = state['robot'].view(np.uint8).reshape(2, 6, -1)
    assert 'robot' in refused(world, state)


def test_random_bytes_are_refused_or_play():
    rng, world = np.random.default_rng(0), driven(make('swarm', worlds=2, seed=1, **SMALL), 5)
    sound, taken = world.state(), 0
    for trial in range(300):
        state = {k: v.copy() for k, v in sound.items()}
        part = state[('robot', 'near', 'arena')[trial % 3]]
        if trial % 2 or not part.dtype.names:                # some bytes; or a whole number, from end to end
            raw = part.view(np.uint8).reshape(-1)
            raw[rng.integers(0, len(raw), rng.integers(1, 4))] = rng.integers(0, 256)
        else:
            names = [n for n in part.dtype.names if part.dtype[n].kind == 'i']
            part[rng.choice(names)] = rng.integers(-2**31, 2**31)
        try: world.load_state(state)
        except ValueError as error: assert len(str(error).splitlines()) == 1
        else:
            taken += 1
            driven(world, 3)
            assert np.isfinite(world.obs).all() and np.isfinite(world.reward).all()
            world.load_state(sound)
    assert 60 < taken < 250


# ---- the rules, worked by hand

def arranged(places, headings=0., speeds=0., goals=(1., 1.), **config):
    "A world in which robots stand where they are put, by default far from a goal in a corner"
    places, config = np.float32(np.atleast_2d(places)), dict(arena=(800, 600)) | config
    world = make('swarm', worlds=1, robots=len(places), autoreset=False, **config)
    m = world.swarm.robot[0]
    m['x'], m['y'] = m['spot_x'], m['spot_y'] = places.T
    m['c'], m['s'] = np.cos(headings), np.sin(headings)
    m['vx'], m['vy'] = np.broadcast_to(speeds, places.shape).T
    m['goal_x'], m['goal_y'] = np.broadcast_to(goals, places.shape).T
    m['way'] = np.hypot(m['goal_x'] - m['x'], m['goal_y'] - m['y'])
    return world


def test_a_goal_is_reached_below_25_units():
    world = arranged([(100, 100), (300, 100), (500, 100)], goals=[(124.9, 100), (325, 100), (525.1, 100)])
    m = world.swarm.robot[0]
    goals = np.stack([m['goal_x'], m['goal_y']], -1).copy()
    world.step(np.zeros((1, 3, 2), np.float32))
    assert np.allclose(world.reward[0], [10 - .01, -.01, -.01]) and m['goals'].tolist() == [1, 0, 0]
    assert m['x'].tolist() == [100, 300, 500] and (m['y'] == 100).all()      # nobody is carried anywhere
    fresh = np.stack([m['goal_x'], m['goal_y']], -1)
    assert (fresh[0] != goals[0]).all() and (fresh[1:] == goals[1:]).all()
    way = np.hypot(*(fresh[0] - [100, 100]))
    assert 50 <= way <= 200 and np.isclose(m['way'][0], way)
    told = world.obs[0, 0, world.spec.field('goal').columns]
    assert np.allclose(told, (fresh[0] - [100, 100])/800, atol=1e-6)
    assert not world.truncated.any() and not world.terminated.any()


@pytest.mark.parametrize('difficulty', [1, 2, 3])
def test_arenas_and_goals_are_drawn_as_they_should(difficulty):
    world = make('swarm', worlds=150, seed=3, difficulty=difficulty)
    a, m = world.swarm.arena, world.swarm.robot
    for side, (low, high) in zip((a['width'], a['height']), ARENAS[difficulty - 1]):
        assert low <= side.min() < low + .1*(high - low) and high - .1*(high - low) < side.max() <= high
    x, y = m['goal_x']/a['width'][:, None], m['goal_y']/a['height'][:, None]
    dx, dy = m['goal_x'] - m['x'], m['goal_y'] - m['y']
    way = np.hypot(dx, dy)
    assert np.allclose(way, m['way'], rtol=1e-5)
    for at, side in ((m['goal_x'], a['width']), (m['goal_y'], a['height'])):
        assert (at >= 10).all() and (at <= side[:, None] - 10).all()
    if difficulty == 1: assert 50 <= way.min() < 55 and 190 < way.max() <= 200
    else:
        quarters = np.bincount((2*(x > .5) + (y > .5)).ravel(), minlength=4)/x.size
        assert way.max() > 400 and (abs(quarters - .25) < .05).all() and x.min() < .05 and x.max() > .95
    turn = np.bincount(((np.arctan2(dy, dx) + np.pi)//(np.pi/2)).astype(int).ravel().clip(0, 3))
    assert (turn > .15*way.size).all()
    nose = np.bincount(((np.arctan2(m['s'], m['c']) + np.pi)//(np.pi/4)).astype(int).ravel().clip(0, 7))
    assert (abs(nose/way.size - 1/8) < .035).all() and (m['vx'] == 0).all()


def test_a_fixed_arena_is_fixed():
    a = make('swarm', worlds=20, seed=1, arena=(800, 600), difficulty=1).swarm.arena
    assert (a['width'] == 800).all() and (a['height'] == 600).all()


def test_a_game_is_cut_after_exactly_1200_decisions():
    world = make('swarm', worlds=2, seed=1, robots=2)
    for t in range(1, 1201):
        world.step()
        assert (world.truncated == (t == 1200)).all() and not world.terminated.any()
    assert (world.game == 1).all() and world.first.all() and world.config.decisions == 1200
    assert world.spec.dt == pytest.approx(.05) and (world.swarm.arena['tick'] == 0).all()


def pushed(world, decisions, left=1., right=1.):
    "Contacts that began and rewards, in each of so many decisions"
    action = np.broadcast_to(np.float32([left, right]), world.action.shape)
    told = []
    for _ in range(decisions):
        world.step(action)
        told.append((world.swarm.robot[0]['contacts'].copy(), world.reward[0].copy()))
    return map(np.array, zip(*told))


@pytest.mark.parametrize('start', np.arange(740, 748, .5))
def test_leaning_on_a_wall_is_one_contact(start):
    world = arranged([(start, 300)], goals=(20, 300))          # the hit falls into any of the three substeps
    contacts, reward = pushed(world, 60)
    m = world.swarm.robot[0, 0]
    assert contacts.sum() == 1 and abs(m['x'] - 790) < 1 and m['near'] == 1
    k = int(contacts.argmax())
    progress = -.01*(m['x'] - start)
    assert np.isclose(reward.sum(), progress - 60*.01 - .5, atol=1e-3) and reward[k, 0] < -.5
    assert world.swarm.tally[0, 1] == pytest.approx(1) and world.swarm.arena['tick'][0] == 180


def test_leaving_by_more_than_a_unit_makes_the_next_contact_another_one():
    world = arranged([(770, 300)])
    m, count = world.swarm.robot[0, 0], []
    for power, decisions in ((1, 40), (-1, 10), (1, 40)):
        contacts, _ = pushed(world, decisions, power, power)
        count.append(int(contacts.sum()))
        assert power > 0 or m['x'] < 780
    assert count == [1, 0, 1]
    world = arranged([(785, 300)])                             # half a unit away is not away
    m = world.swarm.robot[0, 0]
    for x in (790.2, 789.5, 790.2, 789.5, 788.5, 790.2):
        m['x'], m['vx'] = x, 0
        contacts, _ = pushed(world, 1, 0, 0)
        count.append(int(contacts.sum()))
    assert count[-6:] == [1, 0, 0, 0, 0, 1]


def test_two_that_lean_on_each_other_have_one_contact_each():
    world = arranged([(300, 300), (340, 300)], [0, np.pi])
    contacts, reward = pushed(world, 60)
    assert contacts.sum(0).tolist() == [1, 1] and (reward.min(0) < -.45).all()


def test_a_wall_and_a_robot_are_two_contacts():
    world = arranged([(785, 300), (750, 300)])
    contacts, _ = pushed(world, 80)
    assert contacts.sum(0).tolist() == [2, 1]


@pytest.mark.parametrize('weights', [{}, dict(progress=.02, step=-.5)], ids=str)
def test_the_way_is_paid_by_the_unit(weights):
    world = arranged([(100, 300), (400, 300)], speeds=[(100, 0), (-50, 0)], goals=(700, 300), rewards=weights)
    m, w = world.swarm.robot[0], dict(progress=.01, step=-.01) | weights
    for _ in range(5):
        before = 700 - m['x']
        world.step(np.zeros((1, 2, 2), np.float32))
        assert np.allclose(world.reward[0], w['progress']*(before - (700 - m['x'])) + w['step'], atol=1e-5)
    assert m['x'][0] > 115 and m['x'][1] < 393
    way = (m['x'] - [100, 400]).mean()
    assert np.isclose(world.stats['reward_progress'][0, 0], w['progress']*way, atol=1e-5)


def test_the_plain_form_pays_the_distance():
    world = arranged([(100, 300)], goals=(700, 300), metric='distance')
    world.step(np.zeros((1, 1, 2), np.float32))
    assert np.isclose(world.reward[0, 0], -.6 - .01) and np.isclose(world.stats['reward_distance'][0, 0], -.6)


def test_whoever_stands_for_five_seconds_is_stuck_once():
    world = arranged([(100, 100), (400, 300)])
    action = np.float32([[[0, 0], [1, 1]]])
    for t in range(1, 300):
        world.step(action)
        assert world.swarm.tally[0, 2] == pytest.approx(.5*(t >= 100)) or world.swarm.robot[0, 1]['stuck']
    m = world.swarm.robot[0]
    assert m['stuck'][0] == 1 and world.swarm.tally[0, 2] == .5*(1 + (m['stuck'][1] > 0))
    m['x'][0] = 200                                            # gets going, and is stuck again: counted once
    for _ in range(150): world.step(np.zeros((1, 2, 2), np.float32))
    assert world.swarm.tally[0, 2] <= 1


def test_statistics_are_per_robot_and_minute():
    world = make('swarm', worlds=2, seed=5, robots=4, max_episode_seconds=30, autoreset=False)
    world.control[:] = 1
    contacts, reward = np.zeros(2), np.zeros(2)
    while not world.truncated.all():
        world.step()
        contacts += world.swarm.robot['contacts'].sum(1)
        reward += world.reward.mean(1)
    told, goals = world.drain(), world.swarm.robot['goals'].sum(1)
    assert (goals > 10).all() and contacts.sum() > 0
    assert np.allclose(told['goals'], goals/4/.5) and np.allclose(told['collisions'], contacts/4/.5)
    terms = sum(told[k] for k in told if k.startswith('reward_'))[:, 0]
    assert np.allclose(terms, reward, atol=1e-3)
    assert np.allclose(told['reward_goal'][:, 0], 10*goals/4) and np.allclose(told['reward_step'], -.01*600)
    assert np.allclose(told['reward_contact'][:, 0], -.5*contacts/4) and (told['win'] == 0).all()


def radio(world):
    "What each robot should hear, by looking at everybody"
    m, M, hears = world.swarm.robot[0], world.config.message_dim, world.config.hears
    at, said = np.stack([m['x'], m['y']], -1).astype(float), world.action[0, :, 2:].clip(-1, 1)
    out = np.zeros((len(m), hears, 3 + M))
    out[..., 2] = 1
    for i in range(len(m)):
        way = at - at[i]
        far = np.hypot(*way.T)
        far[i] = np.inf
        for slot, j in enumerate([j for j in np.argsort(far, kind='stable')[:hears] if far[j] <= 300]):
            ahead, left = m['c'][i]*way[j, 0] + m['s'][i]*way[j, 1], m['c'][i]*way[j, 1] - m['s'][i]*way[j, 0]
            out[i, slot] = [ahead/far[j], left/far[j], far[j]/300, *said[j]]
    return out


@pytest.mark.parametrize('n', [3, 25])
def test_the_nearest_are_heard_one_decision_later(n):
    world = make('swarm', worlds=1, seed=n, robots=n, message_dim=2, difficulty=3, autoreset=False)
    heard = world.obs[0, :, world.spec.field('heard').columns].reshape(n, 4, 5)
    assert np.allclose(heard[..., 3:], 0)                      # nobody has said anything yet
    rng, silent = np.random.default_rng(n), 0
    for _ in range(10):
        world.step(rng.uniform(-1.2, 1.2, world.action.shape).astype(np.float32))
        expected = radio(world)
        heard = world.obs[0, :, world.spec.field('heard').columns].reshape(n, 4, 5)
        assert np.allclose(heard, expected, atol=1e-4)
        silent += (expected[..., 2] == 1).sum()
    assert silent > 0 or n > 3


def test_nobody_is_heard_beyond_300_units():
    world = arranged([(100, 300), (399.9, 300), (700.1, 300)], message_dim=1, hears=2)
    world.step(np.float32([[[0, 0, .5], [0, 0, -.5], [0, 0, .25]]]))
    heard = world.obs[0, :, world.spec.field('heard').columns].reshape(3, 2, 4)
    assert np.allclose(heard[0], [[1, 0, .9997, -.5], [0, 0, 1, 0]], atol=1e-4)
    assert np.allclose(heard[2], [[0, 0, 1, 0]]*2)


def test_a_difficulty_takes_effect_at_the_next_game():
    world = make('swarm', worlds=3, seed=1, robots=5)
    before, playing = world.swarm.arena.copy(), world.digest(playing=True)
    assert world.get_curriculum() == dict(difficulty=1, contact=-.5)
    world.set_curriculum(difficulty=3)
    assert (world.digest(playing=True) == playing).all() and world.get_curriculum()['difficulty'] == 3
    world.step()
    assert (world.swarm.arena['width'] == before['width']).all() and (world.swarm.arena['level'] == 1).all()
    world.reset(worlds=np.array([False, True, False]))
    assert world.swarm.arena['level'].tolist() == [1, 3, 1] and world.swarm.arena['width'][1] >= 800
    assert [world.opening(w)['difficulty'] for w in range(3)] == [1, 3, 1]
    for wrong in (0, 4, 1.5, '2', True, float('nan')):
        with pytest.raises(ValueError) as error: world.set_curriculum(difficulty=wrong)
        assert len(str(error.value).splitlines()) == 1 and world.get_curriculum()['difficulty'] == 3
    world.set_curriculum(contact=-4)
    world.reset(worlds=np.array([True, False, False]))
    assert world.swarm.arena['contact'].tolist() == [-4, -.5, -.5] and world.opening(0)['contact'] == -4
    for wrong in (float('nan'), -1e4, 'dear'):
        with pytest.raises(ValueError): world.set_curriculum(contact=wrong)
    assert world.get_curriculum() == dict(difficulty=3, contact=-4.)
    full = make('swarm', worlds=1, robots=300, difficulty=2)
    with pytest.raises(ValueError, match='robots = 300'): full.set_curriculum(difficulty=1)


# ---- scripts

def result(script, worlds=24, decisions=400):
    world = make('swarm', worlds=worlds, seed=7)
    world.control[:] = 1 + world.spec.scripts.index(script)
    for _ in range(decisions): world.step()
    return world.swarm.robot['goals']


def test_the_seeker_beats_chance_on_every_row():
    seeker, chance, idle = map(result, ('seeker', 'random', 'idle'))
    assert seeker.mean() > 20*max(chance.mean(), .1) and idle.sum() <= chance.sum() + 5
    assert (seeker.mean(0) > .6*seeker.mean()).all()


def test_a_seeker_acts_on_what_its_row_observes():
    world = make('swarm', worlds=4, seed=2, robots=30, message_dim=1)
    world.control[:, ::2] = 1
    angle = 2*np.pi*np.arange(32)/32
    for _ in range(30):
        obs, side = world.obs.copy(), np.maximum(world.swarm.arena['width'], world.swarm.arena['height'])
        own = np.full(world.action.shape, .25, np.float32)
        world.step(own)
        to = obs[..., 34:36]*side[:, None, None]
        way = np.linalg.norm(to, axis=-1).clip(1)
        aim = to - 45*obs[..., 32:34]
        aim /= np.linalg.norm(aim, axis=-1, keepdims=True).clip(1)
        k, near = obs[..., :32].argmin(-1), obs[..., :32].min(-1)*300
        shy = (1.5*(1 - near/45)*(near < np.minimum(45, way)))[..., None]
        x, y = np.moveaxis(aim - shy*np.stack([np.cos(angle[k]), np.sin(angle[k])], -1), -1, 0)
        ahead, turn = x.clip(0), np.where(x > 0, y, np.where(y > 0, 1, -1))
        wanted = np.stack([ahead - turn, ahead + turn, 0*x], -1)
        same = (abs(world.action - wanted) < 1e-3).all(-1)
        assert same[:, ::2].mean() > .99 and (world.action[:, 1::2] == .25).all()   # signs of nothing differ


def test_random_motors_are_even_and_differ():
    world, drawn = make('swarm', worlds=8, seed=2, message_dim=1), []
    world.control[:] = 2
    for _ in range(100): world.step(); drawn.append(world.action.copy())
    drawn = np.array(drawn)
    assert abs(drawn.mean((0, 1, 2))).max() < .03 and abs(drawn.std((0, 1, 2)) - 3**-.5).max() < .02
    assert len(np.unique(drawn)) > .99*drawn.size
    assert abs(np.corrcoef(drawn.reshape(-1, 3).T) - np.eye(3)).max() < .05


# ---- it trains

def training(**settings):
    more = dict(worlds=4, world_config=dict(robots=5, max_episode_seconds=3.), hidden=16, lstm=16, ranks=1,
                ppo=dict(rollout_steps=16, update_epochs=1, minibatch=160), precision='float32')
    return settled(TrainConfig(world='swarm', **{**more, **settings}))


def test_a_run_goes_on_bit_for_bit(goes_on):
    stages = [dict(name=str(d), world=dict(difficulty=d)) for d in (1, 2, 3)]
    easing = dict(stages=stages, games=8, promote=-1., demote=-2.)
    _, rows = goes_on(training(curriculum=easing), updates=5)
    assert np.isfinite([row[k] for row in rows for k in ('loss', 'pg_loss', 'vf_loss')]).all()
    assert any('stat/goals' in row for row in rows)


def test_an_examination_counts_goals():
    config = dict(robots=4, max_episode_seconds=10.)
    seeker, chance = (evaluate(who, 'swarm', config, games=6, worlds=6) for who in ('seeker', 'random'))
    assert seeker.stats['goals'] > 10 > 3 > chance.stats['goals'] and seeker.episodes == 6
    assert seeker.mean_episode_length == 200 and seeker.mean_reward > chance.mean_reward
    assert seeker == evaluate('seeker', 'swarm', config, games=6, worlds=6)
    assert SwarmConfig(**config).decisions == 200


def test_statistics_are_those_of_whole_games():
    world = make('swarm', worlds=3, seed=2, max_episode_seconds=6., autoreset=False)
    world.control[:] = 1
    for _ in range(119): world.step()
    assert not any(world.stats[k].any() for k in ('goals', 'collisions', 'stuck', 'return'))
    world.step()
    goals = world.swarm.robot['goals'].mean(1)                # of a robot, in six seconds
    assert np.allclose(world.stats['goals'], 10*goals) and goals.min() > 0
    terms = sum(world.stats[f'reward_{name}'][:, 0] for name in ('progress', 'goal', 'step', 'contact'))
    assert np.allclose(world.stats['return'], terms, atol=1e-3)
