"What guards the parts of the mech environment: actions, observations, the zone, the judge, rewards, scripts"
import math

import numpy as np
import pytest

from echelon.agents.heuristic import SCRIPTS, HeuristicPolicy, fight, scripted
from echelon.config import BIOMES, EnvConfig
from echelon.core import kernel
from echelon.env import observations as ob
from echelon.env.actions import ACTION, ActionIndex, decode, write_mask
from echelon.env.objective import judge, score
from echelon.env.rewards import TERMS, earn, prime, share
from echelon.sim.mech import RULES, new_game, open_game, some_maps
from echelon.sim.sim import sights

TABLES = dict(contacts=ob.CONTACT, squad=ob.SQUAD, ego=ob.EGO, suite_descriptor=ob.DESCRIPTOR, panel=ob.PANEL)


@kernel
def observe_all(g, worlds):
    for w in range(worlds):
        sights(g, w, 0, 1)
        for i in range(g.mech.shape[1]): ob.observe(g, w, i)


@kernel
def decode_all(g):
    nans = 0
    for i in range(g.mech.shape[1]): nans += decode(g, 0, i)
    return nans


@kernel
def mask_all(g):
    for i in range(g.mech.shape[1]): write_mask(g, 0, i)


@kernel
def judge_all(g):
    for w in range(len(g.world)): score(g, w); judge(g, w)


@kernel
def prime_all(g):
    for i in range(g.mech.shape[1]): prime(g, 0, i)


@kernel
def reward_all(g):
    score(g, 0); judge(g, 0)
    for i in range(g.mech.shape[1]): earn(g, 0, i)
    for i in range(g.mech.shape[1]): share(g, 0, i)


@kernel
def script_all(g):
    for w in range(len(g.world)):
        for i in range(g.mech.shape[1]): scripted(g, w, i)


@kernel
def walk_in(g, first, temper):
    "Go where the fighter goes; `temper` never fires"
    for w in range(len(g.world)):
        for i in range(first, g.mech.shape[1]):
            fight(g, w, i, temper[0], g.action[w, i])


def game(worlds=1, pack=(1, 5, 3, 1), size=64, biomes=BIOMES, maps=2, **settings):
    config = EnvConfig(world=dict(size=size, pool=maps, biomes=biomes), pack=pack, **settings)
    landscape = some_maps(config)
    g = new_game(config, landscape, worlds, terms=len(TERMS))
    for w in range(worlds): open_game(g, landscape, w, w + 1, (w + 1) % maps)
    return g


def scatter(g, seed=0, dead=.2):
    rng, m, S = np.random.default_rng(seed), g.mech, int(g.world['size'][0])
    u = lambda low, high: rng.uniform(low, high, m.shape).astype(np.float32)
    turn, c = u(0, 2*np.pi), g.classes[m['kind']]
    m['x'], m['y'], m['z'], m['hx'], m['hy'] = u(3 - S/2, S/2 - 3), u(3 - S/2, S/2 - 3), u(0,
            6), np.cos(turn), np.sin(turn)
    m['vx'], m['vy'], m['vz'], m['grounded'] = u(-7, 7), u(-7, 7), u(-2, 2), rng.integers(0, 2, m.shape)
    m['hp'], m['heat'], m['stability'] = c['hp']*u(.1, 1), c['capacity']*u(0, 1.4), u(0, 100)
    m['took'], m['from_x'], m['from_y'], m['dealt'] = np.maximum(u(-9, 9), 0), u(-9, 9), u(-9,
            9), np.maximum(u(-5, 5), 0)
    m['cool0'], m['cool1'], m['alive'], m['shut'] = u(0, .15), u(0,
            .2), rng.random(m.shape) >= dead, rng.random(m.shape) < .1
    for name, low, high in (('down', -9, 3), ('suppressed', -3, 1), ('painted', -9, 5)):
        m[name] = np.maximum(u(low, high), 0)
    m['leg'], m['ecm'] = c['leg']*np.maximum(u(-.3, 1), 0), rng.integers(0, 3, m.shape)*(m['kind'] == 0)
    g.shot['state'] = rng.random(g.shot.shape) < .02
    g.shot['target'] = rng.integers(0, m.shape[1], g.shot.shape)
    g.shot['weapon'] = rng.integers(2, 4, g.shot.shape)
    m['flying'] = (g.shot['state'] << np.arange(8)).sum(-1)
    g.world['decision'] = rng.integers(0, 480, len(m))
    for name in ('score0', 'score1'): g.world[name] = rng.uniform(0, 60, len(m))
    g.world['holder'] = rng.integers(-1, 2, len(m))
    g.world['living0'], g.world['living1'] = [(m['alive']*(m['team'] == t)).sum(1) for t in (0, 1)]


