"Easing in: what a world lets be set, the rule that moves between stages, and runs across a change."
import json

import numpy as np
import pytest
import torch

from echelon.training.curriculum import Curriculum, CurriculumConfig, Stage, spells, timeline
from echelon.training.evaluation import evaluate
from echelon.training.metrics import read_rows
from echelon.training.trainer import (TrainConfig, Training, latest, load_checkpoint, run_rank,
                                      save_checkpoint, settle_in, settled, start, stop, suggested, watch)
from echelon.world import WORLDS, Corridor, CorridorConfig, WorldSpec, make

torch.set_num_threads(1)
DUEL = dict(world=dict(size=40, smallest=32, pool=2), pack=(0, 1, 0, 0), max_episode_seconds=2.)
GOES_UP = dict(promote=-1., demote=-2.)     # whatever happens


def three(games=20, **more):
    slips = dict(dry=0., wet=.3, ice=.6)
    stages = [dict(name=name, world=dict(slip=slip)) for name, slip in slips.items()]
    return dict(stages=stages, games=games, **more)


def small(**settings):
    more = dict(worlds=8, updates=8, precision='float32', ranks=1, curriculum=three(**GOES_UP))
    return settled(suggested('corridor', **{**more, **settings}))


def without_time(rows): return [{k: v for k, v in r.items() if k != 'time'} for r in rows]


# the contract

@pytest.mark.parametrize('name, config, change, wrong', [
    ('corridor', {}, dict(slip=.5), [dict(slip=1.), dict(slip=-.1), dict(slip='0'), dict(slip=True),
                                     dict(slip=float('nan')), dict(ice=.1), dict(slip=.2, ice=.1)]),
    ('mech', DUEL, dict(weapon_prob=.25, map_size_range=(32, 36)),
     [dict(weapon_prob=2.), dict(map_size_range=(32, 50)), dict(weapon_prob=.5, map_size_range=(36, 32)),
      dict(packs_per_team_range=(1, 2), weapon_prob=.5), dict(difficulty=2)])])
def test_what_a_world_lets_be_set(name, config, change, wrong):
    world = make(name, worlds=3, seed=1, **config)
    known, state, playing = world.get_curriculum(), world.digest(), world.digest(playing=True)
    for settings in (*wrong, known, {}, dict.fromkeys(known)):
        if settings in wrong:
            with pytest.raises(ValueError) as error: world.set_curriculum(**settings)
            assert len(str(error.value).splitlines()) == 1
        else: world.set_curriculum(**settings)
        assert world.get_curriculum() == known and (world.digest() == state).all()
    world.set_curriculum(**change)
    assert world.get_curriculum() == known | change
    assert (world.digest(playing=True) == playing).all() and (world.digest() != state).all()
    other = make(name, worlds=3, seed=9, **config); other.load_state(world.state())
    assert other.get_curriculum() == known | change
    shown = [{k: v for k, v in world.opening(w).items() if k != 'game'} for w in range(3)]
    world.reset(worlds=np.array([True, False, True]))
    now = [{k: v for k, v in world.opening(w).items() if k != 'game'} for w in range(3)]
    assert now[0] != shown[0] and now[1] == shown[1] and now[2] != shown[2]
    json.dumps(now)


def test_a_world_with_nothing_to_set_says_so():
    world = make('gymnasium', worlds=1, env='CartPole-v1')
    assert world.get_curriculum() == {}
    world.set_curriculum()
    with pytest.raises(ValueError, match="'slip' in world 'gymnasium'"): world.set_curriculum(slip=.1)


def test_a_walk_of_a_curriculum_opens_again_alone():
    many = make('corridor', worlds=3, seed=4, slip=.1)
    many.set_curriculum(slip=.5); many.reset(); many.set_curriculum(slip=0.)
    alone = make('corridor', worlds=1, slip=.1); alone.reopen(many.opening(1))
    for world in (many, alone): world.control[:] = 2
    for _ in range(7): many.step(); alone.step()
    assert many.digest([1], playing=True) == alone.digest(playing=True)


# the rule

@pytest.mark.parametrize('wrong, said', [
    (dict(promote=.3, demote=.3), 'demote = 0.3'), (dict(promote=.1), 'demote'), (dict(games=0), 'games'),
    (dict(stages=[dict(name='')]), 'name'), (dict(stages=[dict(name='a', difficulty=1)]), 'difficulty'),
    (dict(stages=[dict(name='a')]*2), 'different names'), (dict(promote=float('nan')), 'promote'),
    (dict(stages=[dict(name='a', opponents=dict(self=-1.))]), 'opponents'), (dict(stage=[]), 'stage')])
def test_a_wrong_curriculum_is_one_line(wrong, said):
    with pytest.raises(ValueError, match=said) as error: TrainConfig(curriculum=wrong)
    assert len(str(error.value).splitlines()) == 1


