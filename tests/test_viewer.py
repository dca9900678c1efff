"What guards the viewer: it packs what happened, pages are small and always the same, names are harmless"
import gzip
import json
from base64 import b64decode

import numpy as np
import pytest

from echelon.draw import COLOURS, TEAM, faces
from echelon.sim.mech import KINDS
from echelon.training.evaluation import evaluate_vs_heuristic
from echelon.view.picture import (beside, caption, extent, hues, landscape, lit, rgb, still, stills, tops,
                                  write_film)
from echelon.view.replay import record, verify
from echelon.view.viewer import EVENTS, MARKED, SMOOTH, Show, battle, compare, crumbled, export
from echelon.world import make


def fight(seed=3, blue='heuristic', red='recruit', **config):
    world = make('mech', worlds=1, seed=seed, autoreset=False, **dict(world=dict(size=40, pool=1)) | config)
    scripts = [1 + world.spec.scripts.index(name) for name in (blue, red)]
    world.control[:] = [scripts[team] for team in world.spec.team]
    return record(world)


@pytest.fixture(scope='module')
def replay(): return fight(observation_mode='partial')


def errands(robots=10, script='seeker', seconds=10., **config):
    "Robots of the swarm that look for their goals"
    world = make('swarm', worlds=1, seed=4, autoreset=False, robots=robots, max_episode_seconds=seconds,
                 **config)
    world.control[:] = 1 + world.spec.scripts.index(script)
    return record(world)


@pytest.fixture(scope='module')
def swarm(): return errands(walls=((.5, 0, .5, .3),))


@pytest.fixture(scope='module')
def walk():
    world = make('corridor', worlds=1, seed=3, autoreset=False, agents=3)
    world.control[:] = 1 + world.spec.scripts.index('solver')
    return record(world)


def unpacked(text):
    "What the page's `unpack` gives: the head, and the arrays by name"
    raw = gzip.decompress(b64decode(text))
    length = int(np.frombuffer(raw, np.uint32, 1)[0])
    head = json.loads(raw[4:4 + length])
    arrays = {}
    for name, kind, shape, offset, differences in head['arrays']:
        a = np.frombuffer(raw, kind, int(np.prod(shape)), 4 + length + offset)
        if differences:                                                      # one row after the other
            a = np.moveaxis(np.cumsum(a.reshape(*shape[1:], shape[0]), -1, dtype=a.dtype), -1, 0)
        arrays[name] = a.reshape(shape)
        assert differences == (name in SMOOTH)
    return head, arrays


@pytest.fixture(scope='module')
def page(replay): return unpacked(battle(replay))


def test_what_is_packed_is_what_happened(replay, page):
    head, a = page
    frames = [replay.frame(t) for t in range(len(replay))]
    assert head['frames'] == len(frames) > 40 and head['seconds'] == pytest.approx(replay.seconds[-1])
    for t, f in enumerate(frames):
        assert abs(a['pos'][t]/head['unit'] - f['pos']).max() <= .0101 + 1/256
        assert abs(a['nose'][t]/127 - f['heading']).max() < .01 and abs(a['hp'][t]/250 - f['hp']).max() < .01
        for bit, name in enumerate(('alive', 'fallen', 'shutdown')):
            assert ((a['flags'][t] >> bit & 1) == f[name]).all()
        known = sum(byte.astype(np.uint64) << np.uint64(8*k) for k, byte in enumerate(a['known'][t].T))
        assert (known == f['known']).all()
        for name in ('shots', 'smoke', 'events'):
            first, last = a[f'{name}_starts'][t:t + 2]
            assert last - first == len(f[name])
    fired = np.concatenate([f['shots'] for f in frames])
    assert len(fired) > 20 and abs(a['shots'][:, :6]/head['unit'] - fired).max() < .02
    assert (a['shots'][:, 6] == np.concatenate([f['shot_team'] for f in frames])).all()


def test_events_have_the_names_of_the_world(): assert EVENTS == KINDS


def test_marks_and_curves_tell_the_battle(replay, page):
    head, a = page
    alive = a['flags'] & 1
    kills = [m for m in head['marks'] if m[2] == 'kill']
    assert len(kills) == (alive[0] - alive[-1]).sum() > 0
    told = ' '.join(m[3] for m in kills)
    assert all(head['names'][i] in told for i in np.flatnonzero(alive[0] > alive[-1]))
    last = [s['y'][-1] for s in head['curves']['score']['series']]
    assert last == pytest.approx(a['score'][-1].tolist(), abs=.01)
    assert set(head['curves']) == {'score', 'hit points', 'alive', 'reward of Blue', 'reward of Red'}


