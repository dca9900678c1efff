"Environments of Gymnasium keep the contract of a world: ends, chance, state, spaces, masks."
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import (Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Text,
                              Tuple, flatten)
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.gymnasium import GymnasiumWorld, blocks_of, fields_of, flat, meant, sent
from echelon.training.evaluation import evaluate
from echelon.training.metrics import meaning
from echelon.training.trainer import TrainConfig, settled
from echelon.view.replay import record, verify
from echelon.world import make

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent


class Count(gymnasium.Env):
    "Shows seed and step; action 1 ends the game, and its reward is ten times the step"
    observation_space, action_space = Box(-np.inf, np.inf, (3,), np.float64), Discrete(2)

    def _obs(self): return np.array([self.start, self.t, 1.])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start, self.t = self.np_random.random(), 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), 10.*self.t, bool(action), False, {}


class Masked(Count):
    "What may be done changes with the step; it is told of every second step only"
    action_space = Discrete(3, start=4)

    def _info(self): return {} if self.t % 2 else dict(action_mask=np.int8([1, self.t % 4 == 0, 1]))

    def reset(self, *, seed=None, options=None): return super().reset(seed=seed)[0], self._info()

    def step(self, action):
        assert self.action_space.contains(action)
        return *super().step(action == 6)[:4], self._info()


def around(kind=Count, n=3, limit=5, **more):
    "A world of `n` environments of a kind, cut after `limit` steps"
    envs = SyncVectorEnv([lambda: TimeLimit(kind(), limit)]*n, autoreset_mode=AutoresetMode.DISABLED)
    return GymnasiumWorld.around(envs, **more)


def acts(*numbers): return np.float32(numbers)[:, None, None]


def cart(worlds, **more): return make('gymnasium', worlds=worlds, **more)


def pushes(world, steps, seed=0):
    "Steps in which every world is pushed by its own seed's chance; what was seen `[T, W, D]`"
    draws = [np.random.default_rng([seed, int(s) % 2**32]) for s in world.seeds]
    rows = []
    for _ in range(steps):
        world.step(np.float32([[[rng.integers(0, 2)]] for rng in draws]))
        rows.append(np.concatenate([world.obs[:, 0], world.reward, world.terminated[:, None]], 1))
    return np.array(rows)


# -- ends

def test_ends_are_told_apart_and_the_next_game_opens_in_the_same_step():
    world = around(seed=1)
    assert world.first.all() and (world.obs[:, 0, 1] == 0).all() and world.obs.dtype == np.float32
    opening = world.obs[:, 0, 0].copy()
    world.step(acts(0, 1, 0))
    assert world.terminated.tolist() == [False, True, False] == world.first.tolist()
    assert world.obs[:, 0, 1].tolist() == [1, 0, 1] and world.final_obs[1, 0].tolist() == [opening[1], 1, 1]
    assert world.obs[1, 0, 0] != opening[1] and world.reward[:, 0].tolist() == [10, 10, 10]
    for _ in range(4): world.step(acts(0, 0, 0))
    assert world.truncated.tolist() == [True, False, True] and not world.terminated.any()
    assert world.final_obs[0, 0].tolist() == [opening[0], 5, 1] and world.game.tolist() == [1, 1, 1]
    assert world.stats['games'].tolist() == [1, 1, 1] and world.stats['return'].tolist() == [150, 10, 150]
    assert world.stats['win'].sum() == 0


def test_decided_at_the_limit_is_no_cut():
    world = around(limit=2)
    world.step(acts(0, 0, 0)); world.step(acts(1, 0, 1))
    assert world.terminated.tolist() == [True, False, True]
    assert world.truncated.tolist() == [False, True, False]


def test_without_autoreset_an_ended_world_stays_as_it_ended():
    world = around(autoreset=False, limit=4)
    world.step(acts(0, 1, 0))
    kept = world.obs[1].copy()
    for _ in range(3): world.step(acts(0, 1, 0))
    assert (world.terminated | world.truncated).all() and (world.obs[1] == kept).all()
    assert world.reward[:, 0].tolist() == [40, 0, 40]
    assert world.stats['games'].tolist() == [1, 1, 1] and world.stats['decisions'].tolist() == [4, 1, 4]
    world.reset(worlds=np.array([False, True, False]))
    assert world.obs[:, 0, 1].tolist() == [4, 0, 4] and world.truncated.tolist() == [True, False, True]
    world.step(acts(0, 0, 0))
    assert world.obs[:, 0, 1].tolist() == [4, 1, 4] and world.game.tolist() == [0, 1, 0]


def test_wins_are_games_that_reach_the_threshold():
    world = around()
    world.goal = 100.
    for _ in range(5): world.step(acts(0, 0, 1))
    assert world.stats['win'][:, 0].tolist() == [1, 1, 0]
    assert cart(1).goal == 475 and cart(1, env='Pendulum-v1').goal == np.inf


# -- chance and state

