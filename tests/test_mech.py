"What guards the mech world: a battle is a function of its seed, whatever plays beside it."
import numba
import numpy as np
import pytest

from echelon.agents.heuristic import SCRIPTS, HeuristicPolicy
from echelon.core import imported
from echelon.env.battle import MechWorld
from echelon.world import make

SMALL = dict(world=dict(size=48, pool=3), pack=(1, 1, 1, 1), max_episode_seconds=30.)


def battle(world, steps, blue='heuristic', red='recruit'):
    "Digests `[steps, W]` of a run of two scripts"
    scripts = world.spec.scripts
    blue, red = (1 + scripts.index(s) for s in (blue, red))
    world.control[:] = np.where(np.array(world.spec.team) == 0, blue, red)
    return np.array([(world.step(), world.digest())[1] for _ in range(steps)])


@pytest.mark.parametrize('config', [SMALL, {}], ids=['small', '10v10'])
def test_a_world_alone_plays_the_same_battle(config):
    many = make('mech', worlds=64, seed=4, **config)
    steps = 260 if config else 60
    together = battle(many, steps)
    for w in (0, 37, 63):
        alone = make('mech', worlds=1, seed=many.seeds[w:w + 1].copy(), **config)
        assert (battle(alone, steps)[:, 0] == together[:, w]).all(), f'world {w}'
    assert len(set(together[-1].tolist())) == 64


def test_threads_change_nothing():
    runs, before = [], numba.get_num_threads()
    for threads in range(1, min(2, numba.config.NUMBA_NUM_THREADS) + 1):
        numba.set_num_threads(threads)
        runs.append(battle(make('mech', worlds=16, seed=4, **SMALL), 200))
    numba.set_num_threads(before)
    if len(runs) == 1: pytest.skip('this machine has one core')
    assert (runs[0] == runs[1]).all()


def test_state_goes_on_elsewhere():
    a = make('mech', worlds=5, seed=1, **SMALL)
    battle(a, 70)
    b = make('mech', worlds=5, seed=2, **SMALL)
    b.load_state(a.state())
    assert (battle(a, 90) == battle(b, 90)).all() and (a.obs == b.obs).all() and (a.reward == b.reward).all()


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_script_against_itself_is_its_own_mirror_image(script):
    "To the last bit, in the fog, to the end; which is a draw"
    world = make('mech', worlds=2, seed=5, autoreset=False, observation_mode='partial',
                 world=dict(size=64, pool=2))
    world.control[:] = 1 + SCRIPTS.index(script)
    m, over = world.game_arrays.mech, world.game_arrays.world
    while not world.terminated.all():
        world.step()
        for name in ('x', 'vx', 'hx'): assert (m[name][:, :10] == -m[name][:, 10:]).all(), name
        for name in ('y', 'z', 'hp', 'heat', 'leg', 'stability', 'cool1'):
            assert (m[name][:, :10] == m[name][:, 10:]).all(), name
        assert (over['score0'] == over['score1']).all()
    assert (over['winner'] == -1).all() and not world.stats['win'].any()


@pytest.mark.parametrize('pack', [(1, 5, 3, 1), (0, 3, 0, 1)])
def test_swapped_actions_mirror_the_battle(pack):
    "Red doing the mirror image of what blue does keeps the battle a mirror image, to the last bit"
    world = make('mech', worlds=4, seed=3, autoreset=False, world=dict(size=60, pool=4), pack=pack)
    n, rng, mirror = sum(pack), np.random.default_rng(0), np.float32([1, -1, 1, -1, 1, 1, 1, 1, 1])
    for _ in range(300):
        blue = rng.uniform(-1, 1, (4, n, 9)).astype(np.float32)
        blue[..., 0] = np.abs(blue[..., 0])
        world.step(np.concatenate([blue, blue*mirror], 1))
        m = world.game_arrays.mech
        left, right = m[:, :n], m[:, n:]
        for name in ('x', 'vx', 'hx'): assert (left[name] == -right[name]).all(), name
        for name in 'y z vy hy hp heat alive shut in_zone'.split():
            assert (left[name] == right[name]).all(), name
    assert (m['hp'] < world.game_arrays.classes['hp'][m['kind']]).any()
    score = world.game_arrays.world
    assert (score['score0'] == score['score1']).all()


def test_a_blind_swap_of_sides_swaps_the_result():
    "Heuristic against idle and idle against heuristic are the same battle seen from the other side"
    results = []
    for blue, red in (('heuristic', 'idle'), ('idle', 'heuristic')):
        world = make('mech', worlds=8, seed=9, autoreset=False, **SMALL)
        battle(world, 125, blue, red)
        results.append((world.stats['win'].copy(), world.stats['kill'].copy()))
    assert (results[0][0] == results[1][0][:, ::-1]).all() and (results[0][1] == results[1][1][:, ::-1]).all()
    assert results[0][0][:, 0].sum() == 8


