"Examinations: fair, repeatable, the same however they are spread over worlds and threads."
import numpy as np
import pytest
import torch

from echelon.rl.distributions import ActionDistribution, layout_of
from echelon.training import evaluation
from echelon.training.evaluation import (ROWS, Game, Table, battle, drawn, evaluate, examined, standings,
                                         stats_of, toss, wilson)
from echelon.training.spatial import SpatialAccumulator
from echelon.training.trainer import built, described, suggested
from echelon.world import Block, make

SMALL = dict(world=dict(size=40, pool=2), pack=(1, 2, 0, 0), max_episode_seconds=20.,
             observation_mode='partial')


def policy(name, kind='plain', **config):
    "A network whose head is loud enough for its actions to depend on what it sees"
    spec = make(name, worlds=1, **config).spec
    torch.manual_seed(5)
    model = built(described(suggested(name, policy=kind, hidden=32, lstm=32), spec, 0)).requires_grad_(False)
    for p in model.actor_mean.parameters(): p += .3*torch.randn_like(p)
    return model


@pytest.fixture(scope='module')
def suite(): return policy('mech', 'suite', **SMALL)


# -- intervals

def test_wilson_by_hand():
    "With all won, the interval is (n/(n + z²), 1); with half won, it is even around one half"
    z = 1.96
    assert np.allclose(wilson(10, 10), (10/(10 + z*z), 1)) and np.allclose(wilson(0, 10), (0, z*z/(10 + z*z)))
    half = z*np.sqrt(.25/8 + z*z/4/64)/(1 + z*z/8)
    assert np.allclose(wilson(4, 8), (.5 - half, .5 + half)) and wilson(0, 0) == (0, 1)
    assert all(0 <= low <= k/7 <= high <= 1 for k in range(8) for low, high in [wilson(k, 7)])


def ended(number, side, won, lost=False, **more):
    return Game(number, side, won, lost, 10, 0., 0., 0., more)


def test_each_side_has_its_own_interval():
    games = [ended(k, k % 2, won) for k, won in enumerate([1, 0, 1, 1, 1, 0, 0, 0])]
    stats = stats_of(games)
    assert (stats.win_rate, stats.win_rate_blue, stats.win_rate_red) == (.5, .75, .25)
    assert (stats.low, stats.high) == wilson(4, 8)
    assert (stats.low_blue, stats.high_blue) == wilson(3, 4)
    assert (stats.low_red, stats.high_red) == wilson(1, 4)


def test_a_side_that_was_not_played_has_neither_rate_nor_interval():
    stats = stats_of([ended(0, 0, True)])
    assert stats.win_rate_blue == 1 and (stats.low_blue, stats.high_blue) == wilson(1, 1)
    assert np.isnan([stats.win_rate_red, stats.low_red, stats.high_red]).all()
    assert stats == stats_of([ended(0, 0, True)])        # results can be compared all the same


# -- the same games

def told(games): return [g._replace(heat=None) for g in games]


@pytest.mark.parametrize('opponent', ['heuristic', 'random'])
def test_a_game_is_the_same_alone_and_among_others(suite, opponent):
    "However many are played side by side, on however many threads, in whatever order, and alone"
    ask = lambda numbers, **how: examined((suite, opponent), 'mech', SMALL, numbers, seed=3, **how)
    games = ask(range(12), worlds=12, threads=1)
    assert [g.number for g in games] == list(range(12)) and len({g.length for g in games}) > 3
    assert ask(range(12), worlds=5, threads=2) == games
    assert ask(range(12), worlds=2, threads=1) == games
    assert ask([9, 2, 7], worlds=3) == [games[k] for k in (2, 7, 9)]
    assert ask([11]) == [games[11]]


def test_the_threads_of_the_caller_change_nothing(suite):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = evaluate(suite, 'mech', SMALL, 'heuristic', games=4)
        assert torch.get_num_threads() == 2                        # and they are put back
        torch.set_num_threads(1)
        assert evaluate(suite, 'mech', SMALL, 'heuristic', games=4) == two
    finally: torch.set_num_threads(before)


def test_chance_of_the_caller_is_neither_used_nor_spent(suite):
    torch.manual_seed(1); np.random.seed(1)      # noqa: NPY002
    here = torch.get_rng_state()
    first = evaluate(suite, 'mech', SMALL, suite, games=4, worlds=4)
    assert (torch.get_rng_state() == here).all()
    torch.manual_seed(2)
    assert evaluate(suite, 'mech', SMALL, suite, games=4, worlds=4) == first
    assert evaluate(suite, 'mech', SMALL, suite, games=4, worlds=4, seed=1) != first


