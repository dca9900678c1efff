"Silent killers planted on purpose: each must be caught, and by a number that it spoils."
from copy import copy
from dataclasses import replace

import pytest
import torch

from echelon.rl import distributions
from echelon.rl import model as of_model
from echelon.rl.distributions import ActionDistribution, layout_of
from echelon.training import ppo
from echelon.training.normalization import ReturnNormalizer
from echelon.training.ppo import PPOTrainer
from echelon.training.rollout import RolloutBuffer

import ppo_oracle as oracle
from ppo_cases import (ACTION, BLOCKS, MASK, Bell, agree, as_record, lively, numbers, recorded, told_rollout,
                       trainer_of, weights)

torch.set_num_threads(1)


# ---- checks: what the learner must say, next to what the papers say

def check_sequence():
    "The model over a whole sequence, games ending on the way"
    model, b = recorded()
    with torch.no_grad():
        found = model.evaluate_actions_sequence(b.obs, b.actions, b.dones, (b.state_h, b.state_c), b.masks)
    expected = oracle.evaluated(weights(model), as_record(b))
    for name, x, y in zip(('logprobs', 'entropies', 'values'), found, expected):
        agree(f'{name} of a sequence', x, y)


def check_rollout():
    "Two rollouts on end in a world whose games are decided, cut, and die"
    model, world, state = lively(), Bell(), None
    trainer = trainer_of(model, None, 5, 3, rollout_steps=8, chunk_steps=4, gamma=.9, gae_lambda=.8)
    for begin in (0, 8):
        b, state = trainer.collect_rollout(world, ['a', 'b'], state)
        for name, x in told_rollout(model, b.actions, begin, .9, .8, 5, 3).items():
            agree(f'{name} of a rollout', getattr(b, name), x, 2e-5)


def check_losses():
    "The losses of a record with dead rows"
    model, b = recorded()
    trainer = trainer_of(model, b, 5, 3, ent_coef=.03, clip_value=True)
    r = as_record(b)
    logprobs, entropies, values = oracle.evaluated(weights(model), r)
    total, parts = oracle.loss(logprobs, entropies, values, r, **numbers(trainer.config, mean=5, std=3))
    loss, info = trainer._compute_losses(b, logprobs.float(), values.float(), entropies.float())
    for name, x in parts.items(): agree(f'{name} of the losses', info[name], x)
    agree('loss as a whole', loss, total)


def check_chunks():
    "An update over two chunks, with steps too small to matter: the mean over the chunks, each for itself"
    model, b = recorded(T=12, chunk=6)
    b.advantages[6:] += 3
    trainer = trainer_of(model, b, update_epochs=1, lr=1e-12, normalize_returns=False)
    info = trainer.update(b)
    parts = [oracle.gradients(weights(model), as_record(b, chunk), **numbers(trainer.config))[1]
             for chunk in (0, 1)]
    for name in parts[0]: agree(f'{name} of an update', info[name], sum(p[name].detach() for p in parts)/2)


def check_step():
    "The weights after an update that moves the scale of returns"
    model, b = recorded()
    trainer = trainer_of(model, b, 5, 3, update_epochs=1, lr=.01, max_grad_norm=.1, ent_coef=.03)
    p, mean, std = oracle.popart(weights(model), as_record(b), 5., 3.)
    g = oracle.gradients(p, as_record(b), **numbers(trainer.config, mean=mean, std=std))[2]
    p = oracle.adam(p, oracle.shortened(g, .1)[0], {}, 1, lr=.01, eps=1e-5)
    trainer.update(b)
    for name, w in model.named_parameters(): agree(f'{name} after an update', w.detach(), p[name])


def check_chance():
    "Drawn actions are judged as they are stored, in the middle and where tanh is 1 in float32"
    torch.manual_seed(0)
    logstd, layout = torch.tensor([-.5, .2]), layout_of(BLOCKS, ACTION)
    p = {'actor_mean.weight': torch.eye(9, dtype=oracle.REAL), 'actor_mean.bias': torch.zeros(9),
         'actor_logstd': logstd.double()}
    params, mask = torch.randn(50, 9), torch.rand(50, MASK) < .5
    for far in (0, 12):
        params[:, :2] += far
        d = ActionDistribution(layout, params, logstd, mask)
        action = d.sample()
        expected = [oracle.judged(p, x.double(), a, m)[0] for x, a, m in zip(params, action, mask)]
        agree(f'logprobs of sticks at {far}', d.logprob(action), torch.stack(expected), 1e-3)


# ---- bugs: each with the check that must fail, and what it must say

BUGS = {}

def bug(check, says):
    "Keep `plant(patch)`, which spoils what `check` looks at, under its name"
    def keep(plant):
        BUGS[plant.__name__] = check, says, plant
        return plant
    return keep


def around(patch, owner, name, make):
    "Put `make(the real one)` in the place of `owner.name`"
    patch.setattr(owner, name, make(getattr(owner, name)))


