"The known tasks are learned: the settings and the toy are those of the page, with one seed."
import json
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
PAGE = Path(__file__).resolve().parent.parent/'nbs'/'known_tasks.ipynb'
HEADS = ('import ', 'from ', 'class ', 'def ', 'TASKS', 'MUTE', 'sys.modules')


@pytest.fixture(scope='module')
def page():
    "The definitions of the page: the heads of its cells, up to what they show"
    names = {}
    for cell in json.loads(PAGE.read_text())['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and text.startswith(HEADS):
            exec(text.partition('\ntraining = ')[0].partition('\ntable(')[0], names)
    return names


def test_the_cart_is_balanced(page):
    _, model = page['learned']('cart', 1)
    assert page['examined'](model, 'cart') >= 475


@pytest.mark.deep
def test_the_pole_is_balanced_from_memory_alone(page):
    curve, model = page['learned']('blind', 1)
    assert page['examined'](model, 'blind') >= 450 and max(curve[:5]) < 60


@pytest.mark.deep
def test_without_memory_the_pole_falls(page):
    page['TASKS']['brief'] = page['TASKS']['blind'] | dict(steps=65_536)
    assert page['examined'](page['learned']('brief', 1, page['Forgetful'])[1], 'brief') < 150


@pytest.mark.deep
def test_the_pendulum_is_held_up(page):
    assert page['examined'](page['learned']('pendulum', 1)[1], 'pendulum') >= -250


def test_the_toy_is_won(page):
    training = page['cues']()
    rows, _ = page['trained'](training)
    assert rows[0]['win_rate'] < .6 and rows[-1]['win_rate'] > .9 and rows[0]['valid_share'] < .9
    won = page['evaluate'](training.model, 'cues', opponent='random', games=200, seed=3)
    assert won.low > .9


def test_the_dead_change_nothing_but_the_critic(page):
    found = list(page['comparisons'](updates=2))
    assert len(found) == 6 and [may for _, may, _ in found].count(False) == 2
    for what, may, equal in found: assert equal != may, what


def test_there_is_somebody_out_and_the_noises_are_two(page):
    "Each noise changes what it says it changes, and nothing of the game"
    noises = ({}, dict(eyes=5), dict(masks=7))
    worlds = [page['Cues'](16, page['CuesConfig'](**noise), seed=1) for noise in noises]
    for world in worlds: world.reset(); world.control[:] = 1
    for _ in range(6):
        for world in worlds: world.step()
    plain, eyes, masks = worlds
    out = ~plain.alive
    assert out[:, 1::2].mean() > .5 and not out[:, ::2].any()
    for world in (eyes, masks):
        assert (world.alive == plain.alive).all() and (world.reward == plain.reward).all()
    assert (eyes.obs[out] != plain.obs[out]).all() and (eyes.obs[~out] == plain.obs[~out]).all()
    assert (eyes.action_mask == plain.action_mask).all() and (masks.obs == plain.obs).all()
    differ = masks.action_mask != plain.action_mask
    assert .3 < differ[out].mean() < .7 and not differ[~out].any()