def test_voxels_that_fall_are_apart_from_the_land(replay, page):
    "The land without them and the cubes of any moment make the landscape of that moment"
    head, a = page
    now, land = replay.terrain.copy(), replay.terrain
    assert len(head['breakable']) > 0
    assert all(land[x, y, z] == was for x, y, z, was in head['breakable'])
    frames = [replay.frame(t) for t in range(len(replay))]
    for rows in crumbled(frames, land):
        for x, y, z, what in rows: now[x, y, z] = what
    changed = {tuple(v) for v in np.argwhere(now != land).tolist()}
    assert changed <= {tuple(v[:3]) for v in head['breakable']} and len(changed) > 0
    assert a['ruins_starts'][-1] == len(a['ruins']) >= len(changed)


def test_pages_are_small_and_always_the_same(replay):
    text = Show([replay]).html()
    assert text == Show([replay]).html() and len(text) < 400_000
    bundle = replay.show()._repr_mimebundle_()
    assert set(bundle) == {'text/html', 'text/plain'}
    assert 'Blue (heuristic) against Red (recruit)' in bundle['text/plain']
    assert 'widget' not in bundle['text/html']


def test_an_examination_hands_over_its_first_game():
    config = dict(world=dict(size=40, pool=1), pack=(0, 2, 0, 0), max_episode_seconds=10.)
    result, game = evaluate_vs_heuristic('random', config, episodes=2, seeds=3, save_replay=True)
    assert result.episodes == 2 and game.header['players'] == ['random', 'heuristic'] and verify(game).ok
    assert evaluate_vs_heuristic('random', config, episodes=2, seeds=3)[1] is None


def test_names_are_harmless(walk):
    "What a stranger's file calls its players ends up as words, never as markup"
    evil = '</script><img src=x onerror=alert(1)>'
    was = walk.header['players']
    walk.header['players'] = [evil]
    try: page = Show([walk]).html()
    finally: walk.header['players'] = was
    assert evil not in page and '<img' not in page and '&lt;img' in page


def test_a_flat_world_has_no_space(walk):
    head, a = unpacked(battle(walk))
    assert head['solid'] is None and head['picture'] is None and head['sides'][0].startswith('Everybody')
    assert a['pos'].shape == (len(walk), 3, 3) and (a['pos'][..., 2] == 0).all()
    left, low, right, high = head['box']
    assert left < 0 < right and right - left <= 2.5*(high - low) + 1e-6


def test_what_robots_do_is_packed(swarm):
    "Places to a tenth of a unit, goals of the frame itself, and what was reached and bumped into so far"
    head, a = unpacked(battle(swarm))
    frames = [swarm.frame(t) for t in range(len(swarm))]
    goals, contacts = (np.stack([f[name] for f in frames]) for name in ('goals', 'contacts'))
    for t, f in enumerate(frames):
        assert abs(a['pos'][t, :, :2]/head['unit'] - f['pos']).max() <= .06
        assert abs(a['goal'][t]/head['unit'] - f['goal']).max() <= .06
        assert abs(a['nose'][t]/127 - f['heading']).max() < .01
    assert (a['goals'] == goals).all() and (a['bumps'] == contacts.cumsum(0)).all()
    assert goals[-1].sum() > 10 and contacts.sum() > 0
    assert head['arena'] == pytest.approx(frames[0]['arena'].tolist()) and head['radius'] == 15
    assert head['walls'] == [pytest.approx(frames[0]['walls'][0].tolist())]
    assert head['round'] and head['half'] == [10.]*20 and head['hues'] == hues(frames[0])
    assert len(set(head['hues'])) == len(COLOURS) and not head['many']


def test_what_a_swarm_lacks_is_neither_sent_nor_offered(swarm):
    head, a = unpacked(battle(swarm))
    assert not {'hp', 'heat', 'reach', 'known'} & set(a)
    assert not any(head[k] for k in ('fogged', 'gauges', 'scored', 'mortal', 'zone', 'solid', 'picture'))
    assert list(head['curves']) == ['goals', 'contacts', 'reward of Everybody']
    lines = head['curves']['goals']['series']
    assert [line['name'] for line in lines] == head['names']
    assert [line['y'][-1] for line in lines] == a['goals'][-1].tolist()
    assert [line['colour'] for line in lines] == head['hues']


