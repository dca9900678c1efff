"The network of the mech world: sets without order, empty slots without influence, steps equal to sequences."
import numpy as np
import pytest
import torch

from echelon.config import EnvConfig
from echelon.rl.model import acting_copy
from echelon.rl.suite import SUITE_DESCRIPTOR_DIM, SUITES
from echelon.rl.suite_model import (FLAT_OBS_DIM, CombatSuiteActorCritic, DeepSet, SuiteObservation,
                                    compute_role_indices, flat_obs_to_suite_obs)
from echelon.training.evaluation import evaluate
from echelon.training.ppo import PPOConfig, PPOTrainer
from echelon.training.trainer import (Training, load_policy, settled,
                                      suggested)
from echelon.world import Block, Field, make

torch.set_num_threads(1)
MECH = dict(packs_per_team=1, world=dict(size=40, pool=1), max_episode_seconds=20.)
BLOCKS = (Block('move', 'continuous', 0, 4), Block('fire', 'trigger', 4, 5))
TERRAIN = (Field('terrain', FLAT_OBS_DIM, (2, 11, 11)), Field('comm', FLAT_OBS_DIM + 242, (10, 8)))


def lively(**more):
    "A small model far from its tame starting weights"
    torch.manual_seed(0)
    model = CombatSuiteActorCritic(9, BLOCKS, **dict(hidden_dim=24, lstm_hidden_dim=16) | more)
    with torch.no_grad():
        for p in model.parameters(): p += .1*torch.randn_like(p)
    return model


def rows(*lead, width=FLAT_OBS_DIM):
    "Random rows whose masks are masks; the last row of each has nobody in sight"
    torch.manual_seed(1)
    flat = torch.randn(*lead, width)
    o = flat_obs_to_suite_obs(flat[..., :FLAT_OBS_DIM])
    for mask in (o.contact_mask, o.squad_mask):
        mask.copy_((torch.rand(mask.shape) < .5).float()); mask[..., -1, :] = 1
    return flat


def test_sizes():
    assert FLAT_OBS_DIM == 706 and SUITE_DESCRIPTOR_DIM == 14 and len(SUITES) == 5
    shapes = [tuple(x.shape) for x in flat_obs_to_suite_obs(torch.zeros(3, 706))]
    assert shapes == [(3, 20, 25), (3, 20), (3, 12, 10), (3, 12), (3, 32), (3, 14), (3, 8)]
    for wrong in (705, 948):
        with pytest.raises(ValueError, match=f'{wrong}.*706'): flat_obs_to_suite_obs(torch.zeros(2, wrong))
    with pytest.raises(ValueError, match='948.*706'):
        lively().get_value(torch.zeros(2, 948), lively().initial_state(2), torch.ones(2))
    with pytest.raises(ValueError, match='extra fields at'):
        CombatSuiteActorCritic(extra=(Field('terrain', 700, (2, 11, 11)),))


@pytest.mark.parametrize('by', ['contacts', 'squad'])
def test_order_of_slots_does_not_matter_and_empty_ones_do_not_exist(by):
    model, flat = lively(), rows(8)
    o = flat_obs_to_suite_obs(flat)
    mask, items = getattr(o, {'contacts': 'contact_mask', 'squad': 'squad_mask'}[by]), getattr(o, by)
    state, first = model.initial_state(8), torch.ones(8)
    def said(items, mask):
        names = {'contacts': 'contact_mask', 'squad': 'squad_mask'}
        y, _ = model.step(o._replace(**{by: items, names[by]: mask}), state, first)
        return torch.cat([model.policy(y).params, model.value(y)[:, None]], -1)
    order = torch.randperm(items.shape[1])
    assert torch.allclose(said(items[:, order], mask[:, order]), said(items, mask), atol=1e-6)
    junk = torch.where(mask[..., None] == 1, torch.nan, items)
    assert torch.equal(said(junk, mask), said(items, mask))
    leaf = items.clone().requires_grad_()
    said(leaf, mask).sum().backward()
    assert (leaf.grad[mask == 1] == 0).all() and (leaf.grad[mask == 0] != 0).any(-1).all()
    moved = items + (mask[..., None] == 0)
    assert ((said(moved, mask) - said(items, mask)).abs().amax(-1) > 1e-4).tolist() == [True]*7 + [False]


def test_mean_divides_by_filled_slots_and_by_one_at_least():
    few = DeepSet(3, 4)
    one, mask = torch.randn(1, 1, 3), torch.zeros(1, 1)
    same = few(one.expand(1, 6, 3), torch.tensor([[0., 0., 1., 0., 1., 0.]]))
    assert torch.allclose(same, few(one, mask), atol=1e-6)
    nobody = few(one.expand(1, 6, 3), torch.ones(1, 6))
    assert (nobody == 0).all() and few(one.expand(0, 1, 3), torch.ones(0, 1)).shape == (0, 4)
    nobody.sum().backward()
    assert all((p.grad == 0).all() for p in few.parameters())


