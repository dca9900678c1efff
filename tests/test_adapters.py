"""What other libraries see of a world: PettingZoo, lists of environments, Gymnasium, Stable-Baselines3.

Oracles: the world itself for the first two, the libraries' own vectors of single environments
for the others."""
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from pettingzoo.test import parallel_api_test, parallel_seed_test
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from echelon.agents.heuristic import HeuristicPolicy
from echelon.config import EnvConfig
from echelon.core import mix
from echelon.env.adapters import GymnasiumSingle, GymnasiumVector, SB3Vector
from echelon.env.battle import MechWorld
from echelon.env.env import EchelonEnv, ParallelWorld, outcome
from echelon.named import NamedGame, action_bounds
from echelon.training.vec_env import VectorEnv
from echelon.world import Corridor, CorridorConfig, make

ROOT = Path(__file__).resolve().parent.parent
BATTLE = EnvConfig(world=dict(size=32, pool=2), pack=(0, 2, 1, 0))
DUEL = EnvConfig(world=dict(size=32, pool=1), pack=(0, 2, 0, 0))
WORLDS = dict(mech=DUEL.model_dump(), corridor=dict(agents=3, length=2, slip=.5),   # name -> config
              swarm=dict(robots=4, message_dim=1, max_episode_seconds=3))


def noise(rng, *shape): return rng.uniform(-1, 1, shape).astype(np.float32)


def same(a, b):
    "Whether two states of a world are equal, array by array"
    return a.keys() == b.keys() and all((v == b[k]).all() for k, v in a.items())


def untouched(world, call):
    "The message with which `call` is refused; nothing in the world may have changed"
    before, digest = world.state(), world.digest()
    with pytest.raises(ValueError) as refused: call()
    assert same(before, world.state()) and (digest == world.digest()).all()
    assert '\n' not in str(refused.value)
    return str(refused.value)


def strike(env, *rows):
    "Leave these mechs without hit points: they fall in the next tick"
    env.world.game_arrays.mech['hp'][0, list(rows)] = 0


def still(env): return {n: np.zeros(env.world.spec.action_dim, np.float32) for n in env.agents}


# -- PettingZoo

def parallel(name): return ParallelWorld(make(name, worlds=1, autoreset=False, **WORLDS[name]))


def nothing_found(new):
    "PettingZoo's own tests of environments that `new` makes, without a warning"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        parallel_api_test(new(), num_cycles=500)
        parallel_seed_test(new, num_cycles=200)


@pytest.mark.parametrize('opponent', [None, 'heuristic'])
def test_pettingzoo_finds_nothing(opponent): nothing_found(lambda: EchelonEnv(BATTLE, opponent))


@pytest.mark.parametrize('name', WORLDS)
def test_pettingzoo_finds_nothing_in_any_world(name):
    nothing_found(lambda: parallel(name))
    env = parallel(name)
    assert env.metadata['name'] == f'echelon_{name}_v0' and env.possible_agents == list(env.world.spec.agents)


@pytest.mark.parametrize('name', WORLDS)
def test_any_world_by_names_is_that_world(name):
    env, world = parallel(name), make(name, worlds=1, autoreset=False, **WORLDS[name])
    rng, rows = np.random.default_rng(2), {n: world.spec.row(n) for n in world.spec.agents}
    for seed in (4, None):
        world.reset(seed)
        obs, _ = env.reset(seed=seed)
        for _ in range(40):
            if not env.agents: break
            assert all((obs[n] == world.obs[0, rows[n]]).all() for n in env.agents)
            action = rng.uniform(*action_bounds(world.spec), world.action.shape).astype(np.float32)
            action[0, [i for n, i in rows.items() if n not in env.agents]] = 0
            world.step(action)
            obs, rewards, *_ = env.step({n: action[0, rows[n]] for n in env.agents})
            assert rewards == {n: world.reward[0, rows[n]] for n in rewards}
        assert (env.world.digest() == world.digest()).all() and (env.state() == world.obs[0]).all()
        assert env.agents or (world.terminated | world.truncated)[0]


