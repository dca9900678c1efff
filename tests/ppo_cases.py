"What the tests of PPO share: a model, a record of random numbers, and a small world told twice."
from types import SimpleNamespace

import numpy as np
import torch

from echelon.config import Strict
from echelon.rl.model import ActorCriticLSTM
from echelon.training import ppo
from echelon.training.ppo import PPOConfig, PPOTrainer
from echelon.training.rollout import RolloutBuffer
from echelon.world import Block, Field, World, WorldSpec

import ppo_oracle as oracle
from ppo_oracle import REAL

# every kind, out of order: an action is [aim, move, move, fire, fire, mode], a mask [aim 3, fire 2, mode 2]
BLOCKS = (Block('aim', 'categorical', 0, choices=3), Block('move', 'continuous', 1, 2),
          Block('fire', 'trigger', 3, 2), Block('mode', 'categorical', 5, choices=2))
OBS, ACTION, MASK, WIDTH = 3, 6, 7, 5


def agree(what, ours, theirs, tol=1e-5):
    "Say by how much two things differ, if they do"
    off = (torch.as_tensor(ours).double() - torch.as_tensor(theirs).double()).abs().max().item()
    if not off <= tol: raise AssertionError(f'{what}: off by {off:.1e}, expected at most {tol:.0e}')


def lively(seed=0):
    "A small model far from its tame starting weights"
    torch.manual_seed(seed)
    model = ActorCriticLSTM(OBS, ACTION, WIDTH + 1, WIDTH, BLOCKS)
    with torch.no_grad():
        for p in model.parameters(): p += .3*torch.randn_like(p)
    return model


def weights(model): return {k: p.detach().to(REAL) for k, p in model.named_parameters()}


def numbers(config, **more):
    "What the oracle has to know of a config"
    return dict(clip=config.clip_coef, ent_coef=config.ent_coef, vf_coef=config.vf_coef,
                clip_value=config.clip_value, **more)


