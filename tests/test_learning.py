"The silent killers of recurrent multi-agent learning, one test each: none of them raises an error by itself."
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from echelon.config import Strict
from echelon.rl.distributions import LOGSTD_HIGH, ActionDistribution, layout_of
from echelon.rl.lstm_state import LSTMState
from echelon.rl.model import ActorCriticLSTM, acting_copy
from echelon.rl.model import LSTMState as OfModel
from echelon.training.gae import gae_reference
from echelon.training.normalization import ReturnNormalizer, RunningMeanStd
from echelon.training.ppo import PPOConfig, PPOTrainer, Seat, flat_rows
from echelon.training.rollout import RolloutBuffer, taken
from echelon.world import Block, World, WorldSpec, make
from echelon.world import Field as Column

torch.set_num_threads(1)
BLOCKS = (Block('move', 'continuous', 0, 2), Block('fire', 'trigger', 2, 2),
          Block('target', 'categorical', 4, choices=3))


def lively(action_spec=BLOCKS, action_dim=5, width=16):
    "A small model far from its tame starting weights"
    torch.manual_seed(0)
    model = ActorCriticLSTM(7, action_dim, width, width, action_spec)
    with torch.no_grad():
        for p in model.parameters(): p += .2*torch.randn_like(p)
    return model


def sequence(T=20, B=5):
    torch.manual_seed(1)
    return torch.randn(T, B, 7), (torch.rand(T, B) < .15).float(), torch.rand(T, B, 5) < .7


def stepped(model, obs, dones, masks, actions=None):
    state, out = model.initial_state(obs.shape[1]), []
    for t in range(len(obs)):
        given = None if actions is None else actions[t]
        *row, state = model.get_action_and_value(obs[t], state, dones[t], given, action_mask=masks[t])
        out.append(row)
    return [torch.stack(x) for x in zip(*out)], state


def test_one_state_class(): assert OfModel is LSTMState and LSTMState._fields == ('h', 'c')


def test_steps_and_sequence_agree_and_one_step_off_is_seen():
    model, (obs, dones, masks) = lively(), sequence()
    (actions, *slow), last = stepped(model, obs, dones, masks)
    start = model.initial_state(5)
    *fast, state = model.evaluate_actions_sequence(obs, actions, dones, start, action_mask=masks)
    for a, b in zip([*slow, *last], [*fast, *state]): assert torch.allclose(a, b, atol=1e-5)
    for shift in (1, -1):
        *off, _ = model.evaluate_actions_sequence(obs, actions, dones.roll(shift, 0), start, masks)
        assert (off[0] - slow[0]).abs().max() > 1e-3 and (off[2] - slow[2]).abs().max() > 1e-3


def test_nothing_of_a_past_game_enters_the_next():
    model, (obs, _, _) = lively(), sequence(T=2)
    dones = torch.ones(2, 5)
    wild = LSTMState(torch.full((1, 5, 16), float('inf')), torch.full((1, 5, 16), 1e6))
    a = model.body(obs, dones, wild)[0]
    b = model.body(obs, dones, model.initial_state(5))[0]
    assert (a == b).all()
    first = obs.clone().requires_grad_()
    model.body(first, dones, model.initial_state(5))[0][1].sum().backward()
    assert (first.grad[0] == 0).all() and (first.grad[1] != 0).any()


@pytest.mark.parametrize('spec', [None, BLOCKS])
def test_every_parameter_is_reached(spec):
    model, (obs, dones, masks) = lively(spec), sequence()
    masks = masks if spec else None
    params = torch.randn(20, 5, model.layout.outputs)
    actions = ActionDistribution(model.layout, params, model.actor_logstd.detach(), masks).sample()
    for which, spared in ((0, {'critic'}), (1, {'critic'}), (2, {'actor_mean', 'actor_logstd'})):
        model.zero_grad()
        out = model.evaluate_actions_sequence(obs, actions, dones, model.initial_state(5), masks)[which]
        out.square().mean().backward()
        for name, p in model.named_parameters():
            part = name.split('.')[0]
            reached = p.grad is not None and bool(p.grad.abs().max() > 0)
            assert p.grad is None or torch.isfinite(p.grad).all()
            if which == 1 and spec is None: continue     # the entropy of sticks is that of log-std alone
            assert reached == (part not in spared), f'output {which}: {name}'