def test_the_rule_against_a_plain_one():
    rng = np.random.default_rng(0)
    config = CurriculumConfig(**three(games=50, promote=.7, demote=.4))
    rule, stage, seen, way = Curriculum(config), 0, 0, [(0, 'dry')]
    for t in range(500):
        success, games = [None, float(rng.random())][rng.random() < .9], int(rng.integers(0, 30))
        before, seen = stage, seen + games
        if success is not None and seen >= 50:
            if success >= .7 and stage < 2: stage += 1
            elif success <= .4 and stage > 0: stage -= 1
        assert rule.update(success, games) == (stage != before) and rule.stage == stage
        if stage != before: seen = 0; way.append((t + 1, config.stages[stage].name))
        told = json.loads(json.dumps(rule.state())); rule = Curriculum(config); rule.load_state(told)
    assert rule.timeline == way and len(way) > 20


def test_success_may_be_any_number():
    rule = Curriculum(CurriculumConfig(**three(games=1, promote=30., demote=-5.)))
    told = [29., 31., float('nan'), -4., -5., -50.]
    assert [rule.update(s, 1) for s in told] == [False, True, False, False, True, False]
    none = Curriculum(CurriculumConfig())
    assert not none.update(9., 999) and none.now == Stage(name='as made') and none.timeline == []


def test_the_picture_has_a_band_for_each_stage():
    told = [(0, 1.), (1, 3.), (0, -2.)]
    rows = [dict(update=k + 1, stage=s, goals=g) for k, (s, g) in enumerate(told)]
    fig = timeline(rows + [dict(update=4, stage=2)], CurriculumConfig(**three()), 'goals')
    bands = {t.name: t for t in fig.data if t.fill}
    assert list(bands) == ['dry', 'wet', 'ice'] and np.isnan(bands['dry'].x).sum() == 2
    assert np.nanmin(bands['wet'].y) == -2 and np.nanmax(bands['wet'].y) == 3
    assert timeline(rows[:1], CurriculumConfig(), 'luck').data[-1].y.shape == (1,)
    with pytest.raises(ValueError, match='rows = '): timeline([], CurriculumConfig())
    assert spells([2]) == [(2, 0, 1)] and spells([]) == []


# runs

@pytest.mark.parametrize('cut', range(1, 7))
def test_a_run_goes_on_bit_for_bit_across_changes(tmp_path, cut):
    one = Training(small())
    rows = [one.update()[0] for _ in range(cut)]
    path = save_checkpoint(one, tmp_path)
    rows += [one.update()[0] for _ in range(8 - cut)]
    two = Training(small()); load_checkpoint(two, path)
    assert [two.update()[0] for _ in range(8 - cut)] == rows[cut:]
    assert all((a == b).all() for a, b in zip(one.model.parameters(), two.model.parameters()))
    assert one.curriculum.state() == two.curriculum.state()
    assert (one.world.digest() == two.world.digest()).all()
    assert [r['stage'] for r in rows][0] == 0 and rows[-1]['stage'] == 2


@pytest.mark.parametrize('cut', [1, 2, 4])
def test_opponents_of_a_stage_take_their_seats(tmp_path, cut):
    stages = [dict(name='alone', opponents=dict(random=1), world=dict(weapon_prob=0.)),
              dict(name='mirror', opponents={'self': 1., 'recruit': 1.}), dict(name='as asked')]
    config = settled(TrainConfig(
        world='mech', world_config=DUEL, worlds=8, updates=6, ranks=1, precision='float32',
        hidden=16, lstm=16, opponents=dict(heuristic=1.), self_every=2,
        ppo=dict(rollout_steps=16, minibatch=64), curriculum=dict(stages=stages, games=8, **GOES_UP)))
    one = Training(config)
    scripts, seen = one.world.spec.scripts, {}
    for k in range(6):
        control = np.unique(one.world.control[np.arange(8), 1 - one.side]).tolist()
        seen[one.curriculum.stage] = (control, len(one.seats), one.world.get_curriculum()['weapon_prob'])
        assert (one.world.control[np.arange(8), one.side] == 0).all()
        if k == cut: path = save_checkpoint(one, tmp_path)
        metrics = one.update()[0]
    number = lambda name: 1 + scripts.index(name)
    assert seen == {0: ([number('random')], 0, 0.), 1: ([0, number('recruit')], 1, 1.),
                    2: ([number('heuristic')], 0, 1.)}
    two = Training(config); load_checkpoint(two, path)
    for _ in range(6 - cut): again = two.update()[0]
    assert again == metrics and (one.world.digest() == two.world.digest()).all()


def test_what_a_stage_does_not_name_is_as_made():
    stages = [dict(name='as made'), dict(name='ice', world=dict(slip=.6)),
              dict(name='again', world=dict(slip=None))]
    one = Training(small(curriculum=dict(stages=stages, games=1, **GOES_UP), world_config=dict(slip=.2)))
    met = {}
    for _ in range(6): met[one.curriculum.stage] = one.world.get_curriculum()['slip']; one.update()
    assert met == {0: .2, 1: .6, 2: .2} and one.world.opening(0)['slip'] == .2