@pytest.mark.parametrize('extra', [(), TERRAIN])
@pytest.mark.parametrize('team', [0, 5])
def test_steps_and_sequence_agree(extra, team):
    model = lively(extra=extra, team_size=team)
    obs, dones, masks = rows(20, 10, width=model.obs_dim), (torch.rand(20, 10) < .15).float(), \
        torch.rand(20, 10, 5) < .7
    state, out = model.initial_state(10), []
    for t in range(20):
        *row, state = model.get_action_and_value(obs[t], state, dones[t], action_mask=masks[t])
        out.append(row)
    actions, *slow = [torch.stack(x) for x in zip(*out)]
    start = model.initial_state(10)
    *fast, last = model.evaluate_actions_sequence(obs, actions, dones, start, action_mask=masks)
    for a, b in zip([*slow, *state], [*fast, *last]): assert torch.allclose(a, b, atol=1e-5)
    off = model.evaluate_actions_sequence(obs, actions, dones.roll(1, 0), start, masks)
    assert (off[0] - slow[0]).abs().max() > 1e-3
    rough = acting_copy(model, torch.bfloat16)
    with torch.no_grad():
        near = rough.evaluate_actions_sequence(obs, actions, dones, rough.initial_state(10), masks)
    assert (near[0] - slow[0]).abs().mean() < .03 and (near[2] - slow[2]).abs().mean() < .03


@pytest.mark.parametrize('team', [0, 5])
def test_every_parameter_is_reached_by_the_losses_that_own_it(team):
    model = lively(extra=TERRAIN, team_size=team)
    obs, dones = rows(6, 10, width=model.obs_dim), torch.zeros(6, 10)
    actions = torch.rand(6, 10, 9)*1.8 - .9
    for which, spared in ((0, {'critic', 'team'}), (2, {'actor_mean', 'actor_logstd'})):
        model.zero_grad()
        out = model.evaluate_actions_sequence(obs, actions, dones, model.initial_state(10))[which]
        out.square().mean().backward()
        for name, p in model.named_parameters():
            reached = p.grad is not None and bool(p.grad.abs().max() > 0)
            assert p.grad is None or torch.isfinite(p.grad).all()
            assert reached == (name.split('.')[0] not in spared), f'output {which}: {name}'


def test_no_layer_is_saturated_at_the_start():
    world = make('mech', worlds=2, seed=3, observation_mode='partial', **MECH)
    world.control[:] = 1
    world.reset()
    for _ in range(20): world.step()
    torch.manual_seed(0)
    model, seen = CombatSuiteActorCritic(9, world.spec, world.spec.obs[7:]), []
    for layer in model.encoder.join:
        if isinstance(layer, torch.nn.Tanh): layer.register_forward_hook(lambda m, i, o: seen.append(o))
    y, _ = model.step(torch.tensor(world.obs.reshape(40, -1)), model.initial_state(40), torch.ones(40))
    assert len(seen) == 2 and all((o.abs() > .97).float().mean() < .02 for o in (*seen, y))
    assert all(o.abs().mean() > .05 for o in seen)


def test_roles_are_the_classes_of_the_rows():
    world = make('mech', worlds=3, **MECH)
    roles = compute_role_indices(60, 3)
    assert roles.dtype == torch.int64
    assert (roles.numpy() == world.game_arrays.mech['kind'].ravel()).all()
    assert compute_role_indices(4, 2, config=EnvConfig(pack=(0, 1, 0, 1))).tolist() == [2, 0, 2, 0]
    for wrong in ((60, 0), (25, 1), (30, 1)):
        with pytest.raises(ValueError, match='num_agents'): compute_role_indices(*wrong)


def test_the_suite_part_is_never_normalised():
    world = make('mech', worlds=2, **MECH)
    model = CombatSuiteActorCritic(9, world.spec, world.spec.obs[7:], 16, 16)
    trainer = PPOTrainer(model, PPOConfig(rollout_steps=4, update_epochs=1, normalize_obs=True))
    buffer, _ = trainer.collect_rollout(world, range(10)); trainer.update(buffer)
    assert (model.obs_mean[:706] == 0).all() and (model.obs_std[:706] == 1).all()
    assert (model.obs_std[706:] != 1).any()


def test_a_run_with_it_goes_on_bit_for_bit_and_its_policy_can_be_examined(goes_on):
    config = settled(suggested('mech', policy='suite', central_critic=True, worlds=4, updates=4, hidden=16,
                               lstm=16, precision='bfloat16', world_config=MECH,
                               ppo=dict(rollout_steps=8, update_epochs=2, minibatch=80, vtrace=True)))
    path, _ = goes_on(config, updates=2)
    model, about = load_policy(path)
    assert isinstance(model, CombatSuiteActorCritic) and model.team_size == 10 and about['update'] == 2
    result = evaluate(model, 'mech', MECH, 'idle', games=4)
    assert result.episodes == 4 and result.wins + result.draws + result.losses == 4
    foreign = settled(suggested('corridor', policy='suite'))
    with pytest.raises(ValueError, match="policy 'suite'"): Training(foreign)


def test_by_names_and_flat_are_the_same():
    model, flat = lively(), rows(6)
    parts = flat_obs_to_suite_obs(flat)
    assert isinstance(parts, SuiteObservation) and torch.equal(parts.flat(), flat)
    state, first = model.initial_state(6), torch.ones(6)
    action = torch.from_numpy(np.random.default_rng(0).uniform(-.9, .9, (6, 9)).astype('f4'))
    a, b = (model.get_action_and_value(o, state, first, action) for o in (parts, flat))
    assert all(torch.equal(x, y) for x, y in zip(a[1:4], b[1:4]))
    sequence = SuiteObservation(*(x[None] for x in parts))
    c = model.evaluate_actions_sequence(sequence, action[None], first[None], state)
    assert torch.allclose(c[0][0], a[1], atol=1e-6)