@pytest.mark.parametrize('opponent', [None, 'heuristic'])
def test_a_game_by_names_is_the_game_of_the_world(opponent):
    env, world = EchelonEnv(BATTLE, opponent), make('mech', worlds=1, autoreset=False, **BATTLE.model_dump())
    spec, rng, deaths = world.spec, np.random.default_rng(0), 0
    if opponent: world.control[0, 3:] = 1 + spec.scripts.index(opponent)
    for seed in (11, None):                      # and the game after it
        world.reset(seed)
        obs, infos = env.reset(seed)
        assert list(obs) == env.agents == list(spec.agents[:3] if opponent else spec.agents)
        while env.agents:
            before, action = env.agents, noise(rng, *world.action.shape)
            action[0, [i for i, n in enumerate(spec.agents) if n not in before]] = 0
            world.step(action)
            told = env.step({n: action[0, spec.row(n)] for n in before})
            assert all(list(t) == before for t in told)
            for n, i in ((n, spec.row(n)) for n in before):
                obs, reward, terminated, truncated, info = (t[n] for t in told)
                assert (obs == world.obs[0, i]).all() and reward == world.reward[0, i]
                assert (info['action_mask'] == world.action_mask[0, i]).all()
                assert terminated == bool(world.terminated[0] or not world.alive[0, i]) and not truncated
            deaths += len(before) - len(env.agents) if env.agents else 0
        assert world.terminated[0] and (env.world.digest() == world.digest()).all()
    assert deaths > 1


def test_a_death_is_told_once_and_leaves_the_game():
    env = EchelonEnv(DUEL)
    env.reset(seed=1)
    strike(env, 1)
    obs, rewards, terminated, truncated, infos = env.step(still(env))
    assert terminated == dict(blue_0=False, blue_1=True, red_0=False, red_1=False)
    assert not any(truncated.values()) and env.agents == ['blue_0', 'red_0', 'red_1']
    own = EnvConfig().rewards                     # its death is in its own reward and in its team's
    assert rewards['blue_1'] < rewards['blue_0'] and own.death < 0
    assert not infos['blue_1']['action_mask'].any() and (obs['blue_1'] == env.world.obs[0, 1]).all()
    assert env.last_outcome is None
    for told in env.step(still(env)): assert set(told) == {'blue_0', 'red_0', 'red_1'}
    assert untouched(env.world, lambda: env.step(still(env) | dict(blue_1=np.zeros(9, np.float32)))) \
        .startswith('action of blue_1: it is dead')


@pytest.mark.parametrize('fallen, winner', [((2, 3), 'blue'), ((0, 1), 'red'), ((0, 1, 2, 3), None)])
def test_the_end_of_a_battle_ends_everybody(fallen, winner):
    env = EchelonEnv(DUEL)
    env.reset(seed=1)
    strike(env, *fallen)
    _, _, terminated, truncated, _ = env.step(still(env))
    assert all(terminated.values()) and len(terminated) == 4 and not any(truncated.values())
    living = dict(blue=2 - sum(i < 2 for i in fallen), red=2 - sum(i > 1 for i in fallen))
    expected = dict(winner=winner, reason='destroyed', score=dict(blue=0., red=0.), living=living,
                    decisions=1)
    assert env.last_outcome == expected and env.agents == []
    assert 'reset' in untouched(env.world, lambda: env.step({}))
    env.reset()
    assert env.last_outcome == expected and len(env.agents) == 4


def test_a_cut_truncates_the_living_and_terminates_the_dead():
    env = EchelonEnv(EnvConfig(**DUEL.model_dump() | dict(max_decisions=2)))
    env.reset(seed=1)
    env.step(still(env))
    strike(env, 0)
    _, _, terminated, truncated, _ = env.step(still(env))
    assert terminated == dict(blue_0=True, blue_1=False, red_0=False, red_1=False)
    assert truncated == {n: not t for n, t in terminated.items()} and env.agents == []
    assert env.last_outcome['reason'] == 'cut' and env.last_outcome['winner'] is None


def test_points_and_time_decide_too():
    env = EchelonEnv(DUEL)
    for score, decision, reason, winner in (((99, 0), 5, 'points', 'blue'), ((0, 3), 10**6, 'time', 'red')):
        env.reset(seed=1)
        record = env.world.game_arrays.world
        record['score0'], record['score1'], record['decision'] = *score, decision
        env.step(still(env))
        assert (env.last_outcome['reason'], env.last_outcome['winner']) == (reason, winner)
    assert outcome(MechWorld(1, DUEL, autoreset=False)) is None


