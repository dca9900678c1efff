"""PPO with a memory once more, from the papers: one row and one step at a time, in float64.

Nothing here comes from the package. Weights are a dictionary of tensors under the names that a model gives
them; a record is a `SimpleNamespace` of tensors `[T, N, …]`, as the buffer of a rollout holds them.
"""
import math

import torch
from torch.distributions import Bernoulli, Categorical, Normal, TanhTransform, TransformedDistribution

REAL = torch.float64
# An action is [choice, stick, stick, trigger, trigger, choice], its mask [choice 3, trigger 2, choice 2]
STICKS, TRIGGERS, CHOICES = (1, 2), ((3, 3), (4, 4)), ((0, 0, 3), (5, 5, 2))   # (column, mask from, how many)


def advantages(rewards, values, dones, next_value, next_done, gamma, lam, bootstrap):
    "Schulman et al. 2015, eq. 16: for each step the fading sum of all surprises up to the end of its game"
    T, N = rewards.shape
    out = torch.zeros(T, N, dtype=REAL)
    for n in range(N):
        value = [float(v) for v in values[:, n]] + [float(next_value[n])]
        ended = [bool(d) for d in dones[1:, n]] + [bool(next_done[n])]   # after step t
        for t in range(T):
            for k in range(T - t):
                later = 0 if ended[t + k] else gamma*value[t + k + 1]
                surprise = float(rewards[t + k, n]) + float(bootstrap[t + k, n]) + later - value[t + k]
                out[t, n] += (gamma*lam)**k*surprise
                if ended[t + k]: break
    return out


def cell(p, x, h, c):
    "One step of an LSTM, as the documentation of `torch.nn.LSTM` writes it"
    H = len(h)
    part = lambda k: (p['lstm.weight_ih_l0'][k*H:(k + 1)*H] @ x + p['lstm.bias_ih_l0'][k*H:(k + 1)*H]
                      + p['lstm.weight_hh_l0'][k*H:(k + 1)*H] @ h + p['lstm.bias_hh_l0'][k*H:(k + 1)*H])
    i, f, g, o = torch.sigmoid(part(0)), torch.sigmoid(part(1)), torch.tanh(part(2)), torch.sigmoid(part(3))
    c = f*c + i*g
    return o*torch.tanh(c), c


def remember(p, obs, h, c):
    "One observation through encoder and memory"
    x = torch.tanh(p['encoder.0.weight'] @ obs.to(REAL) + p['encoder.0.bias'])
    x = torch.tanh(p['encoder.2.weight'] @ x + p['encoder.2.bias'])
    return cell(p, x, h, c)


def memories(p, obs, dones, h, c):
    "The memory `(h, c)` of one row after each of its steps; gone before a step that opens a game"
    out = []
    for t in range(len(obs)):
        if dones[t]: h, c = torch.zeros_like(h), torch.zeros_like(c)
        h, c = remember(p, obs[t], h, c)
        out.append((h, c))
    return out


def value(p, h): return (p['critic.weight'] @ h + p['critic.bias'])[0]


def judged(p, h, action, mask):
    "Log-probability and entropy of one action of one row, part by part"
    out = p['actor_mean.weight'] @ h + p['actor_mean.bias']
    logprob, entropy, at = torch.zeros((), dtype=REAL), torch.zeros((), dtype=REAL), 0
    for column in STICKS:
        stick = Normal(out[at], torch.exp(p['actor_logstd'][at]))
        logprob = logprob + TransformedDistribution(stick, TanhTransform()).log_prob(action[column].to(REAL))
        entropy, at = entropy + stick.entropy(), at + 1     # of what is squeezed
    for column, able in TRIGGERS:
        trigger = Bernoulli(logits=out[at]); at += 1
        if not mask[able]: continue
        logprob = logprob + trigger.log_prob((action[column] > 0).to(REAL))
        entropy = entropy + trigger.entropy()
    for column, first, count in CHOICES:
        logits = out[at:at + count]; at += count
        options = [k for k in range(count) if mask[first + k]]
        if not options: continue
        choice = Categorical(logits=logits[options])
        logprob = logprob + choice.log_prob(torch.tensor(options.index(int(action[column]))))
        entropy = entropy + choice.entropy()
    return logprob, entropy