def test_goals_are_marked_while_they_are_few(swarm):
    reached = [e for e in swarm.events() if e[1] == 'goal']
    assert len(reached) == swarm.frames['goals'][-1].sum() <= MARKED
    marks = unpacked(battle(swarm))[0]['marks']
    assert [m[0] for m in marks] == [float(swarm.seconds[t]) for t, *_ in reached]
    assert [m[1] for m in marks] == [hues(swarm.frame(0))[i] for *_, i in reached]
    assert all(f'robot_{i} ' in m[3] for (*_, i), m in zip(reached, marks))
    busy = errands(20, seconds=20., arena=(600, 500))
    assert len(busy.events()) > MARKED and not unpacked(battle(busy))[0]['marks']


def test_a_crowd_is_packed_without_anybodys_colour():
    "More rows than a frame's bits of who knows whom; one line of curves on average"
    crowd = errands(100, seconds=5., arena=(800, 600))
    head, a = unpacked(battle(crowd))
    assert head['many'] and set(head['hues']) == {TEAM[0]} and a['pos'].shape == (101, 100, 3)
    line, = head['curves']['contacts']['series']
    assert line['y'][-1] == pytest.approx(a['bumps'][-1].mean(), abs=1e-3)


def test_a_minute_of_robots_is_small():
    assert len(Show([errands(seconds=60.)]).html()) < 250_000
    assert len(battle(errands(100, seconds=20., arena=(800, 600), walls=((.5, 0, .5, .6),)))) < 200_000


def test_a_film_of_robots(swarm, tmp_path):
    from PIL import Image
    with Image.open(export(swarm, tmp_path/'swarm.gif')) as gif: assert gif.n_frames == len(swarm)


def test_battles_side_by_side(replay, walk):
    both = compare([replay, walk])
    assert len(both.battles) == 2 and both.words.count(';') == 1


def test_a_page_from_a_file_needs_no_network(walk, tmp_path):
    text = export(walk, tmp_path/'walk.html').read_text()
    assert text.startswith('<!doctype html>') and len(text) > 3_000_000
    assert [p.name for p in tmp_path.iterdir()] == ['walk.html']


@pytest.mark.parametrize('wrong,line', [
    (lambda r, d: export(r, d/'walk.avi'), "expected a name that ends with one of"),
    (lambda r, d: export(r, d/'nowhere'/'walk.gif'), 'expected it to exist'),
    (lambda r, d: compare([]), 'expected at least one'),
    (lambda r, d: r.show(speed=0), 'expected 0.5, 1, 2, 4 or 8')])
def test_wrong_wishes_are_one_line(walk, tmp_path, wrong, line):
    with pytest.raises(ValueError, match=line) as error: wrong(walk, tmp_path)
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_films(walk, tmp_path):
    from PIL import Image
    with Image.open(export(walk, tmp_path/'walk.gif')) as gif: assert gif.n_frames == len(walk)
    assert export(walk, tmp_path/'walk.mp4').read_bytes()[4:8] == b'ftyp'


def test_shadows_fall_to_the_lower_right():
    high = np.zeros((9, 9), int)
    high[4, 4] = 4
    light = lit(high, 1)
    assert light[4, 4] == np.float32(.64)                                    # its own edge
    assert (light[[5, 6], [3, 2]] < 1).all() and (light[[3, 5], [5, 5]] == 1).all()


def test_sheets_have_no_height():
    land = np.zeros((2, 2, 5), np.uint8)
    land[0, 0, 0], land[1, 1, :3] = 3, 1                                     # water; rock
    high, top = tops(land)
    assert high.tolist() == [[0, 0], [0, 3]] and top.tolist() == [[3, 0], [0, 1]]


def test_a_still_shows_everybody(replay):
    frame, land = replay.frame(0), replay.terrain
    empty, full = landscape(land, 8), still(frame, land, 8)
    box = extent([frame], land)
    changed = (np.asarray(full)[22:] != np.asarray(empty)).any(-1)
    for x, y, *_ in frame['pos']: assert changed[int((box[3] - y)*8), int((x - box[0])*8)]


