"The picture of a battle: what it holds, how large it is, and that a browser plays it"
import json
import shutil
from base64 import b64decode
from pathlib import Path

import numpy as np
import plotly
import pytest

from echelon.draw import House, faces, page
from echelon.view.viewer import battle, key_frames, top

HALF = np.array([[.6, 1.8], [.75, 2.], [1.25, 3.], [1.75, 4.]], np.float32)


def landscape(size, rng):
    "Forty boxes on the left half, and their mirror image"
    terrain = np.zeros((size, size, 20), np.uint8)
    for _ in range(40):
        (x, y), (w, d, h) = rng.integers(0, size//2 - 10, 2)*[1, 2], rng.integers(2, 9, 3)
        terrain[x:x + w, y:y + d, :h] = rng.choice([1, 8, 9])
    terrain[size//2:] = terrain[:size//2][::-1]
    return terrain


def pretend(count=480, size=100, team_size=10, seed=0):
    "Frames as a mech world gives them, and a landscape; who shoots whom is invented"
    rng = np.random.default_rng(seed)
    terrain = landscape(size, rng)
    n, team = 2*team_size, np.repeat([0, 1], team_size)
    kind, angle, hp = rng.integers(0, 4, n), rng.uniform(-np.pi, np.pi, n), np.ones(n, np.float32)
    pos = np.stack([np.where(team == 0, -.4, .4)*size, rng.uniform(-.3, .3, n)*size, 0*team], 1)
    pos = pos.astype(np.float32)
    frames = []
    for t in range(count):
        angle = angle + rng.normal(0, .1, n)
        pos[:, 0] += np.where(hp > 0, np.where(team == 0, .1, -.1), 0)
        shooter, victim = rng.integers(0, n, (2, rng.integers(0, 6)))
        hp[victim] = np.maximum(0, hp[victim] - .02)
        shots = np.concatenate([pos[shooter] + [0, 0, 2], pos[victim] + [0, 0, 1]], 1).astype(np.float32)
        frames.append(dict(
            tick=np.array([5*t]), pos=pos.copy(), heading=np.stack([np.cos(angle), np.sin(angle)], 1),
            half=HALF[kind], team=team, kind=kind, alive=hp > 0, hp=hp.copy(), heat=0*hp,
            fallen=rng.random(n) < .03, shutdown=rng.random(n) < .03,
            shots=shots, shot_team=team[shooter], smoke=np.zeros((t % 3, 3), np.float32),
            shot_kind=np.zeros(len(shooter), np.uint8), control=t//60 % 3 - 1,
            zone=np.array([0, 3, 8], np.float32), score=np.array([t/8, t/16], np.float32)))
    return frames, terrain


@pytest.fixture(scope='module')
def shown():
    frames, terrain = pretend()
    fig = battle(frames, terrain)
    return frames, terrain, fig, House().to_mimebundle(fig.to_dict())


def numbers(a):
    "Length of an array as Plotly stores it"
    return len(a) if isinstance(a, list) else len(np.frombuffer(b64decode(a['bdata']), a['dtype']))


def test_size_and_determinism(shown):
    frames, terrain, fig, bundle = shown
    size = {k: len(json.dumps(v)) for k, v in bundle.items()}
    assert sum(size.values()) < 1_500_000, size
    assert page(battle(frames, terrain)) == bundle['text/html']
    assert 'cdn.plot.ly' in bundle['text/html'] and len(bundle['text/html']) < 500_000


def test_every_frame_has_the_same_parts(shown):
    frames, terrain, fig, bundle = shown
    d = bundle['application/vnd.plotly.v1+json']
    kept = key_frames(frames)
    assert len(d['frames']) == len(kept) <= 200 and len(d['data']) == 8
    first = d['frames'][0]
    for f in d['frames']:
        assert f['traces'] == first['traces'] and 'x' not in f['data'][0]
        for k in (2, 3):  # the mechs of both teams
            assert [numbers(f['data'][k][c]) for c in ('x', 'y', 'z', 'intensity')] == [160, 160, 160, 200]
    assert [s['args'][0] for s in d['layout']['sliders'][0]['steps']] == [[f['name']] for f in d['frames']]
    assert all('Blue' in f['layout']['title']['text'] for f in d['frames'])


def test_no_shot_is_lost(shown):
    frames = shown[0]
    kept = key_frames(frames)
    assert sum(len(f['shots']) for f in kept) == sum(len(f['shots']) for f in frames)
    assert kept[0]['tick'] == frames[0]['tick'] and kept[-1]['tick'] == frames[-1]['tick']
    assert [f['tick'][0] for f in key_frames(frames[:7], 200)] == [0, 5, 10, 15, 20, 25, 30]
    assert len(key_frames(frames[:1])) == 1


def test_rows_that_never_lived_are_hidden():
    frames, terrain = pretend(3, 40, 2)
    for f in frames: f['alive'][3], f['hp'][3] = False, 0
    red = battle(frames, terrain).data[4]
    spread = np.ptp(np.stack([red.x, red.y, red.z], 1)[16:], axis=0)
    assert (spread == 0).all()


def test_faces_cover_what_is_seen():
    a = (np.random.default_rng(1).random((7, 6, 5)) < .4).astype(np.uint8)*3
    quads, codes = faces(a)
    area = np.linalg.norm(np.cross(quads[:, 1] - quads[:, 0], quads[:, 3] - quads[:, 0]), axis=1).sum()
    full = np.pad(a > 0, 1)
    seen = sum(np.abs(np.diff(full.astype(int), axis=k)).sum() for k in range(3)) - (a[..., 0] > 0).sum()
    assert np.isclose(area, seen) and (codes == 3).all()


def test_no_frames_is_one_clear_line():
    with pytest.raises(ValueError, match='no frames, expected at least one'):
        battle([], np.zeros((20, 20, 8), np.uint8))


def test_top_is_small():
    frames, terrain = pretend(40)
    assert len(json.dumps(House().to_mimebundle(top(frames[-1], terrain).to_dict()))) < 80_000


def test_it_plays_in_a_browser(shown, tmp_path):
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not chromium: pytest.skip('no chromium on this machine')
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    plotly_js = (Path(plotly.__file__).parent/'package_data/plotly.min.js').read_text()
    (tmp_path/'battle.html').write_text(f'<meta charset="utf-8">{shown[3]["text/html"]}')
    reply = dict(body=plotly_js, content_type='text/javascript', headers={'Access-Control-Allow-Origin': '*'})
    flags = '--no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist'.split()
    title = "document.querySelector('.js-plotly-plot')._fullLayout.title.text"
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=flags)
        tab = browser.new_page(viewport=dict(width=900, height=700))
        tab.route('https://cdn.plot.ly/**', lambda route: route.fulfill(**reply))
        tab.goto((tmp_path/'battle.html').as_uri())
        tab.wait_for_selector('.updatemenu-button')
        before = tab.evaluate(title)
        tab.get_by_text('Play').first.click()
        tab.wait_for_function(f't => {title} != t', arg=before, timeout=60_000)
        tab.get_by_text('Pause').first.click()
        rail = tab.locator('.slider-rail-touch-rect').bounding_box()
        tab.mouse.click(rail['x'] + rail['width'] - 2, rail['y'] + rail['height']/2)
        tab.wait_for_function(f"{title}.startsWith('119')", timeout=60_000)
        browser.close()