def shifted(x, by):
    "Steps moved later (1) or earlier (-1); the free place is 0"
    x = x.roll(by, 0).clone()
    x[0 if by > 0 else -1] = 0
    return x


@bug(check_sequence, 'of a sequence')
def lstm_reset_one_step_late(patch):
    around(patch, of_model, 'remembered', lambda real: lambda lstm, x, dones, state: real(
        lstm, x, shifted(dones, 1), state))


@bug(check_sequence, 'of a sequence')
def lstm_reset_one_step_early(patch):
    around(patch, of_model, 'remembered', lambda real: lambda lstm, x, dones, state: real(
        lstm, x, shifted(dones, -1), state))


@bug(check_sequence, 'of a sequence')
def lstm_never_reset(patch):
    patch.setattr(of_model, 'wiped', lambda state, done: state)


@bug(check_sequence, 'of a sequence')
def lstm_of_all_rows_reset_with_one(patch):
    around(patch, of_model, 'wiped', lambda real: lambda state, done: real(state, done.max().expand_as(done)))


@bug(check_rollout, '(logprobs|values) of a rollout')
def lstm_reset_one_step_late_while_acting(patch):
    def make(real):
        def act(self, obs, state, done, *rest, **more):
            late, self.late = getattr(self, 'late', done), done.clone()
            return real(self, obs, state, late, *rest, **more)
        return act
    around(patch, of_model.ActorCriticLSTM, 'act', make)


@bug(check_rollout, '(logprobs|values) of a rollout')
def memory_lost_between_rollouts(patch):
    around(patch, PPOTrainer, 'collect_rollout', lambda real: lambda self, world, ids, state, **more: real(
        self, world, ids, None, **more))


@bug(check_chunks, 'of an update')
def chunk_with_the_memory_of_another(patch):
    def make(real):
        def taken(b, chunk, rows):
            other = real(b, 1 - chunk, rows)
            return replace(real(b, chunk, rows), state_h=other.state_h, state_c=other.state_c)
        return taken
    around(patch, ppo, 'taken', make)


@bug(check_rollout, 'bootstrap of a rollout')
def truncation_treated_as_termination(patch):
    patch.setattr(PPOTrainer, '_bootstrap', lambda self, *known: None)


def with_seat(patch, **changed):
    "Bootstrap with other things than the seat holds: each name gets what its function makes of the seat"
    def make(real):
        def bootstrap(self, b, t, seat):
            seat = copy(seat)
            for name, f in changed.items(): setattr(seat, name, f(seat))
            return real(self, b, t, seat)
        return bootstrap
    around(patch, PPOTrainer, '_bootstrap', make)


@bug(check_rollout, 'bootstrap of a rollout')
def truncation_bootstrapped_from_the_next_game(patch): with_seat(patch, final_obs=lambda seat: seat.obs)


@bug(check_rollout, 'bootstrap of a rollout')
def truncation_bootstrapped_without_memory(patch):
    with_seat(patch, state=lambda seat: type(seat.state)(*(0*x for x in seat.state)))


@bug(check_rollout, 'bootstrap of a rollout')
def truncation_bootstrapped_without_discount(patch):
    def make(real):
        def bootstrap(self, b, t, seat):
            real(self, b, t, seat)
            b.bootstrap[t] /= self.config.gamma
        return bootstrap
    around(patch, PPOTrainer, '_bootstrap', make)


@bug(check_rollout, 'values of a rollout')
def values_not_denormalised(patch): patch.setattr(ReturnNormalizer, 'denormalize', lambda self, x: x)


def in_gae(patch, change):
    "Advantages from dones `[T + 1, N]` and next value as `change` makes them"
    def make(real):
        def compute_gae(self, next_value, next_done, *rest, **more):
            dones, next_value = change(torch.cat([self.dones, next_done[None].float()]), next_value)
            planted = replace(self, dones=dones[:-1])
            return real(planted, next_value, dones[-1], *rest, **more)
        return compute_gae
    around(patch, RolloutBuffer, 'compute_gae', make)


@bug(check_rollout, 'advantages of a rollout')
def gae_leaks_over_an_end(patch): in_gae(patch, lambda dones, value: (0*dones, value))


@bug(check_rollout, 'advantages of a rollout')
def gae_with_dones_one_step_late(patch): in_gae(patch, lambda dones, value: (shifted(dones, 1), value))


@bug(check_rollout, 'advantages of a rollout')
def gae_with_dones_one_step_early(patch): in_gae(patch, lambda dones, value: (shifted(dones, -1), value))


@bug(check_rollout, 'advantages of a rollout')
def gae_with_a_next_value_in_the_scale_of_the_critic(patch):
    in_gae(patch, lambda dones, value: (dones, (value - 5)/3))


def in_losses(patch, make):
    "Losses by `make(real, self, buffer, logprobs, values, entropies)`"
    around(patch, PPOTrainer, '_compute_losses', lambda real: lambda self, *given: make(real, self, *given))