def robots(n, **more):
    "A frame of `n` robots in a row, each with a goal above it"
    x = np.linspace(50, 350, n, dtype=np.float32)
    row = lambda y: np.stack([x, np.full(n, y, np.float32)], 1)
    return dict(tick=0, arena=np.float32([0, 0, 400, 200]), walls=np.float32([[0, 20, 400, 20]]), pos=row(60),
                goal=row(150), goal_radius=np.float32(12), half=np.full((n, 2), 8, np.float32), **more)


def colour_at(frame, x, y):
    "What a still of two pixels a unit shows at a place"
    box = extent([frame])
    pixels = np.asarray(still(frame, scale=2), int)[22:]
    return pixels[round((box[3] - y)*2), round((x - box[0])*2)]


def test_robots_and_goals_have_a_colour_of_their_own():
    frame, near = robots(4), lambda a, b: abs(a - rgb(b)).max() < 12
    left, low, right, high = extent([frame])
    assert left < 0 and low < 0 and right > 400 and high > 200 and right - left < 440
    for (x, y), (u, v), colour in zip(frame['pos'], frame['goal'], COLOURS):
        assert near(colour_at(frame, x - 4, y), colour) and near(colour_at(frame, u, v + 11.5), colour)
        line, inside, beside_it = (colour_at(frame, *p) for p in ((x, 100), (u, v), (x + 5, 100)))
        assert 0 < line.min() < 255 and (beside_it == 255).all() and inside.min() < 255
    assert colour_at(frame, 200, 20).max() < 90, 'the wall'
    off = frame | dict(alive=np.array([False, True, True, True]))
    assert (colour_at(off, *frame['goal'][0]) == 255).all() and colour_at(off, *frame['goal'][1]).min() < 255


def test_nobody_in_a_crowd_has_a_colour():
    assert hues(robots(20)) == [COLOURS[i % len(COLOURS)] for i in range(20)]
    assert set(hues(robots(21))) == {TEAM[0]}
    assert hues(robots(3, team=np.array([0, 1, 1]))) == [TEAM[0], TEAM[1], TEAM[1]]
    crowd = robots(21)
    assert (colour_at(crowd, crowd['pos'][0, 0], 100) == 255).all() and colour_at(crowd, 50, 150).min() < 255
    big = robots(1000) | dict(arena=np.float32([0, 0, 4000, 2000]))
    assert len(list(stills([big]*2))) == 2 and max(still(big).size) < 500


def test_a_caption_counts_only_who_can_die():
    frame = robots(2)
    assert caption(frame, 3.) == '3.0 s' and caption(frame) == ''
    assert caption(frame | dict(alive=np.array([True, False])), 3.) == '3.0 s    Everybody: 1 alive'
    sides = dict(team=np.array([0, 1]), alive=np.ones(2, bool), score=np.array([3., 0.]))
    assert caption(frame | sides) == 'Blue: 3 points, 1 alive    Red: 0 points, 1 alive'


def test_films_side_by_side(tmp_path):
    from PIL import Image
    long, short = ([Image.new('RGB', size, (k, 0, 0)) for k in range(n)]
                   for size, n in (((40, 30), 5), ((60, 60), 2)))
    for left, right, at in ((long, short, 60), (short, long, 10)):
        pair = list(beside(left, right, ('early', 'late')))
        assert len(pair) == 5 and {p.size for p in pair} == {(40 + 10 + 30, 30 + 26)}
        assert [p.getpixel((at, 50))[0] for p in pair] == [0, 1, 1, 1, 1], 'the shorter one holds'
    for wrong in (([], long), (long, iter(()))):
        with pytest.raises(ValueError, match='0 pictures'): list(beside(*wrong))
    with Image.open(write_film(tmp_path/'both.gif', beside(long, short))) as gif: assert gif.n_frames == 5


def test_faces_cover_what_is_seen():
    a = (np.random.default_rng(1).random((7, 6, 5)) < .4).astype(np.uint8)*3
    quads, codes = faces(a)
    area = np.linalg.norm(np.cross(quads[:, 1] - quads[:, 0], quads[:, 3] - quads[:, 0]), axis=1).sum()
    full = np.pad(a > 0, 1)
    seen = sum(np.abs(np.diff(full.astype(int), axis=k)).sum() for k in range(3)) - (a[..., 0] > 0).sum()
    assert np.isclose(area, seen) and (codes == 3).all()