def test_max_decisions_cuts():
    world = make('mech', worlds=2, seed=0, autoreset=False, max_decisions=7, **SMALL)
    for t in range(7):
        assert not world.truncated.any()
        world.step()
    assert world.truncated.all() and not world.terminated.any()


def test_an_ended_game_stays_as_it_ended():
    world = make('mech', worlds=2, seed=0, autoreset=False, max_decisions=3, **SMALL)
    for _ in range(3): world.step()
    before, obs = world.digest(), world.obs.copy()
    world.step(np.ones_like(world.action))
    assert (world.digest() == before).all() and (world.obs == obs).all()
    assert not world.reward.any() and world.truncated.all()
    assert (world.stats['games'] == 1).all() and (world.stats['decisions'] == 3).all()
    world.reset()
    assert not world.truncated.any() and world.first.all()


def test_wrong_actions_are_named():
    world = make('mech', worlds=2, **SMALL)
    for call, line in ((lambda: world.step(np.zeros((2, 8, 3), np.float32)),
                        r'shape \(2, 8, 3\).*expected \(2, 8, 9\)'),
                       (lambda: world.step(np.zeros((2, 8, 9))), 'float64.*float32'),
                       (lambda: world.spec.row('green_1'), "agent 'green_1': expected one of blue_0")):
        with pytest.raises(ValueError, match=line): call()


def test_a_map_too_small_is_refused():
    with pytest.raises(ValueError, match='world.size = 20: too small for 10 mechs'):
        make('mech', world=dict(size=20))


def test_foreign_states_and_controls_are_refused():
    small, large = make('mech', worlds=1, **SMALL), make('mech', worlds=1, **SMALL | dict(max_decisions=9))
    with pytest.raises(ValueError, match='state of another config'): large.load_state(small.state())
    small.control[:] = 10
    with pytest.raises(ValueError, match='control from 10 to 10: expected 0 to 9'): small.step()


def test_every_pack_has_its_leader():
    world = make('mech', worlds=1, packs_per_team=2, pack=(1, 2, 0, 0))
    commands = world.obs[0, :6, world.spec.field('suite_descriptor').offset + 4]
    assert commands.tolist() == [0, 1, 0, 0, 1, 0]


def test_a_cut_corridor_stays_cut():
    world = make('corridor', worlds=3, length=2, autoreset=False)
    for _ in range(8): world.step(np.ones_like(world.action))
    assert world.truncated.all()
    digest = world.digest()
    for _ in range(4): world.step(np.zeros_like(world.action))
    assert world.truncated.all() and not world.terminated.any() and not world.reward.any()
    assert (world.digest() == digest).all() and (world.stats['games'] == 1).all()


def test_a_row_keeps_nothing_of_what_it_was_told():
    "A world that wipes only what it wrote shows the same as one that has to write every number"
    a, b = (make('mech', worlds=4, seed=3, observation_mode='partial', **SMALL) for _ in range(2))
    for world in (a, b): world.control[:] = 1
    for _ in range(12):
        for _ in range(6): a.step()
        b.load_state(a.state())
        a.step(); b.step()
        assert (a.obs == b.obs).all()
    assert not a.alive.all()


def test_observations_are_read_only():
    world = make('mech', worlds=1, **SMALL)
    with pytest.raises(ValueError, match='read-only'): world.obs[:] = 0


def test_a_module_is_compiled_again_when_ours_changes():
    assert 'echelon.world' in imported('test_mech') and 'echelon.core' in imported('test_mech')


def test_who_does_not_take_part_is_dead_from_the_first_moment():
    config = dict(world=dict(size=48, pool=3), packs_per_team=2, pack=(0, 1, 1, 0), max_episode_seconds=20.,
                  observation_mode='partial')
    world = make('mech', worlds=6, seed=3, **config)
    world.set_packs(1, 2)
    assert world.reset() is world.obs
    mask, living = world.spec.field('contact_mask').columns, world.spec.field('panel').offset + 5
    sizes = set()
    world.control[:] = 1 + SCRIPTS.index('heuristic')
    for _ in range(200):
        world.step()
        for w in np.flatnonzero(world.first):
            packs = world.game_arrays.world['packs'][w]
            sizes.add(int(packs))
            taking = np.tile(np.arange(4) < 2*packs, 2)
            assert (world.alive[w] == taking).all() and (world.obs[w, ~taking, mask] == 1).all()
            assert (world.obs[w, :, living] == 1).all() and not world.obs[w, ~taking, :500].any()
    assert sizes == {1, 2} and world.stats['games'].min() >= 2
    other = make('mech', worlds=6, seed=9, **config)
    other.load_state(world.state())
    for _ in range(100): world.step(); other.step()
    assert (world.digest() == other.digest()).all() and (world.obs == other.obs).all()