def evaluated(p, r):
    "Log-probabilities, entropies and values `[T, N]` of a record that starts from the memory `r.h`, `r.c`"
    T, N = r.dones.shape
    out = [[None]*N for _ in range(T)]
    for n in range(N):
        for t, (h, _) in enumerate(memories(p, r.obs[:, n], r.dones[:, n], r.h[n].to(REAL), r.c[n].to(REAL))):
            out[t][n] = torch.stack([*judged(p, h, r.actions[t, n], r.masks[t, n]), value(p, h)])
    return torch.stack([torch.stack(row) for row in out]).unbind(-1)


def normalized(r):
    "Advantages at mean 0 and spread 1 over the decisions of the learner"
    A = [float(a) for a, v in zip(r.advantages.flatten(), r.valid.flatten()) if v]
    mean = math.fsum(A)/len(A)
    std = math.sqrt(math.fsum((a - mean)**2 for a in A)/len(A))
    return (r.advantages.to(REAL) - mean)/(std + 1e-8)


def loss(logprobs, entropies, values, r, clip, ent_coef, vf_coef, clip_value=False, mean=0., std=1.):
    "Schulman et al. 2017, eq. 7 and 9, to be made small; its parts. The critic speaks in (return - mean)/std"
    T, N = r.dones.shape
    A, n = normalized(r), int(r.valid.sum())
    climb = entropy = square = kl = clipped = 0.
    for t in range(T):
        for k in range(N):
            old, target = ((float(x[t, k]) - mean)/std for x in (r.values, r.returns))
            error = (values[t, k] - target)**2
            if clip_value:
                near = old + torch.clamp(values[t, k] - old, -clip, clip)
                error = torch.maximum(error, (near - target)**2)
            square = square + error
            if not r.valid[t, k]: continue
            ratio = torch.exp(logprobs[t, k] - float(r.logprobs[t, k]))
            climb = climb + torch.minimum(ratio*A[t, k], torch.clamp(ratio, 1 - clip, 1 + clip)*A[t, k])
            entropy = entropy + entropies[t, k]
            kl += float((ratio - 1 - torch.log(ratio)).detach())
            clipped += float(abs(ratio.detach() - 1) > clip)
    parts = dict(pg_loss=-climb/n, vf_loss=square/(2*T*N), entropy=entropy/n,
                 approx_kl=torch.tensor(kl/n), clip_fraction=torch.tensor(clipped/n))
    return parts['pg_loss'] - ent_coef*parts['entropy'] + vf_coef*parts['vf_loss'], parts


def gradients(p, r, **numbers):
    "The loss, its parts, and its gradient for every weight"
    p = {k: w.detach().clone().requires_grad_() for k, w in p.items()}
    total, parts = loss(*evaluated(p, r), r, **numbers)
    return total.detach(), parts, dict(zip(p, torch.autograd.grad(total, list(p.values()))))


def popart(p, r, mean, std):
    "Van Hasselt et al. 2016, eq. 9: the critic's last layer against a first scale of returns; and that scale"
    seen = [float(x) for x, v in zip(r.returns.flatten(), r.valid.flatten()) if v]
    new_mean = math.fsum(seen)/len(seen)
    new_std = math.sqrt(math.fsum((x - new_mean)**2 for x in seen)/len(seen))
    moved = {'critic.weight': p['critic.weight']*std/new_std,
             'critic.bias': (std*p['critic.bias'] + mean - new_mean)/new_std}
    return p | moved, new_mean, new_std


def shortened(g, most):
    "Gradients whose joint length is at most `most`, and the length they had"
    length = math.sqrt(sum(float((x**2).sum()) for x in g.values()))
    return {k: x*min(1., most/length) for k, x in g.items()}, length


def adam(p, g, moments, step, lr, eps, beta1=.9, beta2=.999):
    "Kingma and Ba 2015, algorithm 1: the weights after a step, counted from 1; `moments` is changed in place"
    out = {}
    for k, w in p.items():
        m, v = moments.get(k, (torch.zeros_like(w), torch.zeros_like(w)))
        moments[k] = m, v = beta1*m + (1 - beta1)*g[k], beta2*v + (1 - beta2)*g[k]**2
        out[k] = w - lr*(m/(1 - beta1**step))/(torch.sqrt(v/(1 - beta2**step)) + eps)
    return out