def test_games_of_an_earlier_stage_do_not_count():
    one = Training(small(curriculum=three(games=1, **GOES_UP)))
    for _ in range(3):
        began, stage = one.world.game.copy(), one.curriculum.stage
        old = one.forgetting.old.copy()
        metrics = one.update()[0]
        ended = one.world.game - began - (old & (one.world.game > began))
        assert metrics['games'] == ended.sum() and metrics['stage'] == stage
    assert stage == 2


def test_the_best_is_the_best_of_the_highest_stage():
    one = Training(small(best_games=10))
    told = [(.5, 9, 0), (.9, 10, 0), (.9, 50, 0), (.2, 9, 1), (.2, 10, 1), (.95, 99, 0), (.3, 10, 1)]
    better = [one.better(dict(win_rate=w, games=n, stage=s)) for w, n, s in told]
    assert better == [False, True, False, False, True, False, True] and one.best == (1, .3)
    assert not one.better(dict(games=0.))


def test_stages_that_a_world_does_not_take_are_refused_before_anything_begins(tmp_path):
    wrong = three(); wrong['stages'][2]['world'] = dict(slip=2.)
    config = suggested('corridor', curriculum=wrong)
    for begin in (lambda: start(config, tmp_path), lambda: Training(settled(config))):
        with pytest.raises(ValueError, match="stage 'ice': slip = 2") as error: begin()
        assert len(str(error.value).splitlines()) == 1 and not list(tmp_path.iterdir())
    unknown = dict(stages=[dict(name='a', opponents=dict(nobody=1.))])
    duel = TrainConfig(world='mech', world_config=DUEL, opponents=dict(recruit=1.), curriculum=unknown)
    with pytest.raises(ValueError, match='nobody'): start(duel, tmp_path)


def test_two_ranks_change_together_and_go_on_after_a_kill(tmp_path):
    def run(name, kill):
        folder = tmp_path/name; folder.mkdir()
        config = small(ranks=2, checkpoint_every=2)
        start(config, folder)
        if kill:
            for row in watch(folder, poll=.02):
                if row['stage'] == 1: break
            stop(folder, now=True)
            start(config, folder)
        list(watch(folder, poll=.05))
        return without_time(read_rows(folder/'metrics.jsonl'))
    rows = run('whole', False)
    assert rows == run('killed', True) and [r['stage'] for r in rows][-1] == 2


# success by other names

class StrollConfig(CorridorConfig): pass


class Stroll(Corridor):
    "A corridor in which nobody wins and steps cost a little; doors opened are counted"
    def __init__(self, *args):
        super().__init__(*args)
        self.spec = WorldSpec(**vars(self.spec) | dict(success='stat/debt'))
        self.stats |= dict(debt=np.zeros(self.spec.num_worlds), doors=np.zeros(self.spec.num_worlds))

    def _advance(self):
        going = ~(self.terminated | self.truncated) | self.autoreset
        super()._advance()
        self.stats['win'][:] = 0
        self.stats['debt'] -= going; self.stats['doors'] += going & self.terminated


@pytest.fixture
def stroll(monkeypatch): monkeypatch.setitem(WORLDS, 'stroll', f'{__name__}:Stroll,StrollConfig')


def strolling(**settings): return small(curriculum={}, **settings).model_copy(update=dict(world='stroll'))


def test_a_world_says_what_success_is(stroll, tmp_path):
    settle_in(strolling(worlds=16, updates=5, best_games=60), tmp_path)
    run_rank(tmp_path)
    rows = read_rows(tmp_path/'metrics.jsonl')
    told = [r['best'] for r in rows if 'best' in r]
    assert told and told == sorted(told) and max(told) < 0 and (tmp_path/'checkpoints'/'best').is_dir()
    assert rows[-1]['win_rate'] == 0 and 'best' not in rows[0] and rows[-1]['stat/debt'] < 0
    json.loads((latest(tmp_path)/'data.json').read_text())


def test_a_success_that_is_no_rate_is_one_line(stroll):
    one = Training(strolling(worlds=4))
    one.world.spec = WorldSpec(**vars(one.world.spec) | dict(success='stat/luck'))
    with pytest.raises(ValueError, match="success = 'stat/luck'") as error:
        one.better(dict(games=3., win_rate=.5))
    assert len(str(error.value).splitlines()) == 1


def test_an_examination_tells_what_else_was_counted(stroll):
    seen = evaluate('solver', 'stroll', games=20, worlds=8)
    assert seen.stats == dict(debt=-seen.mean_episode_length, doors=1.) and seen.wins == 0
    assert evaluate('solver', 'corridor', games=4).stats == {}