def test_the_replay_is_the_first_game(suite):
    game, [first] = battle(suite, 'mech', SMALL, 'heuristic', seed=3), examined(
        (suite, 'heuristic'), 'mech', SMALL, [0], seed=3)
    end = game.header['outcome']
    assert end['decisions'] == first.length and game.header['players'] == ['policy', 'heuristic']
    assert (end['winner'] == 0) == first.won and (end['winner'] == 1) == first.lost


def test_greedy_play_throws_no_dice(suite, monkeypatch):
    monkeypatch.setattr(evaluation, 'drawn', None)
    one, two = (evaluate(suite, 'mech', SMALL, 'idle', games=4, greedy=True, worlds=n) for n in (1, 4))
    assert one == two


# -- two sides

def test_a_pair_of_games_is_one_map_from_two_sides(suite):
    table = Table((suite, 'heuristic'), make('mech', worlds=4, autoreset=False, **SMALL), seed=3)
    table.deal({0: 6, 1: 7, 2: 8, 3: 9})
    seeds, control = [table.world.opening(w)['seed'] for w in range(4)], table.world.control
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    heuristic, n = 1 + table.world.spec.scripts.index('heuristic'), control.shape[1]//2
    for w in range(4):
        own = slice(n) if w % 2 == 0 else slice(n, None)
        assert table.own[w, own].all() and table.own[w].sum() == n
        assert (control[w, own] == 0).all() and (control[w][~table.own[w]] == heuristic).all()


def test_a_world_changes_sides_from_game_to_game():
    "One world plays all games, in turn from left and right"
    one, many = (evaluate('heuristic', 'mech', SMALL, 'idle', games=8, worlds=n) for n in (1, 8))
    assert one == many and one.win_rate_blue == one.win_rate_red == 1


@pytest.mark.parametrize('script', ['heuristic', 'recruit', 'random'])
def test_a_script_against_itself_is_even(script):
    games = examined((script, script), 'mech', SMALL, range(12))
    for left, right in zip(games[::2], games[1::2]):
        assert (left.won, left.lost, left.length) == (right.lost, right.won, right.length)
        assert abs(left.margin + right.margin) < 1e-5
    stats = stats_of(games)
    assert stats.wins == stats.losses and abs(stats.mean_hp_margin) < 1e-5


def test_who_beats_somebody_does_so_from_both_sides():
    better, worse = (evaluate(one, 'mech', SMALL, other, games=12) for one, other in
                     (('heuristic', 'idle'), ('idle', 'heuristic')))
    assert better.win_rate_blue == better.win_rate_red == 1 and worse.losses == 12
    assert better.mean_hp_margin == pytest.approx(-worse.mean_hp_margin) and better.mean_hp_margin > 0


# -- who is asked

def test_only_the_living_of_games_that_go_on_are_asked(suite, monkeypatch):
    asked = []
    def ask(seat, rows, u):
        flat = rows.numpy()
        w, i = np.divmod(flat, seat.world.spec.num_agents)
        assert seat.world.alive[w, i].all() and len(u) == len(rows) <= ROWS
        assert not (seat.world.terminated | seat.world.truncated)[w].any()
        asked.append(len(flat))
        return plain(seat, rows, u)
    plain = evaluation.ask
    monkeypatch.setattr(evaluation, 'ask', ask)
    stats = evaluate(suite, 'mech', SMALL, 'heuristic', games=6, worlds=4)
    assert 0 < sum(asked) < stats.mean_episode_length*6*3


def test_blocks_are_filled_up_to_one_size(suite, monkeypatch):
    sizes, step = [], type(suite).step
    def counted(self, obs, state, done): sizes.append(len(obs)); return step(self, obs, state, done)
    monkeypatch.setattr(evaluation, 'ROWS', 16)
    monkeypatch.setattr(type(suite), 'step', counted)
    many, one = (evaluate(suite, 'mech', SMALL, 'heuristic', games=8, worlds=n) for n in (8, 1))
    assert many == one and set(sizes) == {16}


# -- dice

def test_dice_depend_on_game_seat_decision_row_and_column_alone():
    def lot(key=3, when=4, who=5):
        toss(out := np.zeros((2, 7), np.float32), np.array([9, key], np.uint64), np.array([1, when]),
             np.array([1, who]))
        return out[1].tolist()
    assert lot() == lot() and len(set(lot())) == 7 and 0 <= min(lot()) < max(lot()) < 1
    assert not set(lot()) & (set(lot(key=4)) | set(lot(when=5)) | set(lot(who=6)))