@pytest.mark.parametrize('script', ['random', 'rusher', 'blind'])
def test_scripts_hold_their_fire(script):
    "A share of 0 never fires, a share of 1 does, and the change waits for the next game"
    world = make('mech', worlds=2, seed=3, autoreset=False, **SMALL)
    world.control[:] = 1 + SCRIPTS.index(script)
    world.set_arms(0.)
    again = np.array([True, False])
    world.reset(worlds=again)
    fired = np.zeros(2)
    for _ in range(100):
        world.step()
        fired += sum((world.game_arrays.mech[f'fire{k}'] != 0).any(1) for k in range(4))
    assert fired[0] == 0 < fired[1]


@pytest.mark.parametrize('change', [dict(packs=0), dict(packs=3), dict(arms=2.), dict(arms=np.nan)])
def test_states_of_impossible_curricula_are_refused(change):
    world = make('mech', worlds=1, **SMALL)
    for table in (lambda s: s, lambda s: s['world']):
        state = world.state()
        for name, value in change.items(): table(state)[name][:] = value
        with pytest.raises(ValueError, match='state: packs'): world.load_state(state)
    for wrong in (lambda: world.set_packs(0, 1), lambda: world.set_packs(1, 2), lambda: world.set_arms(1.5)):
        with pytest.raises(ValueError, match='expected'): wrong()


@pytest.mark.parametrize('name', [s for s in SCRIPTS if s not in ('random', 'idle', 'blind')])
def test_a_policy_does_what_the_script_does(name):
    "Actions given from outside make the same battle as the script inside, whole batches or mech by mech"
    inside, outside = (make('mech', worlds=2, seed=4, autoreset=False, observation_mode='partial', **SMALL)
                       for _ in range(2))
    inside.control[:] = 1 + SCRIPTS.index(name)
    policy = HeuristicPolicy(weapon_fire_prob=.5) if name == 'recruit' else HeuristicPolicy(personality=name)
    for t in range(60):
        actions = policy.actions(outside)
        for agent in ('blue_0', 'red_3'):
            row = outside.spec.row(agent)
            assert (policy.act(outside, agent) == actions[0, row]).all()
        inside.step()
        outside.step(actions)
        assert (inside.obs == outside.obs).all() and (inside.reward == outside.reward).all(), t
    assert np.abs(actions).sum() > 0


def test_a_smaller_game_pays_as_if_it_had_been_made_so():
    "One pack in a world made for two: panel, rewards and margin as in a world made for one"
    config = dict(worlds=3, seed=6, autoreset=False, observation_mode='partial', pack=(1, 1, 1, 1),
                  world=dict(size=64, pool=2, biomes=()))
    small, large = make('mech', **config), make('mech', packs_per_team=2, **config)
    large.set_packs(1, 1)
    large.reset(seed=6)
    taking = np.r_[0:4, 8:12]
    for name in ('x', 'y'): large.game_arrays.mech[name][:, taking] = small.game_arrays.mech[name]
    panel = small.spec.field('panel').columns
    for world in (small, large):
        world.step()                                         # they stand, and look around
        world.control[:] = 1 + SCRIPTS.index('rusher')
        world.drain()
    for t in range(240):
        small.step(); large.step()
        here, there = small.game_arrays.mech, large.game_arrays.mech[:, taking]
        assert all((here[n] == there[n]).all() for n in ('x', 'y', 'hp', 'heat')), t
        assert (small.reward == large.reward[:, taking]).all() and not large.reward[:, 4:8].any()
        assert (small.obs[..., panel] == large.obs[:, taking, panel]).all()
    for name in ('hp_margin', 'kill', 'damage', 'reward_damage', 'reward_win'):
        assert np.allclose(small.stats[name], large.stats[name], atol=1e-4), name
    assert small.stats['damage'].sum() > 0


def test_a_state_fits_a_world_that_never_played():
    world = make('mech', worlds=2, seed=4, **SMALL)
    for _ in range(30): world.step()
    fresh = MechWorld(2, world.config)
    fresh.load_state(world.state())
    for _ in range(30): world.step(); fresh.step()
    assert (world.digest() == fresh.digest()).all()


@pytest.mark.parametrize('table', ['world', 'mech', 'shot', 'cloud', 'track'])
def test_no_number_of_a_state_is_taken_on_trust(table):
    "Every field of every record, at its worst: refused, or played on without harm"
    world = make('mech', worlds=1, seed=4, observation_mode='partial', **SMALL)
    world.control[:] = 1 + SCRIPTS.index('heuristic')
    for _ in range(20): world.step()
    good, refused = world.state(), 0
    for name in good[table].dtype.names:
        kind = good[table].dtype[name].kind
        for value in (np.nan, np.inf, 1e30, -1e30) if kind == 'f' else (2**31 - 1, 0) if kind == 'u' else (
                2**31 - 1, -2**31, 99, -7):
            state = world.state()
            state[table][name].flat[0] = value
            try: world.load_state(state)
            except ValueError: refused += 1
            for _ in range(3): world.step()
            assert np.isfinite(world.obs).all() and np.isfinite(world.reward).all(), (name, value)
            world.load_state(good)
    assert refused > len(good[table].dtype.names)