def test_entropy_depends_on_logstd():
    model, (obs, dones, _) = lively(None), sequence()
    entropy = lambda: model.get_action_and_value(obs[0], model.initial_state(5), dones[0])[2].mean().item()
    before = entropy()
    with torch.no_grad(): model.actor_logstd += .1
    assert abs(entropy() - before - .5) < 1e-4


def test_the_entropy_bonus_pushes_the_logstd_up_and_the_bounds_hold_it():
    for bonus, moves in ((.1, True), (0., False)):
        trainer, b, _, _ = rollout(lr=1e-2, ent_coef=bonus, vf_coef=0., normalize_advantage=False)
        before = trainer.model.actor_logstd.detach().clone()
        b.advantages.zero_()
        trainer.update(b)
        assert ((trainer.model.actor_logstd > before) == moves).all()
    for _ in range(60): trainer.ent_coef = 1.; trainer.update(b)
    assert (trainer.model.actor_logstd <= LOGSTD_HIGH).all() and (trainer.model.actor_logstd > .4).all()


def test_no_layer_is_saturated_at_the_start():
    torch.manual_seed(0)
    model, seen = ActorCriticLSTM(40, 3), []
    for layer in model.encoder:
        if isinstance(layer, torch.nn.Tanh): layer.register_forward_hook(lambda m, i, o: seen.append(o))
    y, _ = model.step(torch.rand(500, 40)*2 - 1, model.initial_state(500), torch.ones(500))
    assert len(seen) == 2 and all((o.abs() > .97).float().mean() < .1 for o in (*seen, y))
    assert model.policy(y).mean.abs().max() < .1     # a fresh policy follows its biases


def test_a_buffer_is_made_once_and_filled_again():
    trainer, b, state, world = rollout()
    where = {n: x.data_ptr() for n, x in vars(b).items() if isinstance(x, torch.Tensor)}
    trainer.update(b)
    again, _ = trainer.collect_rollout(world, ['a', 'b'], state)
    assert again is b and {n: getattr(b, n).data_ptr() for n in where} == where


def test_logprob_of_actions_at_the_edge_is_finite_and_repeatable():
    layout = layout_of(None, 2)
    params = torch.tensor([[30., -30.], [0., 0.]], requires_grad=True)
    d = ActionDistribution(layout, params, torch.zeros(2))
    action = d.sample()
    assert action.abs().max() < 1
    logprob = d.logprob(torch.tensor([[1., -1.], [1., -1.]]))
    logprob.sum().backward()
    assert torch.isfinite(logprob).all() and torch.isfinite(params.grad).all()
    assert (d.logprob(action) == d.logprob(action.clone())).all()