@pytest.mark.parametrize('env', ['CartPole-v1', 'Acrobot-v1', 'FrozenLake-v1'])
def test_a_world_alone_is_the_same_world(env):
    many = cart(5, seed=3, env=env)
    alone = cart(1, seed=many.seeds[3:4].copy(), env=env)
    assert (pushes(many, 90)[:, 3] == pushes(alone, 90)[:, 0]).all()
    assert many.digest()[3] == alone.digest()[0] and (many.game[3] > 0) == (env != 'Acrobot-v1')


@pytest.mark.parametrize('autoreset', [True, False])
@pytest.mark.parametrize('config', [
    dict(), dict(env='Pendulum-v1'), dict(env='Blackjack-v1'), dict(hide=(1, 3))])
def test_a_state_goes_on_to_the_same_end(config, autoreset):
    one, other = (cart(4, seed=s, autoreset=autoreset, **config) for s in (1, 2))
    pushes(one, 33); pushes(other, 7)
    other.load_state(one.state())
    assert (one.digest() == other.digest()).all() and (pushes(one, 40) == pushes(other, 40)).all()
    assert all((a == other._arrays()[n]).all() for n, a in one._arrays().items())


def test_a_foreign_state_is_refused_and_nothing_is_changed():
    one, other = cart(3, seed=1), cart(3, seed=1)
    pushes(one, 12); pushes(other, 12)
    forged = one.state(); forged['played'][1, 3] = 1 - forged['played'][1, 3]
    with pytest.raises(ValueError, match=r"worlds \[1\].*shows something else"): one.load_state(forged)
    late = one.state(); late['t'][0] = 501
    with pytest.raises(ValueError, match='state t from .* expected 0 to 500'): one.load_state(late)
    with pytest.raises(ValueError, match='another config'): one.load_state(cart(3, hide=(1,)).state())
    assert (pushes(one, 60) == pushes(other, 60)).all() and (one.digest() == other.digest()).all()


def test_a_training_resumed_equals_one_uninterrupted(goes_on):
    config = settled(TrainConfig(world='gymnasium', worlds=4, hidden=16, lstm=16, precision='float32',
                                 ranks=1, stagger=40, ppo=dict(rollout_steps=32, minibatch=64, lr=3e-3)))
    _, rows = goes_on(config)
    assert rows[-1]['stat/return'] > 5 and all(meaning(name) for name in rows[-1])


@pytest.mark.parametrize('env', ['CartPole-v1', 'Pendulum-v1'])
def test_a_replay_proves_itself(env, tmp_path):
    rng = np.random.default_rng(0)
    world = cart(3, seed=4, env=env)
    game = record(world, lambda w: rng.uniform(-1.5, 1.5, w.action.shape).astype(np.float32), w=1)
    path = game.save(tmp_path/'game.replay')
    assert verify(path).ok and verify(path, worlds=3, w=2).ok
    game.actions[5] = 1 - game.actions[5]
    assert not verify(game).ok


def test_examinations_count_whole_games():
    a, b = (evaluate('random', 'gymnasium', games=24, worlds=8) for _ in range(2))
    assert a == b and a.episodes == 24 and 10 < a.mean_reward < 40 and a.mean_reward == a.mean_episode_length


# -- spaces

LEAVES = st.sampled_from([Box(-1, 1, (2, 2)), Box(0, 255, (3,), np.uint8), Discrete(4), Discrete(3, start=-1),
                          MultiBinary(3), MultiBinary((2, 2)), MultiDiscrete([2, 3], start=[1, 5])])
SPACES = st.recursive(LEAVES, lambda inner: st.one_of(
    st.lists(inner, min_size=1, max_size=3).map(Tuple),
    st.dictionaries(st.sampled_from('abc'), inner, min_size=1, max_size=3).map(Dict)), max_leaves=5)


@settings(max_examples=60, deadline=None)
@given(SPACES, st.integers(0, 99))
def test_observations_are_flattened_as_gymnasium_does(space, seed):
    space.seed(seed)
    samples = [space.sample() for _ in range(4)]
    ours = flat(space, concatenate(space, samples, create_empty_array(space, 4)), 4)
    assert ours.dtype == np.float32 and (ours == np.float32([flatten(space, s) for s in samples])).all()
    fields = fields_of(space)
    assert fields[-1].columns.stop == ours.shape[1] and len({f.name for f in fields}) == len(fields)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([Discrete(5), Discrete(3, start=-7), MultiDiscrete([2, 5]), MultiDiscrete([[2], [3]]),
                        MultiBinary(4), Box(-2, 2, (1,)), Box(np.float32([[0, -9]]), np.float32([[.1, 3]])),
                        Box(-1, 0, (2,), np.float64)]), st.integers(0, 999))
def test_any_row_of_floats_is_an_action(space, seed):
    blocks = blocks_of(space)
    rows = np.random.default_rng(seed).normal(0, 3, (6, sum(b.columns for b in blocks))).astype(np.float32)
    rows[0], rows[1, 0], rows[2, 0] = np.nan, np.inf, -np.inf
    plain = meant(rows, blocks)
    assert plain.dtype == np.float32 and (meant(plain, blocks) == plain).all()
    for action in sent(space, plain): assert space.contains(action if action.ndim else np.int64(action))