def recorded(T=10, N=5, chunk=None, seed=0):
    "A model, and a buffer of random numbers played by what it was before it changed a little"
    model = lively(seed)
    b = RolloutBuffer.create(T, N, OBS, ACTION, mask_dim=MASK, lstm_dim=WIDTH, chunk_steps=chunk or T)
    for x in (b.obs, b.state_h, b.state_c, b.advantages): x.normal_()
    b.values.normal_(5, 3); b.advantages *= 2; b.advantages += 1
    b.dones[:], b.masks[:] = torch.rand(T, N) < .2, torch.rand(T, N, MASK) < .5
    b.valid[T//2:, 0] = b.valid[:T//2 - 1, N - 1] = 0
    torch.add(b.advantages, b.values, out=b.returns)
    with torch.no_grad():
        state = model.initial_state(N)
        for t in range(T):
            chunk, inside = divmod(t, b.chunk_steps)
            if not inside: state = b.state_h[None, chunk], b.state_c[None, chunk]
            b.actions[t], b.logprobs[t], _, state = model.act(b.obs[t], state, b.dones[t], b.masks[t])
        for p in model.parameters(): p += .12*torch.randn_like(p)
    return model, b


def as_record(b, chunk=0):
    "A chunk of a buffer, as the oracle reads it"
    at = slice(chunk*b.chunk_steps, (chunk + 1)*b.chunk_steps)
    names = 'obs actions masks dones valid logprobs values advantages returns'.split()
    return SimpleNamespace(**{n: getattr(b, n)[at] for n in names}, h=b.state_h[chunk], c=b.state_c[chunk])


def trainer_of(model, b=None, mean=0., std=1., **config):
    "A trainer whose scale of returns is known"
    trainer = PPOTrainer(model, PPOConfig(**dict(rollout_steps=b.rewards.shape[0] if b else 8) | config))
    trainer.scale.mean, trainer.scale.var = np.float64(mean), np.float64(std)**2 - 1e-8
    return trainer


def ours(model, b, trainer):
    "Loss, parts and gradients, by the trainer's own ways"
    mb = ppo.taken(b, 0, torch.arange(b.rewards.shape[1]))
    logprobs, entropies, values = trainer._evaluate(mb)
    loss, parts = trainer._compute_losses(mb, logprobs, values, entropies)
    model.zero_grad(); loss.backward()
    return loss.detach(), parts, {k: p.grad for k, p in model.named_parameters()}


class BellConfig(Strict):
    "No settings"


def seen(w, row, game, t): return [np.sin(1 + 3*w + 5*row + 7*game + 2*t + k) for k in range(OBS)]
def allowed(w, row, game, t): return [(w + 2*row + game + t + k) % 4 > 0 for k in range(MASK)]
def paid(w, row, game, t): return 5 + 3*np.cos(2*w + row + 3*game + t)
def length(w, game): return 3 + (w + game) % 3        # decisions; games of 4 are cut, the others decided
def living(row, t): return row == 0 or t < 2          # row 1 dies of its second decision


class Bell(World):
    "Two rows whose games end by the clock"
    def __init__(self, worlds=3):
        spec = WorldSpec('bell', worlds, 2, ('a', 'b'), (0, 0), 1., (Field('seen', 0, (OBS,)),), BLOCKS)
        super().__init__(spec, BellConfig())
        self._state = dict(t=np.zeros(worlds, np.int64))
        self.reset()

    def _see(self):
        for w, row in np.ndindex(*self.alive.shape):
            at = w, row, int(self.game[w]), int(self._state['t'][w])
            self.obs[w, row], self.action_mask[w, row] = seen(*at), allowed(*at)
            self.alive[w, row] = living(row, at[3])

    def _open(self, mask): self._state['t'][mask] = 0; self._see()

    def _advance(self):
        self._state['t'] += 1
        for w, row in np.ndindex(*self.alive.shape):
            game, t = int(self.game[w]), int(self._state['t'][w])
            self.reward[w, row] = paid(w, row, game, t)
            ended = t == length(w, game)
            self.terminated[w], self.truncated[w] = ended and t != 4, ended and t == 4
        self._see()

    def frame(self, w): return {}


def told(steps, worlds=3):
    "The same world once more: what each row meets `[steps + 1, N]`, the last entry being what comes next"
    N = 2*worlds
    space = lambda *shape: torch.zeros(steps + 1, N, *shape)
    r = SimpleNamespace(obs=space(OBS), masks=space(MASK).bool(), dones=space(), valid=space(),
                        rewards=torch.zeros(steps, N), final={})
    for n in range(N):
        (w, row), game, t = divmod(n, 2), 0, 0
        for s in range(steps + 1):
            r.obs[s, n] = torch.tensor(seen(w, row, game, t))
            r.masks[s, n] = torch.tensor(allowed(w, row, game, t))
            r.dones[s, n], r.valid[s, n] = t == 0, living(row, t)
            if s == steps: break
            t += 1
            r.rewards[s, n] = paid(w, row, game, t)
            if t == length(w, game):
                if t == 4: r.final[s, n] = torch.tensor(seen(w, row, game, t))
                game, t = game + 1, 0
    return r


def told_rollout(model, actions, begin, gamma, lam, mean, std):
    """The rollout that must come of `actions` `[T, N, A]`, sent from step `begin` of that world on, in chunks
    of 4 steps; the critic speaks in (value - mean)/std"""
    T, N, _ = actions.shape
    p, r, at, zero = weights(model), told(begin + T), slice(begin, begin + T), torch.zeros(WIDTH, dtype=REAL)
    memory = [oracle.memories(p, r.obs[:, n], r.dones[:, n], zero, zero) for n in range(N)]
    worth = lambda h: mean + std*float(oracle.value(p, h))
    values = torch.tensor([[worth(memory[n][t][0]) for n in range(N)]
                           for t in range(begin, begin + T + 1)], dtype=REAL)
    logprobs, bootstrap = torch.zeros(T, N, dtype=REAL), torch.zeros(T, N, dtype=REAL)
    for t, n in np.ndindex(T, N):
        logprobs[t, n] = oracle.judged(p, memory[n][begin + t][0], actions[t, n], r.masks[begin + t, n])[0]
        if (begin + t, n) in r.final:
            h, _ = oracle.remember(p, r.final[begin + t, n], *memory[n][begin + t])
            bootstrap[t, n] = gamma*worth(h)
    advantages = oracle.advantages(r.rewards[at], values[:-1], r.dones[at], values[-1], r.dones[begin + T],
                                   gamma, lam, bootstrap)
    h, c = (torch.stack([torch.stack([memory[n][t - 1][k] if t else zero for n in range(N)])
                         for t in range(begin, begin + T, 4)]) for k in (0, 1))
    met = {name: getattr(r, name)[at] for name in ('obs', 'masks', 'dones', 'valid', 'rewards')}
    return met | dict(logprobs=logprobs, values=values[:-1], bootstrap=bootstrap, advantages=advantages,
                      returns=advantages + values[:-1], state_h=h, state_c=c)