def test_seeds_and_the_games_that_follow():
    def games(env, *seeds): return [(env.reset(seed=s), int(env.world.key[0]))[1] for s in seeds]
    a, b = EchelonEnv(DUEL), EchelonEnv(DUEL)
    one, two, three, again = games(a, 5, None, None, 5)
    assert one == again and len({one, two, three}) == 3
    assert games(b, 5, np.int64(5), None, None) == [one, one, two, three]
    assert games(EchelonEnv(DUEL), None) == games(b, 0)            # until told, the seed is 0
    for wrong in (-1, 2**63, .5, 'five', True):
        assert 'seed' in untouched(b.world, lambda: b.reset(seed=wrong))


def test_spaces_hold_what_comes_and_copies_are_copies():
    env = EchelonEnv(BATTLE)
    obs, infos = env.reset(seed=1)
    n = 'blue_0'
    assert env.action_space(n) is env.action_space(n) and env.observation_space(n) is env.observation_space(n)
    assert env.observation_space(n).contains(obs[n])
    assert env.action_space(n).contains(env.action_space(n).sample())
    assert env.state_space.contains(env.state()) and env.last_outcome is None
    low, high = action_bounds(env.world.spec)
    assert (env.action_space(n).low == low).all() and (env.action_space(n).high == high).all()
    digest, kept = env.world.digest(), {k: v.copy() for k, v in obs.items()}
    for handed in (*obs.values(), *(i['action_mask'] for i in infos.values()), env.state()): handed[:] = 1
    assert (env.world.digest() == digest).all() and (env.world.obs[0] == np.stack(list(kept.values()))).all()
    obs, *_ = env.step(still(env))
    kept = {k: v.copy() for k, v in obs.items()}
    env.step(still(env))
    assert all((obs[k] == v).all() for k, v in kept.items())


def test_a_nan_counts_as_nothing_and_is_counted():
    games = []
    for x in (0., np.nan):
        env = EchelonEnv(DUEL)
        env.reset(seed=2)
        told = [env.step(still(env) | dict(red_1=np.full(9, x, np.float32))) for _ in range(5)]
        games.append((told, int(env.world.stats['nan'].sum())))
    assert data_equivalence(games[0][0], games[1][0], exact=True) and [g[1] for g in games] == [0, 45]


DTYPES = st.sampled_from(['f8', 'f2', 'i4', '?', 'O', '>f4', 'U1'])


def wrong_row(n):
    "What is no row of `n` float32 numbers"
    shapes = st.sampled_from([(), (0,), (n - 1,), (n + 1,), (1, n), (n, 1)])
    return st.one_of(shapes.map(lambda s: np.zeros(s, np.float32)), DTYPES.map(lambda d: np.zeros(n, d)),
                     st.sampled_from([None, 0., [0.]*n, 'row', (0.,)*n, torch.zeros(n)]))


NOBODY = st.one_of(st.text(max_size=8), st.integers(-3, 30), st.none(),
                   st.sampled_from(['blue_2', 'red_9', 'BLUE_0', 'walker_3']))


@pytest.fixture(scope='module', params=WORLDS)
def env(request):
    "A game in which, where a row can be lost, one has been"
    env = parallel(request.param)
    for k, n in enumerate(env.possible_agents): env.action_space(n).seed(k)
    for seed in range(20):
        env.reset(seed=seed)
        if request.param == 'mech': strike(env, 1)
        for _ in range(20):
            if len(env.agents) < len(env.possible_agents): break
            env.step({n: env.action_space(n).sample() for n in env.agents})
        if env.agents: return env      # else all were lost at once
    raise AssertionError('every game was over at once')


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_wrong_rows_are_refused(env, data):
    name = data.draw(st.sampled_from(env.agents))
    row = data.draw(wrong_row(env.world.spec.action_dim))
    assert name in untouched(env.world, lambda: env.step(still(env) | {name: row}))


