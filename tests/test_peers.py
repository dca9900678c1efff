"The comparison with others is of like with like: the same world, the same network, the same samples."
import subprocess
import sys

import numpy as np
import pytest
import torch

from echelon.rl.model import ActorCriticLSTM
from echelon.training import bench
from echelon.training.bench import TwoMemories, bare, network, ours, peer, peers, theirs, trivial
from echelon.training.ppo import PPOConfig

torch.set_num_threads(1)
TINY = dict(worlds=2, rows=3, obs_dim=5, length=7)
CONFIG = PPOConfig(rollout_steps=16, chunk_steps=8, minibatch=24, update_epochs=2)


def test_games_of_the_trivial_world_have_one_length_and_begin_apart():
    world, ends = trivial(worlds=16, rows=1, obs_dim=2, length=7), []
    for _ in range(50): world.step(); ends.append(world.terminated.copy())
    when = [np.flatnonzero(e) for e in np.transpose(ends)]
    assert all((np.diff(w) == 7).all() and len(w) >= 6 for w in when) and len({w[0] for w in when}) > 2


def test_a_trivial_world_alone_is_the_same_world():
    world = trivial(**TINY, seed=3)
    alone = trivial(**TINY | dict(worlds=1), seed=world.seeds[1:].copy())
    for _ in range(30):
        world.step(); alone.step()
        assert (world.obs[1] == alone.obs[0]).all() and (world.reward[1] == alone.reward[0]).all()
        assert world.digest()[1] == alone.digest()[0] and (world.obs[1] != world.obs[0]).any()


def test_what_a_row_does_changes_nothing():
    one, two = trivial(**TINY), trivial(**TINY)
    for _ in range(20):
        one.step(); two.step(np.ones_like(two.action))
        assert (one.obs == two.obs).all() and (one.reward == two.reward).all() and one.reward.any()


def test_an_ended_game_that_is_not_followed_by_another_stays():
    world = bench.Trivial(2, bench.TrivialConfig(rows=1, obs_dim=2, length=3), autoreset=False)
    world.reset()
    for _ in range(4): world.step()
    before = world.obs.copy()
    world.step()
    assert world.terminated.all() and (world.obs == before).all() and not world.reward.any()
    assert world.stats['games'].tolist() == [1, 1]


def test_two_memories_are_two():
    "The critic's memory reaches the value alone, the actor's the action alone"
    torch.manual_seed(0)
    world = trivial(**TINY)
    model = network(TwoMemories, world, 8, 6)
    obs, state, done = torch.randn(4, 5), model.initial_state(4), torch.zeros(4)
    assert state.h.shape == (1, 4, 12)
    action, logprob, _, value, _ = model.get_action_and_value(obs, state, done)
    for half, changed in ((slice(0, 6), 'logprob'), (slice(6, 12), 'value')):
        h = state.h.clone(); h[..., half] = 1.
        _, other, _, worth, _ = model.get_action_and_value(obs, state._replace(h=h), done, action)
        assert torch.equal(worth, value) == (changed == 'logprob')
        assert torch.equal(other, logprob) == (changed == 'value')


@pytest.fixture(scope='module')
def learner():
    pytest.importorskip('sb3_contrib', reason='the peer is an extra')
    return peer(trivial(**TINY), CONFIG, 8, 6)


def test_the_peer_has_the_same_network(learner):
    twin = network(TwoMemories, trivial(**TINY), 8, 6)
    shapes = [sorted(tuple(p.shape) for p in m.parameters()) for m in (learner.policy, twin)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('kind', [ActorCriticLSTM, TwoMemories])
@pytest.mark.parametrize('bf16', [False, True])
def test_all_collect_the_same_number_of_samples_and_learn(learner, kind, bf16):
    world, c = trivial(**TINY), CONFIG.model_copy(update=dict(bf16=bf16))
    model = network(kind, world, 8, 6)
    lone = network(ActorCriticLSTM, world, 8, 6)
    for once, who in ((ours(world, c, model), model), (theirs(learner), learner.policy),
                      (bare(6, c, lone), lone)):
        before = [p.detach().clone() for p in who.parameters()]
        assert once() == once() == 16*6
        moved = [not torch.equal(a, b) for a, b in zip(before, who.parameters())]
        assert sum(moved) >= len(moved) - (who is lone)   # the bare loop knows no spread
        assert all(p.isfinite().all() for p in who.parameters())


def test_the_peer_sees_games_end(learner):
    envs, ends = learner.get_env(), 0
    envs.reset()
    for _ in range(14):
        obs, reward, done, infos = envs.step(np.zeros((6, 2), np.float32))
        assert obs.shape == (6, 5) and reward.shape == done.shape == (6,) and len(infos) == 6
        ends += done.sum()
    assert ends == 2*6


def test_rates_and_ratios(learner):
    threads = torch.get_num_threads()
    found = peers(lstm=6, hidden=8, epochs=1, rounds=3, steps=8, minibatch=24, bf16=True, **TINY)
    names = {f'{n} {p}' for n in ('ours', 'twin', 'bare') for p in ('float32', 'bfloat16')} | {'peer'}
    assert set(found['samples_per_s']) == names and min(found['samples_per_s'].values()) > 0
    assert found['precision'] == 'bfloat16'
    assert min(found[k] for k in ('twin_to_peer', 'ours_to_peer', 'ours_to_bare')) > 0
    assert torch.get_num_threads() == threads


def test_without_sb3_there_is_one_line_and_no_peer(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'sb3_contrib', None)
    found = peers(lstm=6, hidden=8, epochs=1, rounds=1, steps=8, minibatch=24, bf16=False, **TINY)
    assert found['samples_per_s']['peer'] is found['twin_to_peer'] is found['ours_to_peer'] is None
    assert found['ours_to_bare'] > 0 and set(found['samples_per_s']) == {
        'peer', 'ours float32', 'twin float32', 'bare float32'}
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and 'echelon[sb3]' in said[0]


def test_one_thread_is_one_and_for_within_only():
    "In a fresh process: when numba starts its threads, it resets the number that torch uses"
    code = """
import numba, torch
from echelon.training.bench import one_thread
torch.set_num_threads(2)
with one_thread(): assert torch.get_num_threads() == numba.get_num_threads() == 1
assert torch.get_num_threads() == 2
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_two_ranks_are_counted_together():
    found = bench.ranks((2,), updates=2, repeats=1, worlds=2, lstm=8, hidden=8, epochs=1, steps=8,
                        minibatch=40, precision='float32')
    assert list(found) == [2] and found[2] > 0