def test_the_ends_of_a_box_are_reached():
    box = Box(np.float32([-2, 0]), np.float32([2, 10]))
    assert sent(box, np.float32([[-1, -1], [0, 0], [1, 1]])).tolist() == [[-2, 0], [0, 5], [2, 10]]


@pytest.mark.parametrize('space', [Box(0, np.inf, (2,)), Box(0, 9, (2,), np.int32), Text(3),
                                   Tuple([Discrete(2)]), Dict(a=Discrete(2))])
def test_actions_that_have_no_blocks_are_named(space):
    with pytest.raises(ValueError, match='action space .* expected Discrete') as error: blocks_of(space)
    assert str(space) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('space', [Text(3), Graph(Box(0, 1, (1,)), None), Sequence(Discrete(2)),
                                   OneOf([Discrete(2)]), Dict(a=Tuple([Text(2)]))])
def test_observations_that_are_no_row_are_named(space):
    with pytest.raises(ValueError, match='observation space .* expected Box') as error: fields_of(space)
    assert '\n' not in str(error.value)


def test_hidden_columns_are_shown_as_zero_everywhere():
    shown, hidden = cart(3, seed=1), cart(3, seed=1, hide=(1, 3))
    for _ in range(60):
        for world in (shown, hidden): world.step(acts(1, 0, 1))
        assert (hidden.obs[..., [1, 3]] == 0).all() and (hidden.final_obs[..., [1, 3]] == 0).all()
        assert (hidden.obs[..., [0, 2]] == shown.obs[..., [0, 2]]).all()
    assert hidden.stats['games'].min() > 0 and GymnasiumWorld.around(shown.envs, hide=[3]).config.hide == (3,)


# -- masks

def test_masks_come_through_and_are_open_where_nothing_is_told():
    world = around(Masked, n=2, limit=9)
    told = [world.action_mask[:, 0].tolist()]
    for move in ((0, 0), (0, 1), (0, 2), (0, 0)):
        world.step(acts(*move))
        told.append(world.action_mask[:, 0].tolist())
    free, shut = [True]*3, [True, False, True]
    assert [m[0] for m in told] == [free, free, shut, free, free]
    assert [m[1] for m in told] == [free, free, shut, free, free] and world.game.tolist() == [0, 1]


def test_the_taxis_mask_is_the_taxis():
    world = cart(4, seed=2, env='Taxi-v4')
    for _ in range(30):
        world.step()
        told = [e.unwrapped.action_mask(e.unwrapped.s) for e in world.envs.envs]
        assert (world.action_mask[:, 0] == np.array(told, bool)).all()
    assert not world.action_mask.all()


# -- what is refused

@pytest.mark.parametrize('config, said', [
    (dict(env='Chess-v0'), "env = 'Chess-v0': .*doesn't exist"),
    (dict(env='os:Chess-v0'), 'expected a registered name'),
    (dict(options=dict(gravity=1)), "env = 'CartPole-v1': .*gravity"),
    (dict(env='FrozenLake-v1', options=dict(map_name='x')), "env = 'FrozenLake-v1': KeyError"),
    (dict(hide=(4,)), r'hide = \(4,\): expected columns from 0 to 3'),
    (dict(options=dict(max_episode_steps=10**6)), 'games of 1000000 steps'),
    (dict(max_steps=0), 'max_steps'), (dict(environment='CartPole-v1'), 'environment')])
def test_wrong_settings_are_one_line(config, said):
    with pytest.raises(ValueError, match=said) as error: cart(2, **config)
    assert '\n' not in str(error.value)


def test_a_game_without_end_is_cut():
    envs = SyncVectorEnv([Count]*2, autoreset_mode=AutoresetMode.DISABLED)
    world = GymnasiumWorld.around(envs, max_steps=4)
    cuts = [(world.step(), world.truncated.copy(), world.terminated.any())[1:] for _ in range(9)]
    assert [bool(cut.all()) for cut, _ in cuts] == [False, False, False, True]*2 + [False]
    assert not any(ended for _, ended in cuts) and world.game.tolist() == [2, 2]


def test_a_vector_that_resets_itself_is_refused():
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        with pytest.raises(ValueError, match='expected AutoresetMode.DISABLED'):
            GymnasiumWorld.around(SyncVectorEnv([Count]*2, autoreset_mode=mode))


def test_limits_come_from_the_environment():
    assert cart(1).limit == 500 and cart(1, options=dict(max_episode_steps=7)).limit == 7
    world = cart(2, env='Pendulum-v1', options=dict(max_episode_steps=7))
    for _ in range(7): world.step()
    assert world.truncated.all() and world._state['t'].tolist() == [0, 0]


def test_without_gymnasium_one_line_says_what_to_install():
    code = '''
import sys
sys.modules['gymnasium'] = None
from echelon.world import make
make('corridor', worlds=1)
try: make('gymnasium', worlds=1)
except ImportError as error: assert str(error) == 'gymnasium is missing: pip install "echelon[envs]"'
else: raise AssertionError('found')
'''
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