@settings(max_examples=60, deadline=None)
@given(extra=NOBODY, data=st.data())
def test_wrong_names_are_refused(env, extra, data):
    right, row = still(env), np.zeros(env.world.spec.action_dim, np.float32)
    if extra not in right: assert repr(extra) in untouched(env.world, lambda: env.step(right | {extra: row}))
    gone = data.draw(st.sets(st.sampled_from(env.agents), min_size=1))
    message = untouched(env.world, lambda: env.step({n: a for n, a in right.items() if n not in gone}))
    assert all(n in message for n in gone)
    for lost in set(env.possible_agents) - set(env.agents):
        message = untouched(env.world, lambda: env.step(right | {lost: row}))
        assert message.startswith(f'action of {lost}: it is dead')


def test_what_is_no_dictionary_is_refused(env):
    for wrong in (None, [], 5, np.zeros((3, 9), np.float32)): untouched(env.world, lambda: env.step(wrong))
    fresh = ParallelWorld(env.world)
    with pytest.raises(ValueError, match='reset'): fresh.step({})
    with pytest.raises(ValueError, match='nobody'): ParallelWorld(env.world, opponent='nobody')


def test_a_world_that_is_not_one_game_is_refused():
    with pytest.raises(ValueError, match='autoreset'): NamedGame(make('corridor', worlds=1))
    for message, wrong in dict(autoreset=dict(worlds=1), games=dict(worlds=2, autoreset=False)).items():
        world = make('corridor', **wrong)
        assert message in untouched(world, lambda: ParallelWorld(world, opponent='solver'))


# -- lists of environments

def test_every_entry_of_the_lists_is_an_environment():
    rng, seeds = np.random.default_rng(1), [4, 9, 4]
    with VectorEnv(3, BATTLE, opponent='heuristic') as envs:
        singles = [EchelonEnv(BATTLE, 'heuristic') for _ in seeds]
        obs, infos = envs.reset(seeds)
        for k, env in enumerate(singles):
            assert data_equivalence(env.reset(seed=seeds[k]), (obs[k], infos[k]), exact=True)
        while any(env.agents for env in singles):
            actions = [{n: noise(rng, 9) for n in env.agents} for env in singles]
            lists = envs.step(actions)
            for k, env in enumerate(singles):
                if not env.agents:
                    assert all(told[k] == {} for told in lists)
                    continue
                told = tuple(told[k] for told in lists)
                assert data_equivalence(env.step(actions[k]), told, exact=True)
        assert envs.world.digest().tolist() == [env.world.digest()[0] for env in singles]
        assert [outcome(envs.world, k) for k in range(3)] == [env.last_outcome for env in singles]
        with pytest.raises(ValueError, match='reset'): envs.step([{}]*3)
        digest = envs.world.digest()
        obs, infos = envs.reset([9], indices=[2])
        assert len(obs) == len(infos) == 1 and (envs.world.digest() == digest).tolist() == [True, True, False]
        *_, third = envs.step([{}, {}, {n: np.zeros(9, np.float32) for n in obs[0]}])[0]
        assert third.keys() == obs[0].keys()


def test_wrong_lists_change_nothing():
    with VectorEnv(2, DUEL) as envs:
        with pytest.raises(ValueError, match='reset'): envs.step([{}, {}])
        envs.reset([1, 2])
        right = [{n: np.zeros(9, np.float32) for n in g.agents} for g in envs.games]
        for wrong in ([], right[:1], right*2, [right[0], {}], [right[0], right[1] | dict(x=None)],
                      [right[0], right[1] | dict(red_1=np.zeros(9))]):
            untouched(envs.world, lambda: envs.step(wrong))
        for seeds, indices in (([1], None), ([1, 2], [0]), ([1], [2]), ([1], [-1]), ([1, 1], [0, 0]),
                               ([-1], [0]), ([.5], [0]), ([1], ['a'])):
            untouched(envs.world, lambda: envs.reset(seeds, indices))
        assert envs.reset([], []) == ([], [])