@pytest.mark.parametrize('edge', [0., 2.**-24, .5, 1 - 2.**-24])
def test_actions_drawn_with_any_number_are_actions(edge):
    blocks = (Block('move', 'continuous', 0), Block('fire', 'trigger', 1, 2),
              Block('go', 'categorical', 3, choices=3))
    allowed = torch.tensor([[True, False, False, True, False], [False]*5])
    d = ActionDistribution(layout_of(blocks, 4), torch.zeros(2, 6), torch.zeros(1), allowed)
    action = drawn(d, torch.full((2, 6), edge))
    assert (action[:, :3].abs() <= 1).all() and torch.isfinite(d.logprob(action)).all()
    assert action[:, 2].tolist() == [-1, -1] and action[1, 1] == -1 and action[:, 3].tolist() == [1, 0]


def test_drawn_actions_are_as_likely_as_the_policy_says():
    "The mean of −log p is the entropy, and each choice comes as often as its probability"
    n, blocks = 40_000, (Block('fire', 'trigger', 0, 2), Block('go', 'categorical', 2, choices=4))
    u = np.zeros((n, 6), np.float32)
    toss(u, np.arange(n).astype(np.uint64), np.zeros(n, int), np.zeros(n, int))
    params = torch.tensor([.7, -1.2, 0., 1., 2., -1.]).expand(n, 6)
    d = ActionDistribution(layout_of(blocks, 3), params, torch.zeros(0))
    action = drawn(d, torch.from_numpy(u))
    assert abs(-d.logprob(action).mean() - d.entropy()[0]) < .01
    share = torch.bincount(action[:, 2].long(), minlength=4)/n
    assert torch.allclose(share, torch.softmax(params[0, 2:], 0), atol=.01)


# -- where it happens

def test_heat_is_of_one_map_in_eight_and_the_same_however_games_are_spread():
    def seen(**how):
        heat = SpatialAccumulator(8)
        return evaluate('heuristic', 'mech', SMALL, 'recruit', games=20, heat=heat, **how), heat
    (stats, one), (again, two) = seen(worlds=20, threads=1), seen(worlds=3, threads=2)
    assert stats == again == evaluate('heuristic', 'mech', SMALL, 'recruit', games=20) and one.size == 40
    assert all((a == b).all() and a.any() for a, b in zip(one.counts.values(), two.counts.values()))
    watched = examined(('heuristic', 'recruit'), 'mech', SMALL, range(20), heat=SpatialAccumulator(8))
    assert [g.number for g in watched if g.heat] == [0, 1, 16, 17]


def test_heat_shows_the_examined_side_on_the_left():
    "Who idles stays at home: on the left, from whichever side it plays"
    for number in (0, 1):
        [game] = examined(('idle', 'idle'), 'mech', SMALL, [number], heat=SpatialAccumulator(2))
        spread = game.heat.movement_density
        assert spread[0].sum() == spread[1].sum() == 3*game.length
    for number in (0, 1):
        [game] = examined(('heuristic', 'idle'), 'mech', SMALL, [number], heat=SpatialAccumulator(2))
        left, right = game.heat.movement_density.sum(1)
        assert game.side == number and right > left


# -- tables and mistakes

def test_standings_have_a_row_for_everybody(suite):
    rows = standings(suite, 'mech', SMALL, games=2)
    names = [row['opponent'] for row in rows]
    assert sorted(names) == sorted({*make('mech', worlds=1, **SMALL).spec.scripts, 'random'})
    assert 'blind' in names and list(rows[0]) == [
        'opponent', 'games', 'won', '95 % interval', 'drawn', 'as blue', 'as red', 'kills a game',
        'hit points ahead', 'seconds a game']
    [row] = standings('heuristic', 'mech', SMALL, ['idle'], games=4)
    assert row['won'] == '100.0%' and row['as red'].startswith('100% (')


def test_standings_of_a_world_without_sides():
    [row] = standings('solver', 'corridor', games=8)
    assert row['won'] == '100.0%' and not {'as blue', 'as red', 'kills a game', 'hit points ahead'} & set(row)


@pytest.mark.parametrize('wrong, said', [
    (dict(model='nobody'), "player 'nobody'"), (dict(opponent='nobody'), "player 'nobody'"),
    (dict(games=0), 'games = 0'), (dict(worlds=0), 'worlds = 0'), (dict(limit=5), 'game of 5 decisions'),
    (dict(limit=5, threads=2), 'game of 5 decisions')])
def test_what_cannot_be_examined_is_refused_by_name(wrong, said):
    given = dict(model='heuristic', world_name='mech', config=SMALL, opponent='idle', games=4) | wrong
    with pytest.raises(ValueError, match=said): evaluate(**given)


def test_a_policy_of_another_world_is_refused(suite):
    with pytest.raises(ValueError, match='policy of 948 observations and 9 actions: expected 3 and 1'):
        evaluate(suite, 'corridor', games=2)