@pytest.mark.parametrize('allowed', [[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
def test_masks(allowed):
    torch.manual_seed(2)
    layout, mask = layout_of(BLOCKS, 5), torch.tensor(allowed, dtype=torch.bool)
    params = torch.randn(500, 7, requires_grad=True)
    d = ActionDistribution(layout, params, torch.zeros(2), mask.expand(500, 5))
    for action in (d.sample(), d.mode()):
        for k in range(2): assert allowed[k] or (action[:, 2 + k] == -1).all()
        choice = action[:, 4].long()
        assert mask[2:][choice].all() if mask[2:].any() else (d.entropy() >= 0).all()
    (d.logprob(d.sample()) + d.entropy()).sum().backward()
    unheld = torch.cat([~mask[:2], ~mask[2:]])
    assert (params.grad[:, 2:][:, unheld] == 0).all() and torch.isfinite(params.grad).all()


class ClockConfig(Strict):
    "No settings"


class Clock(World):
    "Reward and end by the clock: rows see the time; row 1 of each game dies at step 2; games are cut at 5"
    def __init__(self, worlds=2):
        columns = (Column('time', 0), Column('late', 1, (6,)))
        spec = WorldSpec('clock', worlds, 2, ('a', 'b'), (0, 0), 1., columns, BLOCKS)
        super().__init__(spec, ClockConfig())
        self._state = dict(t=np.zeros(worlds, np.int64))
        self.reset()

    def _see(self): self.obs[..., 0] = self._state['t'][:, None]/5; self.obs[..., 1:] = 1
    def _open(self, mask): self._state['t'][mask] = 0; self.alive[mask] = True; self._see()
    def frame(self, w): return {}

    def _advance(self):
        self._state['t'] += 1
        self.reward[:] = self._state['t'][:, None]
        self.alive[:, 1] = self._state['t'] < 2
        self.truncated[:] = self._state['t'] >= 5
        self._see()


def rollout(steps=8, **config):
    "A rollout of the clock, the trainer, and the worlds it was played in"
    model = lively()
    trainer = PPOTrainer(model, PPOConfig(rollout_steps=steps, gamma=.9, **config))
    world = Clock()
    buffer, state = trainer.collect_rollout(world, ['a', 'b'])
    return trainer, buffer, state, world


def test_times_of_dones_validity_and_reward():
    _, b, _, _ = rollout()
    assert b.dones[:, 0].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert b.valid[:, 0].tolist() == [1]*8 and b.valid[:, 1].tolist() == [1, 1, 0, 0, 0, 1, 1, 0]
    assert b.rewards[:, 0].tolist() == [1, 2, 3, 4, 5, 1, 2, 3]


def test_a_cut_game_bootstraps_from_its_last_observation_with_the_memory_of_that_moment():
    trainer, b, state, world = rollout()
    model, memory = trainer.model, None
    with torch.no_grad():
        _, memory = model.body(b.obs[:5], b.dones[:5], model.initial_state(4))  # up to its last decision
        last = torch.ones(4, 7)  # time 5 of 5
        expected = .9*model.get_value(last, memory, torch.zeros(4))
        blank = .9*model.get_value(last, model.initial_state(4), torch.zeros(4))
        first_of_next = .9*model.get_value(b.obs[5], memory, torch.zeros(4))
    assert torch.allclose(b.bootstrap[4], expected, atol=1e-6)
    assert (expected - blank).abs().max() > 1e-3 and (expected - first_of_next).abs().max() > 1e-3
    assert (b.bootstrap[[0, 1, 2, 3, 5, 6, 7]] == 0).all()
    delta = b.rewards[4] + b.bootstrap[4] - b.values[4]
    assert torch.allclose(b.advantages[4], delta, atol=1e-5)  # nothing leaks from the next game


def test_hand_worked_gae_with_a_cut():
    b = RolloutBuffer.create(3, 1, 1, 1)
    b.rewards[:, 0] = torch.tensor([0., 0., 4.]); b.values[:] = 1; b.bootstrap[2] = .5*2
    b.compute_gae(torch.tensor([9.]), torch.tensor([1.]), .5, 1.)
    assert b.advantages[:, 0].tolist() == [.25, 1.5, 4.] and b.returns[:, 0].tolist() == [1.25, 2.5, 5.]


def losses(trainer, b, logprobs):
    values, entropies = (torch.full_like(logprobs, x, requires_grad=True) for x in (0., 1.))
    loss, info = trainer._compute_losses(b, logprobs, values, entropies)
    loss.backward()
    return info, logprobs.grad, values.grad, entropies.grad


def test_dead_rows_reach_the_critic_and_nothing_else():
    trainer, b, _, _ = rollout()
    dead = b.valid == 0
    first = losses(trainer, b, b.logprobs.clone().requires_grad_())
    _, by_policy, by_value, by_entropy = first
    assert (by_policy[dead] == 0).all() and (by_entropy[dead] == 0).all() and (by_value[dead] != 0).all()
    assert (by_policy[~dead] != 0).any() and (by_entropy[~dead] != 0).all()
    b.advantages[dead] = 1e6
    second = losses(trainer, b, b.logprobs.clone().requires_grad_())
    assert (second[1] == by_policy).all() and second[0]['pg_loss'] == first[0]['pg_loss']


def test_dead_rows_do_not_move_the_scale_of_returns():
    trainer, b, _, _ = rollout()
    b.returns[b.valid == 0] = 1e6
    trainer._rescale(b)
    assert trainer.scale.count == b.valid.sum() and trainer.scale.mean < 100


def test_a_synthetic_buffer_gives_the_plain_formula():
    torch.manual_seed(0)
    model = ActorCriticLSTM(4, 2, 16, 16)
    config = PPOConfig(rollout_steps=8, normalize_advantage=False, ent_coef=0., vf_coef=0.)
    trainer = PPOTrainer(model, config, 'cpu')
    b = RolloutBuffer.create(8, 3, 4, 2, 'cpu')
    b.advantages.normal_()
    new = torch.randn(8, 3)*.3
    loss, _ = trainer._compute_losses(b, new, torch.zeros(8, 3), torch.zeros(8, 3))
    ratio = new.exp()
    plain = -torch.min(ratio*b.advantages, ratio.clamp(.8, 1.2)*b.advantages).mean()
    assert torch.allclose(loss, plain, atol=1e-6)
    b.obs.normal_(); b.actions.uniform_(-.9, .9); b.rewards.normal_()
    b.compute_gae(torch.zeros(3), torch.zeros(3), .99, .95)
    info = trainer.update(b)
    named = 'pg_loss vf_loss entropy approx_kl clip_fraction explained_variance grad_norm'
    assert set(named.split()) <= set(info)
    assert all(np.isfinite(v) for v in info.values())


def test_chunks_start_from_the_memory_of_that_step():
    trainer, b, _, _ = rollout(steps=8, chunk_steps=4)
    start = trainer.model.initial_state(4)
    with torch.no_grad(): _, memory = trainer.model.body(b.obs[:4], b.dones[:4], start)
    assert torch.allclose(b.state_h[1], memory.h[0], atol=1e-6) and (b.state_h[0] == 0).all()


def test_a_vector_env_is_played_by_names_like_its_batch():
    "Its batch opens no game by itself: the trainer does, and sees the games that an autoreset would give"
    from echelon.config import EnvConfig
    from echelon.training.vec_env import VectorEnv
    config = EnvConfig(world=dict(size=40, pool=1), max_episode_seconds=2.)
    trainers, buffers = [], []
    with VectorEnv(2, config) as envs:
        batch = make('mech', worlds=2, seed=5, world=dict(size=40, pool=1), max_episode_seconds=2.)
        for world, ids in ((batch, range(10)), (envs, [f'blue_{i}' for i in range(10)])):
            real = getattr(world, 'world', world)
            real.reset(seed=batch.seeds.copy())
            torch.manual_seed(0)
            model = ActorCriticLSTM(948, 9, 16, 16, real.spec)
            trainer = PPOTrainer(model, PPOConfig(rollout_steps=20, update_epochs=1))
            buffer, state = trainer.collect_rollout(world, ids)
            trainers.append(trainer); buffers.append(buffer)
    a, b = buffers
    assert a.dones.sum() > 20 and torch.equal(a.dones, b.dones)      # games ended on the way
    for name in ('obs', 'actions', 'rewards', 'advantages'):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert all(len(game.agents) == int(envs.world.alive[w].sum()) for w, game in enumerate(envs.games))
    assert np.isfinite(list(trainers[1].update(b).values())).all()


def test_a_central_critic_sees_mates_and_the_actor_does_not():
    torch.manual_seed(0)
    model = ActorCriticLSTM(7, 5, 16, 16, BLOCKS, team_size=2)
    trainer = PPOTrainer(model, PPOConfig(rollout_steps=8, minibatch=8, update_epochs=2))
    buffer, _ = trainer.collect_rollout(Clock(), ['a', 'b'])
    mb = taken(buffer, 0, torch.arange(4))
    logprobs, _, values = trainer._evaluate(mb)
    assert (logprobs - buffer.logprobs).abs().max() < 1e-5
    mb.obs[:, 1] += 1                                                 # what the mate of row 0 sees
    other_logprobs, _, other_values = trainer._evaluate(mb)
    assert torch.equal(logprobs[:, 0], other_logprobs[:, 0])
    assert (values[:, 0] != other_values[:, 0]).any() and torch.equal(values[:, 2:], other_values[:, 2:])
    assert np.isfinite(list(trainer.update(buffer).values())).all()
    for one in (['a'], ['a', 'b']):      # four rows of four worlds are no team of four
        with pytest.raises(ValueError, match=f'{len(one)} rows of a world: expected whole teams of 4'):
            four = ActorCriticLSTM(7, 5, 16, 16, BLOCKS, team_size=4)
            PPOTrainer(four, PPOConfig(rollout_steps=2)).collect_rollout(Clock(worlds=4), one)


def test_vtrace_sees_the_policy_of_now():
    "Before the second epoch, and against what a twin that stopped after the first one says"
    def improved(epochs, lr, **more):
        torch.manual_seed(3)
        trainer = PPOTrainer(lively(), PPOConfig(rollout_steps=8, gamma=.9, minibatch=8, lr=lr,
                                                 update_epochs=epochs, normalize_returns=False, **more))
        trainer.scale.mean, trainer.scale.var = np.array(5.), np.array(9.)
        b, _ = trainer.collect_rollout(Clock(), ['a', 'b'])
        before = b.values.clone(), b.advantages.clone(), b.returns.clone()
        trainer.update(b)
        return trainer, b, before

    _, still, before = improved(3, 1e-12, vtrace=True)              # nothing moved, so nothing changes
    for now, then in zip((still.values, still.advantages, still.returns), before):
        assert torch.allclose(now, then, atol=1e-3)
    assert torch.allclose(still.ratios, torch.ones(8, 4), atol=1e-4)

    _, b, before = improved(2, 1e-2, vtrace=True)
    twin, c, _ = improved(1, 1e-2)
    with torch.no_grad(): logprobs, _, values = twin._evaluate(taken(c, 0, torch.arange(4)))
    ratios = torch.where(c.valid > 0, (logprobs - c.logprobs).exp().clamp(max=1), 1)
    assert torch.allclose(b.ratios, ratios, atol=1e-5) and (ratios < .999).sum() > 5
    assert torch.allclose(b.values, 5 + 3*values, atol=1e-4) and (b.values - before[0]).abs().max() > .01
    known = [x.double().numpy() for x in (c.rewards, 5 + 3*values, c.dones, c.next_value, c.next_done)]
    expected = gae_reference(*known, .9, .95, c.bootstrap.double().numpy(), ratios.double().numpy())
    assert np.allclose(b.advantages, expected, atol=1e-3)
    assert torch.allclose(b.returns, b.values + b.ratios*b.advantages, atol=1e-4)

    plain, corrected = improved(2, 1e-2)[0], improved(2, 1e-2, vtrace=True)[0]
    assert any((x - y).abs().max() > 1e-4 for x, y in zip(plain.model.parameters(),
                                                          corrected.model.parameters()))
    with pytest.raises(ValueError, match='clip_value'): PPOConfig(vtrace=True, clip_value=True)


def test_a_batch_that_has_ended_begins_with_the_next_games():
    world = make('corridor', worlds=2, autoreset=False, length=10)
    while not (world.terminated | world.truncated).all(): world.step()
    trainer = PPOTrainer(ActorCriticLSTM(3, 1, 8, 8, world.spec), PPOConfig(rollout_steps=3))
    b, _ = trainer.collect_rollout(world, [0])
    assert (b.dones[0] == 1).all() and (b.bootstrap[0] == 0).all() and (b.obs[0, :, 0] == 0).all()
    assert world.game.tolist() == [1, 1] and (b.rewards[0] != 0).all()


def test_schedules_fall_to_their_shares():
    trainer, _, _, _ = rollout(lr=1e-2, lr_final=.1, ent_coef=.02, ent_final=.5)
    for share, lr, bonus in ((0., 1e-2, .02), (.5, 5.5e-3, .015), (1., 1e-3, .01)):
        trainer.progress(share)
        assert abs(trainer.optimizer.param_groups[0]['lr'] - lr) < 1e-9
        assert abs(trainer.ent_coef - bonus) < 1e-9


def test_every_numbered_detail_stands_where_the_list_says():
    nbs = Path(__file__).parents[1]/'nbs'
    pages = {p.name[:2]: json.loads(p.read_text()) for p in nbs.glob('[0-9][0-9]_*.ipynb')}
    def text(page, kind):
        return '\n'.join(''.join(c['source']) for c in pages[page]['cells'] if c['cell_type'] == kind)
    rows = re.findall(r'^\| (\d+) \| .+ \| (?:\[)?(\d\d)(?:\]\(.+\))? \|$', text('38', 'markdown'), re.M)
    assert [int(n) for n, _ in rows] == list(range(1, len(rows) + 1)) and len(rows) > 20
    for number, page in rows:
        assert len(re.findall(rf'# \({number}\)', text(page, 'code'))) == 1, f'detail {number} on page {page}'
    written = [n for page in pages for n in re.findall(r'# \((\d+)\)$', text(page, 'code'), re.M)]
    assert sorted(map(int, written)) == list(range(1, len(rows) + 1))


def test_before_the_first_step_the_ratio_is_one():
    for bf16, near in ((False, 1e-5), (True, .05)):
        trainer, b, _, _ = rollout(bf16=bf16)
        with torch.no_grad():
            logprobs, _, values = trainer._evaluate(taken(b, 0, torch.arange(4)))
        assert (logprobs - b.logprobs).abs().max() < near
        assert (trainer.scale.denormalize(values) - b.values).abs().max() < max(near, 1e-4)


def test_a_seat_and_row_numbers():
    world = make('corridor', worlds=3, agents=2)
    assert flat_rows(world, ['walker_1']).tolist() == [1, 3, 5]
    for wrong in (['walker_9'], [5], []):
        with pytest.raises(ValueError, match='agent id'): flat_rows(world, wrong)
    model = ActorCriticLSTM(3, 1, 8, 8, world.spec)
    Seat(acting_copy(model), world, [0]).act()
    assert (world.action[:, 0] == 0).all()


def test_normalizers():
    rms, x = RunningMeanStd((2,)), np.random.default_rng(0).normal(3, 2, (100, 2))
    for part in np.split(x, [3, 50]): rms.update(torch.tensor(part))
    rms.update(x[:0])
    assert np.allclose(rms.mean, x.mean(0)) and np.allclose(rms.var, x.var(0)) and rms.count == 100
    scale = ReturnNormalizer(); scale.update(x[:, 0])
    assert torch.allclose(scale.denormalize(scale.normalize(torch.tensor(x))), torch.tensor(x))


def test_wrong_layouts_are_named():
    with pytest.raises(ValueError, match='action_dim = 4'): ActorCriticLSTM(3, 4, action_spec=BLOCKS)
    with pytest.raises(ValueError, match='kind'): layout_of((Block('x', 'dance', 0),), 1)
    with pytest.raises(ValueError, match='num_steps'): RolloutBuffer.create(8, 2, 1, 1, chunk_steps=3)