def test_a_curriculum_waits_for_each_reset():
    config = EnvConfig(world=dict(size=48, smallest=24, pool=2), pack=(0, 2, 0, 0))
    with VectorEnv(2, config) as envs:
        now = envs.get_curriculum()
        assert now == dict(weapon_prob=1., map_size_range=(24, 48), packs_per_team_range=(1, 1))
        envs.set_curriculum(map_size_range=(24, 24))
        envs.reset([1, 2])
        size = envs.world.game_arrays.world['size']
        assert size.tolist() == [24, 24]
        envs.set_curriculum(weapon_prob=1., map_size_range=(48, 48), packs_per_team_range=(1, 1))
        assert envs.get_curriculum()['map_size_range'] == (48, 48) and size.tolist() == [24, 24]
        envs.reset([3], indices=[1])
        assert size.tolist() == [24, 48]
        now = envs.get_curriculum()
        for wrong in (dict(map_size_range=(24, 50)), dict(map_size_range=(48, 24)),
                      dict(map_size_range=(25, 48)), dict(map_size_range=(0, 48)), dict(map_size_range=24),
                      dict(weapon_prob=-.1), dict(weapon_prob=float('nan')), dict(weapon_prob='1'),
                      dict(packs_per_team_range=(1, 2)), dict(packs_per_team_range=(0, 1)),
                      dict(map_size_range=(24, 24), weapon_prob=2.)):
            untouched(envs.world, lambda: envs.set_curriculum(**wrong))
            assert envs.get_curriculum() == now


# -- Gymnasium

def single(**config): return GymnasiumSingle(make('corridor', worlds=1, autoreset=False, **config))


def flat(seeds, autoreset=True, **config):
    "A batch in which world `w` plays what a single environment plays with `seeds[w]`"
    keys = np.array([mix(s, 0) for s in seeds], np.uint64)
    return Corridor(len(seeds), CorridorConfig(**config), keys, autoreset)


def test_checkers_accept_a_single_environment():
    battle = MechWorld(1, DUEL, autoreset=False)
    battle.control[0, 1:] = 1
    for env in (single(), GymnasiumSingle(battle, 'blue_0')):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)      # advice on infinite and asymmetric bounds
            check_env(env)
            sb3_check_env(env)
        assert env.observation_space.contains(env.reset(seed=1)[0])