def mirror(g):
    "Red becomes the mirror image of blue"
    m, n = g.mech, g.mech.shape[1]//2
    m[:, n:] = m[:, :n]
    m['team'][:, n:] = 1
    for name in ('x', 'vx', 'hx', 'from_x'): m[name][:, n:] *= -1
    g.shot[:, n:] = g.shot[:, :n]
    g.shot['target'][:, n:] = (g.shot['target'][:, n:] + n) % (2*n)
    g.world['score1'], g.world['living1'], g.world['holder'] = g.world['score0'], g.world['living0'], -1


def oracle(g, w, i):
    "The observation of mech `i`, by the book, in double precision: a dict of named numbers by field"
    M, world, rules = g.mech[w], g.world[w], g.rules[0]
    m, n = M[i], int(world['team_size'])
    cl = lambda o: g.classes[o['kind']]
    near = lambda v: np.asarray(v, float)/(np.linalg.norm(v) + 20)
    turned = lambda v: np.array([v[0]*m['hx'] + v[1]*m['hy'], v[0]*m['hy'] - v[1]*m['hx'], *v[2:]], float)
    vec = lambda o, *names: np.array([o[k] for k in names], float)
    rim = lambda o: (lambda d: d/(abs(d) + 20))(np.hypot(world['zone_x'] - o['x'],
                                                         world['zone_y'] - o['y']) - world['zone_r'])
    sees = lambda a, b: bool((int(M[a]['sees']) >> b) & 1)
    lock = lambda a, b: b['painted'] > 0 and a['quality'] >= np.float32(.7)

    def could_hit(a, b, seen):
        d = vec(b, 'x', 'y') - vec(a, 'x', 'y'); flat = np.linalg.norm(d)
        for slot in range(4):
            k = cl(a)[f'weapon{slot}']
            if k < 0: continue
            p = g.weapons[k]
            homing = p['unlocked'] > 0
            if p['damage'] == 0 or not (seen or (homing and lock(a, b))): continue
            reach = p['unlocked'] if homing and not lock(a, b) else p['range']
            if flat - cl(a)['half'] - cl(b)['half'] <= reach and d @ vec(a, 'hx', 'hy')/flat > p['cos_arc']:
                return True
        return False

    def contact(j):
        o = M[j]; d, v = vec(o, 'x', 'y', 'z') - vec(m, 'x', 'y', 'z'), vec(o, 'vx', 'vy', 'vz') - vec(m,
                'vx', 'vy', 'vz')
        hostile, yaw = o['team'] != m['team'], turned(vec(o, 'hx', 'hy'))
        return [*near(turned(d)), *turned(v)/10, *yaw, o['hp']/cl(o)['hp'], o['heat']/cl(o)['capacity'],
                o['stability']/100, o['down'] > 0, o['leg'] <= 0,
                1 if hostile else -1, *(o['kind'] == k for k in range(4)), o['painted'] > 0,
                hostile and m['focus'] == j, sees(i, j), 0, -d@v/np.linalg.norm(d)/10,
                hostile and could_hit(m, o, sees(i, j)), -d[:2]@vec(o, 'hx', 'hy')/np.linalg.norm(d)]

    def mate(j):
        o = M[j]; d = vec(o, 'x', 'y', 'z') - vec(m, 'x', 'y', 'z')
        return [*near(turned(d)), o['hp']/cl(o)['hp'], o['heat']/cl(o)['capacity'], o['stability']/100,
                o['down'] > 0, o['kind']/3,
                o['took'] > 0 or o['dealt'] > 0, rim(o)]

    def filled(rows, slots, width):
        out, mask = np.zeros((slots, width)), np.ones(slots)
        for k, r in enumerate(rows[:slots]): out[k], mask[k] = r, 0
        return out.ravel(), mask

    living = [j for j in range(2*n) if j != i and M[j]['alive']]
    order = sorted(living, key=lambda j: (M[j]['team'] == m['team'],
                                          np.linalg.norm(vec(M[j], 'x', 'y', 'z') - vec(m, 'x', 'y', 'z'))))
    dead = not m['alive']
    contacts, contact_mask = filled([] if dead else [contact(j) for j in order], 20, 25)
    squad, squad_mask = filled([] if dead else [mate(j) for j in living if M[j]['team'] == m['team']], 12, 10)
    targeted = any(M[j]['team'] != m['team'] and sees(i, j) and could_hit(M[j], m, True) for j in order[:20])
    side, fire = 1 - 2*m['team'], turned(vec(m, 'from_x', 'from_y'))
    zone = turned(np.array([world['zone_x'] - m['x'], world['zone_y'] - m['y']], float))
    cool = [m[f'cool{k}']/g.weapons[cl(m)[f'weapon{k}']]['cooldown'] if cl(m)[f'weapon{k}'] >= 0 else 0
            for k in range(4)]
    chased = any(q['state'] == 1 and q['target'] == i and q['weapon'] == 2
                 for row, shots in enumerate(g.shot[w]) for q in shots if M[row]['team'] != m['team'])
    ego = np.array([m['hp']/cl(m)['hp'], m['leg']/cl(m)['leg'], m['heat']/cl(m)['capacity'],
                    m['suppressed'] > 0, m['stability']/100, m['down'] > 0, m['shut'], m['leg'] <= 0,
                    *turned(vec(m, 'vx', 'vy', 'vz'))/10, 0 if m['grounded'] else above_ground(g, w, m)/8,
                    side*m['hx'], side*m['hy'], *cool, m['painted'] > 0, targeted,
                    m['took'] > 0, *(fire/np.linalg.norm(fire) if m['took'] > 0 else (0, 0)), chased,
                    m['quality']/1.5, m['jam'], m['ecm'] == 1, m['ecm'] == 2,
                    m['in_zone'], *near(zone), rim(m)], float)
    leader = m['kind'] == 2 and not any(o['kind'] == 2 for o in M[n*m['team']:i])
    own = g.suites[4 if leader else m['kind']]
    suite = np.zeros(14); suite[4 if leader else m['kind']] = 1
    suite[5:] = (own['contacts']/20, own['range']/2, own['fidelity'], own['squad']/12, own['detail']/2,
                 own['intel']/20, own['reports'], leader, m['quality'] >= .5)
    mine, theirs = ('0', '1')[::side]
    enemies = [j for j in range(2*n) if M[j]['team'] != m['team']]
    wholly_dead = not any(o['alive'] for o in M if o['team'] == m['team'])   # nobody who would know
    panel = [world['zone_r']/10, 0 if world['holder'] < 0 else 1 if world['holder'] == m['team'] else -1,
             world['score' + mine]/rules['goal'],
             world['score' + theirs]/rules['goal'], 1 - world['decision']/rules['limit'],
             world['living' + mine]/n, sum(M[j]['alive'] for j in enemies if not wholly_dead)/n,
             any(sees(a, b) for a in range(2*n) if M[a]['team'] == m['team'] for b in enemies)]
    if dead: ego, suite = np.zeros(32), np.zeros(14)
    return dict(contacts=contacts, contact_mask=contact_mask, squad=squad, squad_mask=squad_mask, ego=ego,
                suite_descriptor=suite,
                panel=np.array(panel, float), terrain=np.zeros(242) if dead else patch(g, w, m))


