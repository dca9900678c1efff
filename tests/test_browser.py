"""The player in a real browser: a page from the file system without a network, and a live JupyterLab.

They run where Chromium is found (`make browser` installs it)."""
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import plotly
import pytest
from playwright.sync_api import sync_playwright

from echelon.view.picture import hues, rgb
from echelon.view.replay import record
from echelon.view.viewer import compare, export
from echelon.world import make

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = '--no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist'.split()
HERE = 'document.querySelector(".echelon-replay").player'
pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        bundled = Path(p.chromium.executable_path).exists()
        if not (CHROMIUM or bundled): pytest.skip('no Chromium on this machine: make browser')
        browser = p.chromium.launch(executable_path=None if bundled else CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def replay():
    world = make('mech', worlds=1, seed=3, autoreset=False, observation_mode='partial',
                 world=dict(size=60, pool=1))
    scripts = [1 + world.spec.scripts.index(name) for name in ('heuristic', 'recruit')]
    world.control[:] = [scripts[team] for team in world.spec.team]
    return record(world)


def corridor(players=None):
    "Three walkers, one of whom knows the way"
    world = make('corridor', worlds=1, seed=3, autoreset=False, agents=3)
    world.control[:] = 1 + world.spec.scripts.index('solver')
    return record(world, players=players)


def errands(script='seeker', robots=10, players=None):
    "Robots of the swarm, and where they want to go"
    world = make('swarm', worlds=1, seed=4, autoreset=False, robots=robots, max_episode_seconds=10.,
                 walls=((.5, 0, .5, .3),), arena=(600, 500))
    world.control[:] = 1 + world.spec.scripts.index(script)
    return record(world, players=players)


def opened(context, path):
    "A tab with the player of a page; every error of the page fails the test"
    tab, faults = context.new_page(), []
    tab.on('pageerror', lambda e: faults.append(str(e)))
    tab.goto(path.as_uri())
    tab.wait_for_function(f'() => {HERE}?.stage?.().drawn > 0', timeout=60_000)
    return tab, faults


def place(tab, row):
    "Where the player has a mech now, and where the replay has it at that time"
    return tab.evaluate(f'() => {{ const m = {HERE}.moment(), u = m.units[{row}]; return [m.t, u.x, u.y]; }}')


def check(tab, replay, row):
    t, x, y = place(tab, row)
    k = min(int(t/replay.header['spec']['dt'] + 1e-6), len(replay) - 1)
    a, b = (replay.frame(j)['pos'][row, :2] for j in (k, min(k + 1, len(replay) - 1)))
    for v, p, q in zip((x, y), a, b): assert min(p, q) - .05 <= v <= max(p, q) + .05
    return t


def test_a_page_from_a_file_plays_without_a_network(browser, replay, tmp_path):
    context = browser.new_context(viewport=dict(width=1000, height=860), offline=True)
    tab, faults = opened(context, export(replay, tmp_path/'battle.html'))
    assert check(tab, replay, 3) == 0
    tab.click('.play')
    tab.wait_for_function(f'() => {HERE}.at.t > 2', timeout=60_000)
    tab.click('.play')
    stood = check(tab, replay, 3)
    assert stood > 2 and not tab.evaluate(f'() => {HERE}.at.playing')

    rail = tab.locator('.rail input')
    box = rail.bounding_box()
    tab.mouse.click(box['x'] + box['width']*.75, box['y'] + box['height']/2)
    assert abs(check(tab, replay, 12) - .75*replay.seconds[-1]) < .05*replay.seconds[-1]
    shown = replay.frame(int(place(tab, 0)[0]/.25))
    told = f'Blue (heuristic) {int(shown["score"][0])} points, {shown["alive"][:10].sum()} alive'
    assert told in tab.locator('.words').inner_text()

    tab.select_option('select[aria-label="follow"]', label='follow red_2')
    middle = tab.evaluate('() => { const r = document.querySelector(".stage")._fullLayout.xaxis.range;'
                          'return (r[0] + r[1])/2; }')
    assert abs(middle - place(tab, 12)[1]) < .5
    tab.select_option('select[aria-label="follow"]', '')
    tab.select_option('select[aria-label="curves"]', label='hit points')
    unit = tab.evaluate('() => document.querySelector(".curves")._fullLayout.yaxis.title.text')
    assert unit == 'share of the pack'
    assert not faults
    context.close()


def test_the_fog_hides_what_a_team_does_not_know(browser, replay, tmp_path):
    "In every second it hides exactly the mechs that nobody of the team knows, or knew when they fell"
    context = browser.new_context(offline=True)
    tab, faults = opened(context, export(replay, tmp_path/'battle.html'))
    tab.select_option('select[aria-label="what is shown"]', label='what Red (recruit) knows')
    known, alive = (replay.frames[name] for name in ('known', 'alive'))
    known, fell, hidden = np.bitwise_or.reduce(known[:, 10:], 1), alive.sum(0), 0
    for k in range(0, len(replay), 8):
        f = replay.frame(k)
        tab.evaluate(f'() => {HERE}.go({k*replay.header["spec"]["dt"] + 1e-4})')
        shown = tab.evaluate(f'() => {HERE}.shown()')
        then = [min(k, int(fell[j]) - 1) for j in range(20)]
        seen = {j for j in range(20) if f['team'][j] == 1 or int(known[then[j]]) >> j & 1}
        assert set(shown) == seen
        hidden += 20 - len(shown)
    assert hidden > 0 and not faults
    context.close()


def test_in_space_the_land_is_never_sent_again(browser, replay, tmp_path):
    "Playing gives Plotly new numbers for the mechs, and none for the land"
    context = browser.new_context(viewport=dict(width=900, height=800), offline=True)
    tab, faults = opened(context, export(replay, tmp_path/'battle.html'))
    tab.select_option('select[aria-label="view"]', 'space')
    tab.wait_for_function(f'() => {HERE}.stage().drawn > 0', timeout=120_000)
    stage = 'document.querySelectorAll(".stage")[1]'
    solids = f'{stage}.data.filter(t => t.type === "mesh3d")'
    tab.evaluate(f'() => {{ window.land = {stage}.data[0].x; window.packs = {solids}.map(t => t.x); }}')
    drawn = tab.evaluate(f'() => {HERE}.stage().drawn')
    tab.click('.play')
    tab.wait_for_function(f'() => {HERE}.stage().drawn > {drawn} + 3', timeout=120_000)
    tab.click('.play')
    assert tab.evaluate(f'() => window.land === {stage}.data[0].x')
    assert tab.evaluate(f'() => {solids}.some((t, k) => t.x !== window.packs[k])')
    assert not faults
    context.close()


def test_a_flying_shot_moves_and_a_beam_flashes(browser, replay, tmp_path):
    "At a frame the lines are those of the frame; before it, the same shots are farther back on their way"
    context = browser.new_context(offline=True)
    tab, faults = opened(context, export(replay, tmp_path/'battle.html'))
    def shots(t):
        lines = tab.evaluate(f'() => {{ {HERE}.go({t}); return {HERE}.shots(); }}')
        return np.array(lines).reshape(-1, 7)
    moved, dt = 0, replay.header['spec']['dt']
    for k in range(8, len(replay) - 1, 5):
        f = replay.frame(k)
        flies, now = f['shot_age'] >= 0, shots(k*dt)
        old = f['shot_age'] > .12                        # of the others the line is shorter yet
        assert abs(now[:, 3:6] - f['shots'][:, 3:6]).max(initial=0) < .03
        assert abs(now[old, :3] - f['shots'][old, :3]).max(initial=0) < .03
        back = .1
        before = shots(k*dt - back)
        there = ~flies | (f['shot_age'] > back)          # fired by then
        assert len(before) == there.sum()
        way = (f['shots'][:, 3:6] - f['shots'][:, :3])/.12
        tip = np.where(flies[:, None], f['shots'][:, 3:6] - back*way, f['shots'][:, 3:6])[there]
        assert abs(before[:, 3:6] - tip).max(initial=0) < .2
        moved += (flies & there).sum()
    assert moved > 20 and not faults
    context.close()


def test_battles_of_other_players_and_worlds_side_by_side(browser, replay, tmp_path):
    "One clock moves both; a curve that only one of them has leaves the other's empty"
    walk = corridor(['<a href="https://example.org">me</a><b>bold</b>'])
    page = tmp_path/'both.html'
    page.write_text(f'<!doctype html><meta charset="utf-8">{compare([replay, walk]).html(offline=True)}')
    context = browser.new_context(viewport=dict(width=1100, height=900), offline=True)
    tab, faults = opened(context, page)
    tab.select_option('select[aria-label="curves"]', label='reward of Blue')
    tab.evaluate(f'() => {HERE}.go(3)')
    times = tab.locator('.words b:first-child').all_inner_texts()
    assert times == ['3.0 s', '3.0 s'] and not faults
    tab.select_option('select[aria-label="curves"]', label='alive')
    assert tab.locator('.curves a').count() == 0 and tab.locator('.echelon-replay img').count() == 0
    assert '<b>bold' in tab.locator('.words').nth(1).inner_text()
    context.close()


STAGE = 'document.querySelector(".stage")'


def spot(tab, x, y):
    "Pixels of a place of the world on the stage"
    return tab.evaluate(f"""() => {{ const {{xaxis: X, yaxis: Y}} = {STAGE}._fullLayout;
        return [X._offset + X.d2p({x}), Y._offset + Y.d2p({y})]; }}""")


def colour(tab, x, y):
    "What the stage shows at a place of the world"
    return np.array(tab.evaluate(f"""at => {{ const pen = {STAGE}.querySelector("canvas").getContext("2d");
        const [x, y] = at.map(v => v*devicePixelRatio);
        return [...pen.getImageData(x, y, 1, 1).data]; }}""", spot(tab, x, y))[:3])


def test_robots_play_with_their_goals(browser, tmp_path):
    "Goals are those of the frame before, never between two; a robot and its ring share a colour"
    replay, context = errands(), browser.new_context(viewport=dict(width=1000, height=860), offline=True)
    tab, faults = opened(context, export(replay, tmp_path/'swarm.html'))
    goals, t = replay.frames['goals'], 0
    t, row = np.argwhere(np.diff(goals, axis=0) > 0)[3] + [1, 0]         # reached in this frame
    for at, frame in ((t - .4, t - 1), (t + .6, t)):
        unit = tab.evaluate(f'() => {{ {HERE}.go({at*.05}); return {HERE}.moment().units[{row}]; }}')
        assert abs(np.array(unit['goal']) - replay.frame(frame)['goal'][row]).max() < .1
    check(tab, replay, row)
    told = tab.locator('.words').inner_text()
    assert f'{goals[t].sum()} goals, {replay.frames["contacts"][:t + 1].sum()} contact' in told
    assert 'alive' not in told and 'points' not in told
    labels = [s.get_attribute('aria-label') for s in tab.locator('select').all()]
    assert labels == ['speed', 'follow', 'curves']
    options = tab.locator('select[aria-label="curves"] option').all_inner_texts()
    assert options == ['goals', 'contacts', 'reward of Everybody']
    assert tab.locator('.marks .goal').count() == goals[-1].sum()

    f, hue = replay.frame(0), [rgb(h) for h in hues(replay.frame(0))]
    tab.evaluate(f'() => {HERE}.go(0)')
    for i in (1, 4):
        back = f['pos'][i] - 5*f['heading'][i]                           # the nose is on the other side
        assert abs(colour(tab, *back) - hue[i]).max() < 12
        assert abs(colour(tab, f['goal'][i][0] + 15, f['goal'][i][1]) - hue[i]).max() < 60
    assert colour(tab, 300, 75).max() < 90                               # the wall
    wide = f'{STAGE}._fullLayout.xaxis.range'
    before = tab.evaluate(f'() => {wide}'), colour(tab, *f['goal'][4])
    tab.select_option('select[aria-label="follow"]', label='follow robot_1')
    assert tab.evaluate(f'() => {wide}') == before[0]                    # an arena stays where it is
    assert (colour(tab, *f['goal'][4]) > before[1]).any()                # the others step back
    assert 'robot_1: 0 goals' in tab.locator('.words').inner_text() and not faults
    context.close()


def test_a_crowd_plays_and_one_of_it_is_found(browser, tmp_path):
    replay = errands(robots=120)
    context = browser.new_context(viewport=dict(width=1000, height=860), offline=True)
    tab, faults = opened(context, export(replay, tmp_path/'crowd.html'))
    tab.click('.play')
    tab.wait_for_function(f'() => {HERE}.at.t > 2', timeout=60_000)
    tab.click('.play')
    check(tab, replay, 77)
    tab.evaluate(f'() => {HERE}.go(0)')
    x, y = replay.frame(0)['pos'][77]
    at, stage = spot(tab, x, y), tab.locator('.stage').first
    stage.click(position=dict(x=at[0], y=at[1]))
    assert tab.evaluate(f'() => {HERE}.look.follow') == 77 and not faults
    context.close()


def test_before_and_after_have_one_scale(browser, tmp_path):
    both = [errands('random', players=['before']), errands(players=['after'])]
    page = tmp_path/'both.html'
    page.write_text(f'<!doctype html><meta charset="utf-8">{compare(both).html(offline=True)}')
    context = browser.new_context(viewport=dict(width=1100, height=900), offline=True)
    tab, faults = opened(context, page)
    tab.evaluate(f'() => {HERE}.go(9)')
    words = tab.locator('.words').all_inner_texts()
    assert ['Everybody (before)' in words[0], 'Everybody (after)' in words[1]] == [True, True]
    high = tab.evaluate('[...document.querySelectorAll(".curves")].map(c => c._fullLayout.yaxis.range[1])')
    assert high[0] == high[1] > both[1].frames['goals'][-1].max() > both[0].frames['goals'][-1].max()
    assert not faults
    context.close()


def test_the_player_bears_what_readers_do(browser, tmp_path):
    "Two players of one battle, double clicks, keys, a narrow window, a page that lets go and takes it back"
    walk, page = corridor(), tmp_path/'two.html'
    twice = walk.show(offline=True).html() + walk.show(at=2., speed=8., height=300).html()
    page.write_text(f'<!doctype html><meta charset="utf-8">{twice}')
    context = browser.new_context(viewport=dict(width=1000, height=1700), offline=True)
    tab, faults = opened(context, page)
    second = HERE.replace('querySelector', 'querySelectorAll').replace(').player', ')[1].player')
    tab.wait_for_function(f'() => {second}?.stage?.().drawn > 0')
    found = tab.evaluate(f'() => [{HERE}.at.t, {second}.at.t, {HERE}.at.speed, {second}.at.speed]')
    assert found == [0, 2, 2, 8]

    stage = tab.locator('.stage').first
    for _ in range(3): stage.dblclick(position=dict(x=200, y=60))
    wide = 'document.querySelector(".stage")._fullLayout.xaxis.range'
    assert tab.evaluate(f'() => {wide}[1] - {wide}[0]') > 5
    stage.click(position=dict(x=200, y=60))
    tab.keyboard.press('ArrowRight')
    assert tab.evaluate(f'() => {HERE}.at.t') == 1

    tab.evaluate(f'() => {{ for (const on of [true, false, true, false, true]) {HERE}.play(on); }}')
    start, t = time.monotonic(), tab.evaluate(f'() => {HERE}.at.t')
    tab.wait_for_function(f'() => {HERE}.at.t > {t} + 4')
    assert time.monotonic() - start > 1.5                 # twice as fast as the game, and not six times

    tab.set_viewport_size(dict(width=500, height=1700))
    tab.wait_for_function('() => document.querySelector(".stage")._fullLayout.width <= 500')
    tab.evaluate('() => { window.root = document.querySelector(".echelon-replay"); window.root.remove(); }')
    tab.wait_for_function('() => !window.root.player.at.playing'
                          ' && !window.root.querySelector(".svg-container")')
    tab.evaluate('() => document.body.prepend(window.root)')
    tab.wait_for_function('() => window.root.querySelector(".stage canvas")')
    assert tab.locator('.play').first.inner_text() == '▶ Play' and not faults
    context.close()


# ---- JupyterLab

CELLS = ["""from echelon.world import make
from echelon.view.replay import record
world = make('corridor', worlds=1, seed=3, autoreset=False, agents=3)
world.control[:] = 2
replay = record(world)""", 'replay.show(height=200)']


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A running JupyterLab on a folder with one notebook; gives its address and token"
    home = tmp_path_factory.mktemp('lab')
    cells = [dict(cell_type='code', id=f'c{k}', metadata={}, source=s, outputs=[], execution_count=None)
             for k, s in enumerate(CELLS)]
    spec = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    notebook = dict(cells=cells, metadata=spec, nbformat=4, nbformat_minor=5)
    (home/'battle.ipynb').write_text(json.dumps(notebook))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    token = secrets.token_hex(16)
    env = os.environ | dict(JUPYTER_PREFER_ENV_PATH='1', JUPYTER_CONFIG_DIR=str(home/'config'),
                            JUPYTER_RUNTIME_DIR=str(home/'runtime'),
                            JUPYTERLAB_SETTINGS_DIR=str(home/'settings'),
                            JUPYTERLAB_WORKSPACES_DIR=str(home/'workspaces'),
                            PYTHONPATH=str(Path(__file__).resolve().parent.parent))
    with open(home/'log', 'w') as log:
        server = subprocess.Popen(
            [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', f'--port={port}',
             '--allow-root', f'--IdentityProvider.token={token}', '--LabApp.expose_app_in_browser=True',
             f'--notebook-dir={home}'],
            stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        end = time.monotonic() + 90
        while True:
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token={token}', timeout=5); break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, (home/'log').read_text()[-2000:]
                time.sleep(.5)
        yield home, f'http://127.0.0.1:{port}/lab/tree/battle.ipynb?token={token}'
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def test_it_plays_in_jupyterlab(browser, lab):
    "Run all cells, press play, move the slider, choose a walker; saving leaves no widget in the notebook"
    home, address = lab
    context = browser.new_context(viewport=dict(width=1400, height=1000))
    source = (Path(plotly.__file__).parent/'package_data/plotly.min.js').read_text()
    # no test needs the network
    reply = dict(body=source, content_type='text/javascript', headers={'Access-Control-Allow-Origin': '*'})
    context.route('https://cdn.plot.ly/**', lambda route: route.fulfill(**reply))
    tab = context.new_page()
    tab.goto(address)
    tab.wait_for_function("""() => { const n = window.jupyterapp?.shell.currentWidget;
        return n?.sessionContext?.session?.kernel?.status === 'idle'; }""", timeout=120_000)
    tab.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    tab.wait_for_function(f'() => {HERE}?.stage?.().drawn > 0', timeout=120_000)
    tab.click('.echelon-replay .play')
    tab.wait_for_function(f'() => {HERE}.at.t > 3', timeout=60_000)
    tab.click('.echelon-replay .play')
    assert tab.evaluate(f'() => {HERE}.moment().units[0].x') > 0
    tab.locator('.echelon-replay .rail input').fill('0')
    assert tab.evaluate(f'() => {HERE}.moment().units[0].x') == 0
    tab.select_option('.echelon-replay select[aria-label="follow"]', label='follow walker_1')
    assert tab.evaluate(f'() => {HERE}.look.follow') == 1
    tab.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    end, saved = time.monotonic() + 30, {}
    while not any(c['outputs'] for c in saved.get('cells', [])):
        assert time.monotonic() < end
        time.sleep(.3)
        saved = json.loads((home/'battle.ipynb').read_text())
    assert 'widgets' not in saved['metadata'] and len(json.dumps(saved)) < 300_000
    assert 'echelon-replay' in json.dumps(saved)
    context.close()