@pytest.mark.parametrize('mode', [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_the_vector_is_gymnasiums_vector_of_singles(mode):
    seeds, rng = [5, 6, 7, 8], np.random.default_rng(0)
    theirs = SyncVectorEnv([lambda: single(length=2)]*4, autoreset_mode=mode)
    ours = GymnasiumVector(flat(seeds, mode is AutoresetMode.SAME_STEP, length=2))
    assert ours.metadata['autoreset_mode'] is mode and ours.num_envs == theirs.num_envs == 4
    for name in ('observation_space', 'action_space', 'single_observation_space', 'single_action_space'):
        assert getattr(ours, name) == getattr(theirs, name)
    (obs, infos), (other, their_infos) = ours.reset(), theirs.reset(seed=seeds)
    assert (obs == other).all() and infos.keys() == their_infos.keys()
    ends = cuts = 0
    for _ in range(60):
        actions = rng.integers(0, 3, (4, 1)).astype(np.float32)
        *told, infos = ours.step(actions)
        *others, their_infos = theirs.step(actions)
        assert all((a == b).all() for a, b in zip(told, others)) and told[0] in ours.observation_space
        for key in ('action_mask', 'alive', '_alive'): assert (infos[key] == their_infos[key]).all()
        done = told[2] | told[3]
        ends, cuts = ends + told[2].sum(), cuts + told[3].sum()
        if mode is AutoresetMode.SAME_STEP:
            assert ('final_obs' in infos) == ('final_obs' in their_infos) == done.any()
            if done.any(): assert (infos['_final_obs'] == their_infos['_final_obs']).all()
            for k in np.flatnonzero(done): assert (infos['final_obs'][k] == their_infos['final_obs'][k]).all()
        elif done.any():
            untouched(ours.world, lambda: ours.step(actions))
            a, b = (envs.reset(options=dict(reset_mask=done.copy()))[0] for envs in (ours, theirs))
            assert (a == b).all()
    assert ends > 5 and cuts > 1


def test_rows_of_a_game_share_its_end_and_the_dead_stay():
    world = make('corridor', worlds=2, seed=1, agents=3, length=1, slip=0.)
    envs = GymnasiumVector(world, ['walker_2', 'walker_0'])
    assert envs.num_envs == 4
    obs, _ = envs.reset(seed=1)
    assert (obs == world.obs[:, [2, 0]].reshape(4, -1)).all()
    go, left, wait = np.zeros((4, 1), np.float32), np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)
    envs.step(go)
    left[1] = 0                                    # of game 0 only walker_2 opens a door, of game 1 both
    _, reward, terminated, truncated, infos = envs.step(left)
    assert infos['alive'].tolist() == [False, True, False, False] and not (terminated | truncated).any()
    assert (reward == world.reward[:, [2, 0]].reshape(-1)).all()
    for _ in range(2): _, _, terminated, truncated, infos = envs.step(wait)
    assert truncated.all() and not terminated.any() and infos['_final_obs'].all() and infos['alive'].all()


def test_a_mask_resets_whole_games():
    envs = GymnasiumVector(make('corridor', worlds=3, autoreset=False, agents=2))
    envs.reset(seed=1)
    for _ in range(3): before, *_ = envs.step(np.zeros((6, 1), np.float32))
    mask = np.array([False, False, True, True, False, False])
    after, _ = envs.reset(options=dict(reset_mask=mask))
    assert (after[~mask] == before[~mask]).all() and (after[mask, 0] == 0).all()
    for wrong in (mask[[2, 0, 1, 3, 4, 5]], mask & False, np.ones(3, np.bool_), [True]*6, np.ones(6)):
        untouched(envs.world, lambda: envs.reset(options=dict(reset_mask=wrong)))


def test_seeds_of_vectors():
    first = [GymnasiumVector(make('corridor', worlds=8, seed=s)) for s in (1, 2)]
    a, b = (envs.reset(seed=9)[0] for envs in first)
    assert (a == b).all() and not (a == first[0].reset(seed=10)[0]).all()
    assert first[0].reset(seed=np.int64(9))[0].tolist() == a.tolist()
    for envs in (first[0], single()): untouched(getattr(envs, 'world', make('corridor', worlds=1)),
                                                lambda: envs.reset(seed=-1))


# -- Stable-Baselines3

def test_the_sb3_vector_is_their_vector_of_singles():
    rng = np.random.default_rng(0)
    theirs, ours = DummyVecEnv([lambda: single(length=2)]*4), SB3Vector(flat([5, 6, 7, 8], length=2))
    theirs.seed(5)
    assert (ours.reset() == theirs.reset()).all() and ours.action_space == theirs.action_space
    done = cuts = 0
    for _ in range(60):
        actions = rng.integers(0, 3, (4, 1)).astype(np.float32)
        *told, infos = ours.step(actions)
        *others, their_infos = theirs.step(actions)
        assert all((a == b).all() for a, b in zip(told, others))
        for mine, other in zip(infos, their_infos):
            assert mine['TimeLimit.truncated'] is bool(other['TimeLimit.truncated'])
            assert ('terminal_observation' in mine) == ('terminal_observation' in other)
            for last in {'terminal_observation'} & set(mine): assert (mine[last] == other[last]).all()
        done, cuts = done + told[2].sum(), cuts + sum(i['TimeLimit.truncated'] for i in infos)
    assert done > cuts > 1


def test_sb3_manners():
    ours = SB3Vector(make('corridor', worlds=2, seed=3, agents=2), ['walker_1'])
    ours.seed(4); one = ours.reset()
    ours.seed(4); assert (ours.reset() == one).all()
    assert ours.num_envs == 2 and ours.env_is_wrapped(gymnasium.Wrapper) == [False]*2
    assert ours.get_attr('render_mode', 0) == [None] and not ours.has_attr('wings')
    for call in (lambda: ours.set_attr('x', 1), lambda: ours.env_method('reset')): untouched(ours.world, call)
    watched = VecMonitor(ours)
    watched.reset()
    for _ in range(40): *_, infos = watched.step(np.zeros((2, 1), np.float32))
    assert watched.episode_count == 2 and ours.close() is None
    with pytest.raises(ValueError, match='autoreset'): SB3Vector(make('corridor', worlds=1, autoreset=False))


@pytest.mark.parametrize('name', ['corridor', 'mech'])
def test_recurrent_ppo_trains(name):
    torch.set_num_threads(1)
    if name == 'corridor': envs = SB3Vector(make('corridor', worlds=8, seed=1, memory=True, length=3))
    else:
        world = MechWorld(4, DUEL)
        world.control[:, 2:] = 1 + world.spec.scripts.index('heuristic')
        envs = SB3Vector(world, ['blue_0', 'blue_1'])
    learner = RecurrentPPO('MlpLstmPolicy', envs, n_steps=32, batch_size=64, n_epochs=2, seed=0, device='cpu',
                           policy_kwargs=dict(lstm_hidden_size=16, net_arch=[16]))
    before = {k: v.clone() for k, v in learner.policy.state_dict().items()}
    learner.learn(2*32*envs.num_envs)
    after = learner.policy.state_dict()
    assert learner.num_timesteps == 2*32*8
    assert all(v.isfinite().all() for v in after.values())
    assert all(not torch.equal(v, after[k]) for k, v in before.items() if 'lstm' in k or 'action_net' in k)


# -- both vectors

def vectors():
    for adapter in (GymnasiumVector, SB3Vector):
        envs = adapter(make('corridor', worlds=2, seed=1, agents=2))
        envs.reset()
        yield envs


ADAPTERS = list(vectors())


@pytest.mark.parametrize('envs', ADAPTERS, ids=['gymnasium', 'sb3'])
@settings(max_examples=40, deadline=None)
@given(st.one_of(st.sampled_from([(), (4,), (3, 1), (5, 1), (4, 2), (2, 2), (1, 4, 1)])
                 .map(lambda s: np.zeros(s, np.float32)),
                 DTYPES.map(lambda d: np.zeros((4, 1), d)),
                 st.integers(0, 3).map(lambda k: np.diag([np.nan]*4)[k, :, None].astype(np.float32)),
                 st.sampled_from([None, 1., [[0.]]*4, {}, 'act'])))
def test_wrong_batches_are_refused(envs, actions):
    assert 'actions' in untouched(envs.world, lambda: envs.step(actions))


@pytest.mark.parametrize('envs', ADAPTERS, ids=['gymnasium', 'sb3'])
def test_vectors_hand_out_copies(envs):
    world = envs.world
    for _ in range(40):
        out = envs.step(np.zeros((4, 1), np.float32))
        arrays = [a for a in out if isinstance(a, np.ndarray)]
        infos = [out[-1]] if isinstance(out[-1], dict) else out[-1]
        arrays += [v for i in infos for v in i.values() if isinstance(v, np.ndarray) and v.dtype != object]
        arrays += [v for i in infos for v in i.get('final_obs', ()) if v is not None]
        held = [b for b in world._arrays().values()]
        assert not any(np.shares_memory(a, b) for a in arrays for b in held)
        before = world.state()
        for a in arrays: a[...] = 1
        assert same(before, world.state())
    assert world.stats['games'].min() > 0


def test_wrong_rows_and_worlds_are_refused():
    world = make('corridor', worlds=2, agents=3)
    for adapter in (GymnasiumVector, SB3Vector):
        for rows in ([], [0, 0], ['walker_1', 1], [3], [-1], ['nobody']):
            untouched(world, lambda: adapter(world, rows))
    world.control[:, 1] = 1
    untouched(world, lambda: GymnasiumVector(world))
    assert GymnasiumVector(world, [0, 2]).num_envs == 4
    for wrong in (world, make('corridor', worlds=1)):
        with pytest.raises(ValueError, match='autoreset'): GymnasiumSingle(wrong)
    fresh = GymnasiumVector(Corridor(1, CorridorConfig()))
    untouched(fresh.world, lambda: fresh.step(np.zeros((1, 1), np.float32)))
    env = single()
    env.reset(seed=1)
    for wrong in (np.zeros((1, 1), np.float32), np.zeros(1), 0, None):
        untouched(env.vector.world, lambda: env.step(wrong))


# -- imports

def run(code): subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_nothing_is_imported_that_was_not_asked_for():
    run('''
import sys, echelon.env.battle, echelon.named
assert not {'pettingzoo', 'gymnasium', 'stable_baselines3', 'torch'} & set(sys.modules)
import echelon.env.adapters, echelon.training.vec_env
assert not {'pettingzoo', 'stable_baselines3', 'torch'} & set(sys.modules)
''')


def test_a_missing_extra_is_named():
    run('''
import importlib, sys
from echelon.world import make
for missing, use, extra in (
        ('pettingzoo', lambda: importlib.import_module('echelon.env.env'), 'envs'),
        ('stable_baselines3', lambda: importlib.import_module('echelon.env.adapters')
                                      .SB3Vector(make('corridor', worlds=1)), 'sb3'),
        ('gymnasium', lambda: importlib.reload(importlib.import_module('echelon.env.adapters')), 'envs')):
    sys.modules[missing] = None
    try: use()
    except ImportError as error: assert str(error) == f'{missing} is missing: pip install "echelon[{extra}]"'
    else: raise AssertionError(missing)
''')


def test_the_heuristic_plays_by_names():
    "Against itself inside the environment it is its own mirror image: nobody wins"
    cfg = EnvConfig(world=dict(size=40, pool=2), pack=(0, 1, 1, 0), max_episode_seconds=40.,
                    observation_mode='partial')
    env, policy = EchelonEnv(cfg, opponent='heuristic'), HeuristicPolicy()
    env.reset(seed=2)
    while env.agents: env.step({agent: policy.act(env, agent) for agent in env.agents})
    end = env.last_outcome
    assert end['winner'] is None and end['score']['blue'] == end['score']['red']
    assert end['living']['blue'] == end['living']['red']
    with pytest.raises(ValueError, match="agent 'green_0'"): policy.act(env, 'green_0')


def equal(lists, k, told):
    "Whether entry `k` of five lists is what an environment told; actions masks among it"
    for entries, own in zip(lists, told):
        assert entries[k].keys() == own.keys()
        for name, value in own.items():
            here = entries[k][name]
            if isinstance(value, dict): here, value = here['action_mask'], value['action_mask']
            assert np.array_equal(here, value), name
    return True


def test_lists_are_environments_whatever_happens():
    "Random play with every block, two packs, partial resets, curricula and wrong calls in between"
    cfg = EnvConfig(world=dict(size=40, smallest=32, pool=2), packs_per_team=2, pack=(0, 1, 1, 0),
                    max_episode_seconds=12., observation_mode='partial', enable_target_selection=True,
                    enable_obs_control=True, enable_comm=True, enable_orders=True)
    rng, resets, ended = np.random.default_rng(0), 0, 0
    with VectorEnv(3, cfg, opponent='heuristic') as envs:
        singles = [EchelonEnv(cfg, opponent='heuristic') for _ in range(3)]
        first = envs.reset([1, 2, 3])
        for k, env in enumerate(singles): assert equal(first, k, env.reset(seed=1 + k))
        for _ in range(250):
            event, k, seed = rng.random(), int(rng.integers(3)), int(rng.integers(99))
            if event < .05:
                packs, size = sorted(rng.integers(1, 3, 2).tolist()), [34, 38]
                envs.set_curriculum(weapon_prob=event*20, packs_per_team_range=packs, map_size_range=size)
                for env in singles:
                    env.world.set_arms(event*20); env.world.set_packs(*packs); env.world.set_sizes(*size)
            elif event < .1:
                untouched(envs.world, lambda: envs.step([{}, {}, {'blue_0': np.zeros(2, np.float32)}]))
                untouched(envs.world, lambda: envs.set_curriculum(weapon_prob=True, map_size_range=(34, 36)))
                untouched(envs.world, lambda: envs.set_curriculum(packs_per_team_range=(1, 3)))
                untouched(envs.world, lambda: envs.reset([seed], [3]))
            elif event < .15 or not envs.games[k].agents:
                assert equal(envs.reset([seed], [k]), 0, singles[k].reset(seed=seed))
                resets += 1
            actions = [{a: env.action_space(a).sample() for a in env.agents} for env in singles]
            if not any(actions): continue
            lists = envs.step(actions)
            for k, (env, action) in enumerate(zip(singles, actions)):
                if action: assert equal(lists, k, env.step(action))
                else: assert not any(entries[k] for entries in lists)
                ended += bool(action) and not env.agents
            for entry in lists[0]:
                assert not any(np.shares_memory(o, envs.world.obs) for o in entry.values())
    assert resets > 5 and ended > 5