def above_ground(g, w, m):
    "Height of the feet above the highest blocked voxel under the box, cell by cell"
    S, half = int(g.world[w]['size']), float(g.classes[m['kind']]['half'])
    top = 0
    for a in range(math.floor(m['x'] - half), math.ceil(m['x'] + half)):
        for b in range(math.floor(m['y'] - half), math.ceil(m['y'] + half)):
            if not (0 <= a + S//2 < S and 0 <= b + S//2 < S): return m['z'] - min(math.floor(m['z']), 64)
            for z in range(math.floor(m['z'])):
                if (int(g.move[w, a + S//2, b + S//2]) >> z) & 1: top = max(top, z + 1)
    return m['z'] - top


def patch(g, w, m):
    S, out = int(g.world[w]['size']), np.ones((2, 11, 11))
    for a in range(11):
        for b in range(11):
            ahead, right = 2*(a - 5), 2*(b - 5)
            x, y = m['x'] + ahead*m['hx'] + right*m['hy'], m['y'] + ahead*m['hy'] - right*m['hx']
            if abs(x) >= S/2 or abs(y) >= S/2: continue
            p, q = (math.floor(x) + S//2)//2, (math.floor(y) + S//2)//2
            sight, high = int(g.relief[w, p, q]) & 0xFFFFFFFF, int(g.relief[w, p, q]) >> 40
            out[0, a, b] = np.clip((high - m['z'])/8, -1, 1)
            out[1, a, b] = bin((sight >> math.floor(m['z'])) & 15).count('1')/4
    return out.ravel()


def test_layout():
    at = 0
    for f in ob.LAYOUT: assert f.offset == at; at += f.size
    assert (ob.FLAT_OBS_DIM, at, ob.OBS_DIM) == (706, 948, 948)
    assert [(f.name, f.shape) for f in ob.LAYOUT] == [
        ('contacts', (20, 25)), ('contact_mask', (20,)), ('squad', (12, 10)), ('squad_mask', (12,)),
        ('ego', (32,)),
        ('suite_descriptor', (14,)), ('panel', (8,)), ('terrain', (2, 11, 11))]
    for columns in TABLES.values(): assert len({c.name for c in columns}) == len(columns)
    assert [b.column for b in ACTION] == [0, 1, 4, 5, 6, 7, 8] and sum(b.masks for b in ACTION) == 5
    names = 'FORWARD STRAFE JET YAW PRIMARY VENT SECONDARY TERTIARY SPECIAL'
    assert [a.name for a in ActionIndex] == names.split()


def test_the_terms_are_those_of_the_rules():
    assert tuple(n[2:] for n in RULES.names if n.startswith('w_')) == TERMS


@pytest.mark.parametrize('pack,size', [((1, 5, 3, 1), 64), ((0, 1, 0, 0), 50), ((3, 12, 8, 2), 100)])
def test_observation_against_the_oracle(pack, size):
    g = game(2, pack, size)
    for seed in range(3):
        scatter(g, seed)
        g.obs[:], g.told[:] = np.nan, (ob.CONTACTS, ob.MATES)   # nothing in the row is known to be zero
        observe_all(g, 2)
        for w in range(2):
            for i in range(g.mech.shape[1]):
                expected = oracle(g, w, i)
                for f in ob.LAYOUT:
                    got, want = g.obs[w, i, f.columns], expected[f.name]
                    if f.name == 'terrain':   # a cell border met by rounding may show the neighbouring cell
                        assert (np.abs(got - want) > 1e-4).mean() < .02
                    else: np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f'{f.name}, mech {i}')


@pytest.mark.parametrize('size', [64, 50])
def test_mirrored_mechs_observe_mirror_images(size):
    g = game(4, size=size)
    scatter(g); mirror(g); observe_all(g, 4)
    n = g.mech.shape[1]//2
    blue, red = g.obs[:, :n].copy(), g.obs[:, n:]
    for f in ob.LAYOUT:
        for k, c in enumerate(TABLES.get(f.name, ())):
            if c.name in ('right', 'v_right', 'yaw_sin', 'fire_right', 'zone_right'): blue[...,
                    f.offset + k:f.offset + f.size:f.shape[-1]] *= -1
    at = ob.LAYOUT[-1].columns
    blue[..., at] = blue[..., at].reshape(4, n, 2, 11, 11)[..., ::-1].reshape(4, n, -1)
    assert (blue == red).all()


@pytest.mark.parametrize('script', range(1, 1 + len(SCRIPTS)))
def test_scripts_act_alike_on_both_sides(script):
    g = game(8)
    scatter(g); mirror(g)
    g.control[:] = script
    n = g.mech.shape[1]//2
    for decision in range(12):
        g.world['decision'] = decision
        observe_all(g, 8); script_all(g)
        blue, red = g.action[:, :n].copy(), g.action[:, n:]
        for k in (ActionIndex.STRAFE, ActionIndex.YAW): blue[..., k] *= -1
        assert (blue == red).all() and np.isfinite(red).all() and np.abs(red).max() <= 1.05


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_know_of_others_only_what_they_observe(script):
    "Everything that is true of others may change: with the same observation the action is the same"
    g = game(4, observation_mode='partial')
    scatter(g, dead=0.); observe_all(g, 4)
    g.control[:] = 1 + SCRIPTS.index(script)
    script_all(g)
    before, kept = g.action.copy(), g.mech.copy()
    for name in ('known0', 'known1', 'hunted', 'smoke'): g.world[name] ^= np.uint64(0xffff)
    g.shot['state'], g.cloud['left'], g.track['x'] = 1, 5, 9
    for i in range(g.mech.shape[1]):
        g.mech[:] = kept
        others = np.arange(g.mech.shape[1]) != i
        for name in ('x', 'y', 'hp', 'heat', 'painted', 'vx', 'hx', 'cool0', 'down', 'alive', 'sees',
                     'known'):
            g.mech[name][:, others] += np.array(7, g.mech[name].dtype)
        script_all(g)
        assert (g.action[:, i] == before[:, i]).all()
    g.mech[:] = kept
    g.obs[..., :500] = 0
    g.obs[..., 500:520] = 1
    script_all(g)
    blinded = (g.action != before).any()
    assert blinded == (script not in ('random', 'idle', 'blind'))


def test_a_row_without_a_script_is_left_alone():
    g = game(1); g.action[:] = .5; g.control[0, 3] = 1 + SCRIPTS.index('idle')
    script_all(g)
    assert (g.action[0, 3] == 0).all() and (np.delete(g.action[0], 3, 0) == .5).all()


def test_masks_and_what_fires():
    g = game(1); scatter(g); g.action[:] = 1
    mask_all(g); decode_all(g)
    m, mask = g.mech[0], g.action_mask[0]
    for i in range(20):
        for slot, column in zip(range(4), (0, 2, 3, 4)):
            k = g.classes[m[i]['kind']][f'weapon{slot}']
            armed, device = bool(m[i]['alive']) and k >= 0, bool(m[i]['alive']) and k < -1
            assert m[i][f'fire{slot}'] == armed
            assert mask[i, column] == (device or (armed and m[i][f'cool{slot}'] <= .25))
        assert mask[i, 1] == bool(m[i]['alive']) and (m[i]['jet'] > 0) == (bool(m[i]['alive'])
                                                                           and m[i]['kind'] < 2)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_bad_numbers_become_possible_wishes(value):
    g = game(1); g.action[:] = value
    assert decode_all(g) == (20*9 if np.isnan(value) else 0)
    wishes = np.stack([g.mech[0][n] for n in ('forward', 'strafe', 'jet', 'turn')])
    assert np.isfinite(wishes).all() and np.abs(wishes).max() <= 1 and wishes[2].min() >= 0
    pressed = g.mech[0]['fire0'].any() or g.mech[0]['vent'].any()
    if np.isnan(value): assert not wishes.any() and not pressed


@pytest.mark.parametrize('inside,gain,holder', [
    ({0: {}}, (1, 0), 0), ({0: {}, 2: {}}, (0, 0), -1), ({0: {}, 2: dict(shut=1)}, (1, 0), 0),
    ({0: {}, 2: dict(alive=0)}, (1, 0), 0),
    ({0: {}, 1: {}, 2: {}}, (.25, 0), 0), ({0: dict(shut=1)}, (0, 0), -1), ({2: {}, 3: {}}, (0, 1), 1),
    ({1: {}, 3: dict(z=9., grounded=0)}, (1, 0), 0), ({1: {}, 3: dict(z=3.5, grounded=0)}, (0, 0), -1)])
def test_zone(inside, gain, holder):
    "Two teams of a heavy and a medium; who stands inside, and what that pays per second"
    g = game(1, (1, 1, 0, 0), biomes=())
    g.mech['y'], g.mech['x'] = 30, [[-20, -10, 20, 10]]
    for row, fields in inside.items():
        g.mech['x'][0, row], g.mech['y'][0, row] = 0, g.world['zone_y'][0]
        for k, v in fields.items(): g.mech[k][0, row] = v
    judge_all(g)
    assert np.allclose([g.world['gain0'][0], g.world['gain1'][0]], np.array(gain)*.25,
                       atol=1e-6) and g.world['holder'][0] == holder
    assert g.world['decision'][0] == 1


@pytest.mark.parametrize('alive,points,decision,cut,over,winner', [
    ((2, 2), (0, 0), 10, 0, 0, -1), ((2, 0), (0, 50), 10, 0, 1, 0), ((0, 1), (50, 0), 10, 0, 1, 1),
    ((0, 0), (3, 4), 10, 0, 1, 1), ((0, 0), (4, 4), 10, 0, 1, -1),
    ((2, 2), (60, 10), 10, 0, 1, 0), ((2, 2), (4, 5), 479, 0, 1, 1), ((2, 1), (5, 5), 479, 0, 1, 0),
    ((2, 2), (5, 5), 479, 0, 1, -1),
    ((2, 2), (9, 0), 10, 11, 2, -1), ((2, 2), (9, 0), 10, 12, 0, -1), ((2, 0), (9, 0), 10, 11, 1, 0)])
def test_judge(alive, points, decision, cut, over, winner):
    g = game(1, (0, 2, 0, 0), biomes=())
    g.mech['alive'] = [[1]*alive[0] + [0]*(2 - alive[0]) + [1]*alive[1] + [0]*(2 - alive[1])]
    g.world['score0'], g.world['score1'] = points
    g.world['decision'], g.world['cut'] = decision, cut
    judge_all(g)
    assert (g.world['over'][0], g.world['winner'][0]) == (over, winner)


def test_max_decisions_cuts():
    g = game(1, max_decisions=3)
    for expected in (0, 0, 2): judge_all(g); assert g.world['over'][0] == expected


@pytest.mark.parametrize('end', ['decided', 'cut'])
def test_approach_telescopes(end):
    "The discounted sum is minus the first potential, plus what a cut game still is worth"
    weights = dict(approach=1., zone=0., stand=0., win=0., loss=0., team_share=0.)
    g = game(1, (0, 2, 0, 0), biomes=(), rewards=weights, max_decisions=40 if end == 'cut' else 0)
    prime_all(g)
    rng, m, gamma = np.random.default_rng(0), g.mech[0], float(g.rules['gamma'][0])
    start, total, edge = m['potential'].copy(), np.zeros(4), g.world['size'][0]/2 - 1
    for t in range(40):
        m['x'] = np.clip(m['x'] + rng.uniform(-2, 2, 4), -edge, edge)
        if t == 30: m['alive'][1] = 0
        if t == 39 and end == 'decided': m['alive'][:2] = 0
        reward_all(g)
        total += gamma**t*g.reward[0]
    last = m['potential'] if end == 'cut' else 0
    assert g.world['over'][0] == (1 if end == 'decided' else 2)
    assert np.allclose(total, gamma**40*np.array(last) - start, atol=1e-4)


def test_terms_add_up_to_the_mean_reward():
    g = game(1); scatter(g); prime_all(g)
    g.mech['kills'], g.mech['deaths'], g.mech['overheats'], g.mech['friendly'] = .5, 1, 1, 3
    g.world['decision'] = 479
    reward_all(g)
    n = g.mech.shape[1]//2
    assert np.allclose(g.terms[0].sum(1), [g.reward[0, :n].mean(), g.reward[0, n:].mean()], atol=1e-4)
    outcomes = g.terms[0][:, [TERMS.index(t) for t in ('win', 'draw', 'loss')]]
    assert g.world['over'][0] == 1 and (np.count_nonzero(outcomes, axis=1) <= 1).all()


def test_degenerate_play_does_not_pay():
    "Against the heuristic nobody who shirks earns more than it does"
    import echelon

    harmless = HeuristicPolicy(weapon_fire_prob=0.).temper

    def played(style, games=16):
        world = echelon.make('mech', worlds=games, seed=4, autoreset=False, world=dict(size=64, pool=4))
        n = world.spec.num_agents//2
        world.control[:, :n] = 1 + SCRIPTS.index('heuristic')
        total = np.zeros((games, 2*n))
        while not (world.terminated | world.truncated).all():
            world.action[:] = 0
            if style == 'hovers': world.action[..., ActionIndex.JET] = 1
            if style == 'only vents': world.action[..., ActionIndex.VENT] = 1
            if style == 'walks in and never fires': walk_in(world.game_arrays, n, harmless)
            world.step()
            total += world.reward
        return total[:, :n].mean(), total[:, n:].mean(), world.stats['win'].sum(0)

    for style in ('stands still', 'hovers', 'only vents', 'walks in and never fires'):
        ours, theirs, wins = played(style)
        assert ours > theirs and wins[0] > wins[1], (style, ours, theirs, wins)