@bug(check_losses, 'pg_loss of the losses')
def dead_rows_in_the_policy_loss(patch):
    around(patch, ppo, 'policy_loss', lambda real: lambda new, old, A, weight, *rest: real(
        new, old, A, torch.full_like(weight, 1/weight.numel()), *rest))


@bug(check_losses, 'entropy of the losses')
def dead_rows_in_the_entropy(patch):
    in_losses(patch, lambda real, self, b, logprobs, values, entropies: real(
        self, b, logprobs, values, entropies.mean().expand_as(entropies)))


@bug(check_losses, 'vf_loss of the losses')
def dead_rows_missing_from_the_critic(patch):
    in_losses(patch, lambda real, self, b, logprobs, values, entropies: real(
        self, b, logprobs, torch.where(b.valid > 0, values, self.scale.normalize(b.returns)), entropies))


def leveled(self, b, counted):
    "A buffer whose advantages are normalised by the steps `counted`, by a trainer that will not do it again"
    self.config = self.config.model_copy(update=dict(normalize_advantage=False))
    seen = b.advantages[counted]
    return replace(b, advantages=(b.advantages - seen.mean())/(seen.std(correction=0) + 1e-8))


@bug(check_losses, 'pg_loss of the losses')
def dead_rows_in_the_advantage_statistics(patch):
    in_losses(patch, lambda real, self, b, *new: real(self, leveled(self, b, b.valid >= 0), *new))


@bug(check_chunks, 'pg_loss of an update')
def advantages_normalised_over_the_whole_rollout(patch):
    around(patch, PPOTrainer, 'update', lambda real: lambda self, b: real(
        self, leveled(self, b, b.valid > 0)))


@bug(check_losses, 'loss as a whole')
def entropy_punished(patch):
    def make(real, self, *given):
        loss, info = real(self, *given)
        return loss + 2*self.config.ent_coef*info['entropy'], info
    in_losses(patch, make)


@bug(check_losses, 'pg_loss of the losses')
def clip_that_hopes_for_the_best(patch):
    def make(real):
        def policy_loss(new, old, A, *rest):
            loss, info = real(new, old, -A, *rest)
            return -loss, info
        return policy_loss
    around(patch, ppo, 'policy_loss', make)


@bug(check_losses, 'pg_loss of the losses')
def ratio_upside_down(patch):
    around(patch, ppo, 'policy_loss', lambda real: lambda new, old, *rest: real(old, new, *rest))


@bug(check_losses, 'vf_loss of the losses')
def critic_clipped_around_its_target(patch):
    around(patch, ppo, 'value_loss', lambda real: lambda new, old, target, *rest: real(
        new, target, target, *rest))


@bug(check_losses, 'vf_loss of the losses')
def critic_taught_in_the_units_of_the_game(patch):
    patch.setattr(ReturnNormalizer, 'normalize', lambda self, x: x)


@bug(check_step, 'after an update')
def critic_not_moved_with_its_scale(patch): patch.setattr(ppo, 'keep_opinion', lambda *known: None)


@bug(check_step, 'after an update')
def dead_rows_in_the_scale_of_returns(patch):
    around(patch, PPOTrainer, '_rescale', lambda real: lambda self, b: real(
        self, replace(b, valid=torch.ones_like(b.valid))))


@bug(check_step, 'after an update')
def gradients_clipped_one_by_one(patch):
    def descend(self, loss):
        self.optimizer.zero_grad(set_to_none=True); loss.backward()
        params = [p for p in self.model.parameters() if p.grad is not None]
        norm = max(torch.nn.utils.clip_grad_norm_([p], self.config.max_grad_norm) for p in params)
        self.optimizer.step()
        return norm
    patch.setattr(PPOTrainer, '_descend', descend)


@bug(check_chance, 'logprobs of sticks at 0')
def actions_squeezed_again(patch):
    def make(real):
        def logprob(self, action):
            action, sticks = action.clone(), self.layout.sticks
            action[..., sticks] = torch.tanh(action[..., sticks])
            return real(self, action)
        return logprob
    around(patch, ActionDistribution, 'logprob', make)


@bug(check_chance, 'logprobs of sticks at 12')
def sticks_beyond_the_edge(patch): patch.setattr(distributions, 'EDGE', 1.)


@bug(check_chance, 'logprobs of sticks at 0')
def logprob_without_the_slope_of_tanh(patch):
    around(patch, distributions, 'tanh_normal_logprob', lambda real: lambda mean, logstd, action: real(
        mean, logstd, action) + torch.log1p(-action**2))


@bug(check_chance, 'logprobs of sticks at 0')
def masks_forgotten_by_the_logprob(patch):
    around(patch, ActionDistribution, 'logprob', lambda real: lambda self, action: real(
        replace(self, mask=None), action))


# ---- the tests

CHECKS = {check.__name__: check for check, _, _ in BUGS.values()}

@pytest.mark.parametrize('name', CHECKS)
def test_check_passes(name): CHECKS[name]()


@pytest.mark.parametrize('name', BUGS)
def test_planted_bug_is_caught(name, monkeypatch):
    check, says, plant = BUGS[name]
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=says): check()
