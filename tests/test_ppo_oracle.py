"What guards the learner: every number of an update agrees with a second one, computed from the papers."
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer as BufferOfSB3

from echelon.training.gae import gae, gae_reference
from echelon.training.rollout import RolloutBuffer

import ppo_oracle as oracle
from ppo_cases import (Bell, agree, as_record, lively, numbers, ours, recorded, told_rollout, trainer_of,
                       weights)

torch.set_num_threads(1)


# ---- advantages

@st.composite
def chances(draw):
    "Rewards, values, dones, next value, next done, what a cut game was worth (γ·V), γ and λ; all float64"
    T, N = draw(st.integers(1, 14)), draw(st.integers(1, 5))
    gamma, lam = draw(st.sampled_from([0., .5, .9, .99, 1.])), draw(st.sampled_from([0., .3, .95, 1.]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    often = draw(st.sampled_from([0., .2, .6, 1.]))
    ended = (rng.random((T + 1, N)) < often).astype(float)       # before step t
    cut = ended[1:]*(rng.random((T, N)) < .5)*gamma*rng.normal(size=(T, N))
    rewards, values = rng.normal(size=(T, N)), rng.normal(size=(T, N))
    return rewards, values, ended[:-1], rng.normal(size=N), ended[-1], cut, gamma, lam


def by_kernel(r, v, d, nv, nd, boot, gamma, lam):
    out = np.empty_like(r)
    gae(r, v, d, nv, nd, boot, gamma, lam, out, np.ones_like(r))
    return out


def by_buffer(r, v, d, nv, nd, boot, gamma, lam):
    b = RolloutBuffer.create(*r.shape, 1, 1)
    for name, x in dict(rewards=r, values=v, dones=d, bootstrap=boot).items():
        getattr(b, name).copy_(torch.from_numpy(x))
    b.compute_gae(torch.from_numpy(nv).float(), torch.from_numpy(nd), gamma, lam)
    agree('returns', b.returns, b.advantages + b.values, 0)
    return b.advantages


def by_sb3(r, v, d, nv, nd, boot, gamma, lam):
    "Stable-Baselines3 adds what a cut game was worth to its last reward"
    number = Box(-1, 1, (1,))
    b = BufferOfSB3(len(r), number, number, 'cpu', lam, gamma, r.shape[1])
    b.rewards, b.values, b.episode_starts, b.advantages = r + boot, v, d, np.zeros_like(r)
    b.compute_returns_and_advantage(torch.from_numpy(nv), nd)
    return b.advantages


@settings(max_examples=60, deadline=None)
@given(chances())
def test_advantages_are_those_of_the_paper_and_of_stable_baselines(case):
    r, v, d, nv, nd, boot, gamma, lam = case
    paper = oracle.advantages(r, v, d, nv, nd, gamma, lam, boot)
    agree('Stable-Baselines3', by_sb3(*case), paper, 1e-10)
    agree('reference', gae_reference(r, v, d, nv, nd, gamma, lam, boot), paper, 1e-10)
    agree('kernel', by_kernel(*case), paper, 1e-10)
    agree('buffer', by_buffer(*case), paper, 1e-5)


# ---- one case by hand

def test_three_steps_worked_by_hand():
    """Three rows, three steps, γ = λ = ½. Row A's game is decided after step 1. Row B's is cut there, its
    last observation worth 6, so γ·6 = 3 is bootstrapped. Row C dies of its step 0; its game goes on.

    Surprises δ = r + γV' − V (+ bootstrap), advantages A = δ + ¼A':
        A   δ0 = ½ + 2 − 2 = ½     δ1 = 2 − 4 = −2         δ2 = 4 + 2 − 2 = 4    A = 0, −2, 4
        B   δ0 = 2¼ + 2 − 2 = 2¼   δ1 = 0 + 3 − 4 = −1     δ2 = 3 + 2 − 2 = 3    A = 2, −1, 3
        C   δ0 = 1 + 1 − 1 = 1     δ1 = −1 + 2 − 2 = −1    δ2 = 8 + 0 − 4 = 4    A = 1, 0, 4
    The seven decisions (C decides but once) have mean 1 and variance (1 + 9 + 9 + 1 + 4 + 4 + 0)/7 = 4:
        A   −½, −1½, 1½            B   ½, −1, 1            C   0, and dead
    Ratios 2, ¼, 2 | ¼, 1, 1 | 1 and 8, 8 for the dead; the clip lies at ½ and 1½. min(ρA, clip(ρ)A):
        A   −1, −¾, 2¼             B   ⅛, −1, 1            C   0                 sum ⅝, loss −⅝/7 = −5/56
    KL (ρ − 1 − log ρ): twice 1 − ln 2, twice −¾ + ln 4, else 0; four of seven lie beyond the clip.
    Returns A + V in the scale of mean 2, spread 2, against the critic's 1 0 2 | 1 ½ ½ | 0 2 1:
        targets 0, 0, 2 | 1, ½, 1½ | 0, 0, 3; squares 1, 0, 0 | 0, 0, 1 | 0, 4, 4; sum 10, loss 10/9/2 = 5/9.
    Clipped to ½ around the old 0 1 0 | 0 1 0 | −½ 0 1, the critic says ½ ½ ½ | ½ ½ ½ | 0 ½ 1:
        the worse squares are 1, ¼, 2¼ | ¼, 0, 1 | 0, 4, 4; sum 12¾, loss 12¾/9/2 = 17/24.
    Entropies 1, 2, 3 | 0, 0, 1 | 0 and 90, 90 for the dead: mean 1."""
    b = RolloutBuffer.create(3, 3, 1, 1)
    rows = lambda *rows: torch.tensor(rows).T
    b.rewards[:] = rows([.5, 2., 4.], [2.25, 0., 3.], [1., -1., 8.])
    b.values[:] = rows([2., 4., 2.], [2., 4., 2.], [1., 2., 4.])
    b.dones[2, :2] = 1; b.bootstrap[1, 1] = 3; b.valid[1:, 2] = 0
    b.compute_gae(torch.tensor([4., 4., 0.]), torch.zeros(3), .5, .5)
    agree('advantages', b.advantages, rows([0., -2., 4.], [2., -1., 3.], [1., 0., 4.]), 0)
    agree('returns', b.returns, rows([2., 2., 6.], [4., 3., 5.], [2., 2., 8.]), 0)
    logprobs = rows([2., .25, 2.], [.25, 1., 1.], [1., 8., 8.]).log()
    values = rows([1., 0., 2.], [1., .5, .5], [0., 2., 1.])
    entropies = rows([1., 2., 3.], [0., 0., 1.], [0., 90., 90.])
    for clip_value, by_critic in ((False, 5/9), (True, 17/24)):
        trainer = trainer_of(lively(), b, 2, 2, clip_coef=.5, clip_value=clip_value, ent_coef=.1, vf_coef=.5)
        loss, parts = trainer._compute_losses(b, logprobs, values, entropies)
        agree('policy loss', parts['pg_loss'], -5/56, 1e-6)
        agree('critic loss', parts['vf_loss'], by_critic, 1e-6)
        agree('entropy', parts['entropy'], 1, 1e-6)
        agree('KL', parts['approx_kl'], (.5 + 2*math.log(2))/7, 1e-6)
        agree('share clipped', parts['clip_fraction'], 4/7, 1e-6)
        agree('loss', loss, -5/56 - .1 + .5*by_critic, 1e-6)


# ---- losses and gradients

def double(model, b, monkeypatch):
    "The same model and buffer in float64: what the package lowers to float32 on its way stays as it is"
    monkeypatch.setattr(torch.Tensor, 'float', lambda x: x)
    tensors = {f.name: x.double() for f in fields(b)
               if isinstance(x := getattr(b, f.name), torch.Tensor) and x.dtype == torch.float32}
    return model.double(), replace(b, **tensors)


def test_the_record_holds_all_that_could_go_wrong():
    model, b = recorded()
    r = as_record(b)
    logprobs, _, _ = oracle.evaluated(weights(model), r)
    ratio, A, valid = torch.exp(logprobs - r.logprobs), oracle.normalized(r), r.valid > 0
    for good in (A > 0, A < 0):
        for beyond in (ratio > 1.2, ratio < .8, (ratio - 1).abs() < .2): assert (good & beyond & valid).any()
    assert 0 < r.dones[1:].mean() < 1 and (~valid).any() and (r.h != 0).all()
    choices = r.masks[..., :3].sum(-1)
    assert {int(n) for n in choices.flatten()} == {0, 1, 2, 3} and (~r.masks[..., 3:5]).any()


@pytest.mark.parametrize('clip_value', [False, True])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_losses_and_every_gradient(seed, clip_value, monkeypatch):
    model, b = recorded(seed=seed)
    trainer = trainer_of(model, b, 5, 3, clip_value=clip_value, ent_coef=.03)
    p, known = weights(model), numbers(trainer.config, mean=5, std=3)
    total, parts, slope = oracle.gradients(p, as_record(b), **known)
    for exact in (False, True):
        if exact: model, b = double(model, b, monkeypatch)
        loss, info, found = ours(model, b, trainer)
        agree('loss', loss, total, 1e-7 if exact else 1e-5)
        for name in parts: agree(name, info[name], parts[name].detach(), 1e-7 if exact else 1e-5)
        assert set(found) == set(slope)
        for name, g in slope.items():
            assert g.abs().max() > 1e-3, f'{name}: no gradient to compare'
            agree(name, found[name], g, 1e-9 if exact else 1e-5*g.abs().max())


def test_gradients_are_finite_differences(monkeypatch):
    model, b = recorded(T=6, N=4)
    trainer, r = trainer_of(model, b, 5, 3, clip_value=True), as_record(b)
    p, rng, h = weights(model), np.random.default_rng(0), 1e-5
    model, b = double(model, b, monkeypatch)
    found = ours(model, b, trainer)[2]
    at = lambda p: oracle.loss(*oracle.evaluated(p, r), r, **numbers(trainer.config, mean=5, std=3))[0]
    for name, w in p.items():
        for k in rng.choice(w.numel(), min(3, w.numel()), replace=False):
            up, down = (w.clone() for _ in range(2))
            up.view(-1)[k] += h; down.view(-1)[k] -= h
            slope = (at(p | {name: up}) - at(p | {name: down}))/(2*h)
            agree(f'{name} [{k}]', found[name].view(-1)[k], slope, 1e-7)


@pytest.mark.parametrize('offset', [0, 10, 1000])
def test_advantages_far_from_zero_keep_their_spread(offset):
    model, b = recorded()
    b.advantages += offset
    trainer, r = trainer_of(model, b), as_record(b)
    found = ours(model, b, trainer)[1]['pg_loss']
    parts = oracle.loss(*oracle.evaluated(weights(model), r), r, **numbers(trainer.config))[1]
    agree('policy loss', found, parts['pg_loss'].detach(), 1e-4)


def test_the_policy_may_change_its_mind_about_the_dead():
    model, b = recorded()
    trainer, dead = trainer_of(model, b), b.valid == 0
    known = trainer._compute_losses(b, b.logprobs + .1, b.values, b.values)[1]
    logprobs = torch.where(dead, 100, b.logprobs + .1).requires_grad_()
    loss, info = trainer._compute_losses(b, logprobs, b.values, b.values)
    loss.backward()
    for name, x in known.items(): agree(name, info[name], x, 0)
    assert (logprobs.grad[dead] == 0).all() and (logprobs.grad[~dead] != 0).all()


# ---- a whole update

@pytest.mark.parametrize('normalize_returns', [False, True])
@pytest.mark.parametrize('most', [.1, 100.])
def test_an_update_is_a_step_of_adam(normalize_returns, most):
    model, b = recorded()
    trainer = trainer_of(model, b, 5, 3, update_epochs=1, lr=.01, max_grad_norm=most, ent_coef=.03,
                         clip_value=True, normalize_returns=normalize_returns)
    p, r, mean, std, moments = weights(model), as_record(b), 5., 3., {}
    for step in (1, 2):
        before = p
        if normalize_returns: p, mean, std = oracle.popart(p, r, mean, std)
        total, parts, g = oracle.gradients(p, r, **numbers(trainer.config, mean=mean, std=std))
        g, norm = oracle.shortened(g, most)
        p = oracle.adam(p, g, moments, step, lr=.01, eps=1e-5)
        info = trainer.update(b)
        assert (norm > most) == (most < 1)
        for name, x in {**parts, 'loss': total, 'grad_norm': norm}.items():
            agree(f'{name} of update {step}', info[name], torch.as_tensor(x).detach())
        for name, w in model.named_parameters():
            assert (p[name] - before[name]).abs().max() > 1e-3
            agree(f'{name} after update {step}', w.detach(), p[name])
    left, whole = ((x - x.mean()).square().mean() for x in (b.returns - b.values, b.returns))
    agree('explained variance', info['explained_variance'], 1 - left/whole)


# ---- a rollout

def test_a_rollout_speaks_the_units_of_the_game():
    """The critic's numbers count as 5 + 3v before anything is added to them. After the first of two rollouts
    one world's game is just decided and the others go on, after the second one is just cut"""
    model, world, state = lively(), Bell(), None
    trainer = trainer_of(model, None, 5, 3, rollout_steps=8, chunk_steps=4, gamma=.9, gae_lambda=.8)
    for begin in (0, 8):
        b, state = trainer.collect_rollout(world, ['a', 'b'], state)
        expected = told_rollout(model, b.actions, begin, .9, .8, 5, 3)
        for name, x in expected.items(): agree(name, getattr(b, name), x, 2e-5)
