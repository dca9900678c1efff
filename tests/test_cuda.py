"What guards the second machine: CUDA's simulator plays the same battle, and the text compiles for a GPU."
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT, DECISIONS = Path(__file__).resolve().parent.parent, 4
TOLERANCE = 1e-4   # of a float, absolute below 1 and relative above; integers and bits are equal
PARAMETERS = 4096  # bytes that every driver lets a kernel take


# ---- a battle that is over soon

def battle(machine):
    "Two packs face to face, all triggers pulled: the game as it opens and after each decision"
    from echelon.env.battle import DECIDE, OPEN
    from echelon.world import make
    world = make('mech', worlds=2, seed=5, pack=(1, 1, 1, 1), autoreset=False,
                 observation_mode='partial', world=dict(size=40, pool=1, biomes=()), sticky_slots=True,
                 enable_target_selection=True, enable_obs_control=True, enable_comm=True, enable_orders=True)
    g, moments = world.game_arrays, []
    games = (np.array([7, 8], np.uint64), np.zeros(2, np.int32), np.int32([1, 1]), np.float32([1, .5]))
    for decision in range(1 + DECISIONS):
        if decision == 1: face(g)
        g.action[g.control == 0] = [.3, .2, .5, .1, 1, -1, 1, 1, 1, *[1]*(g.action.shape[2] - 9)]
        machine(g, world.shelf.maps, np.full(2, DECIDE if decision else OPEN), *games)
        moments.append({name: a.copy() for name, a in g._asdict().items()})
    return moments


def face(g):
    "Both teams in two lines 6 vox apart, some nearly dead; the cloud between them moves away at once"
    n = g.mech.shape[1]//2
    row = np.arange(2*n)
    g.mech['x'], g.mech['y'] = np.where(row < n, -3, 3), 4*(row % n) - 6
    g.mech['hp'][:, ::3] = 3
    g.control[1, n:] = [1, 5, 7, 9]     # heuristic, flanker, random, blind
    smoke, shot, cloud = np.flatnonzero(g.weapons['cloud'] > 0)[0], g.shot[:, 1, 7], g.cloud[:, 1]
    for name in shot.dtype.names: shot[name] = -1
    for name, value in dict(x=-18, y=18, z=1, left=.01, weapon=smoke, state=1).items(): shot[name] = value
    for name, value in dict(x=0, y=0, z=1, left=3).items(): cloud[name] = value
    g.mech['flying'][:, 1], g.world['smoke'] = 1 << 7, 1 << 1


def close(a, b):
    "Whether two arrays agree: floats within the tolerance, all else exactly"
    if a.dtype.names: return all(close(a[name], b[name]) for name in a.dtype.names)
    if a.dtype.kind != 'f': return bool((a == b).all())
    return bool(((abs(a - b) <= TOLERANCE*np.maximum(1, abs(a))) | (a != a) & (b != b)).all())


def differing(one, two, same=close):
    "Where two courses of a battle part: (decision, array)"
    return [(k, name) for k, (a, b) in enumerate(zip(one, two)) for name in a if not same(a[name], b[name])]


def equal(a, b):
    "Whether two arrays are equal to the bit (padding between fields apart)"
    if a.dtype.names: return all(equal(a[name], b[name]) for name in a.dtype.names)
    return a.tobytes() == b.tobytes()


def open_records(g):
    "The game for kernels that run as plain Python: `g.mech[w, i].x` reads and writes the same memory"
    return g._replace(**{name: a.view(np.recarray) for name, a in g._asdict().items() if a.dtype.names})


@pytest.fixture(scope='module')
def told():
    "The battle as the CPU's driver plays it"
    from echelon.env.battle import play
    moments = battle(play)
    world, mech, event = moments[-1]['world'], moments[-1]['mech'], [m['event'] for m in moments]
    assert (world['over'] == 0).all() and (mech['alive'] == 0).any() and mech['took'].any()
    assert sum((e['tick'] > 0).sum() for e in event) > 20
    assert mech['focus'].max() >= 0 and moments[-1]['comm'].any() and moments[-1]['option']['order'].any()
    return moments


# ---- a swarm in which everything happens

def swarm(machine):
    "Two arenas, robots that touch walls and each other: the swarm as it opens and after each decision"
    from echelon.swarm.world import DECIDE, OPEN, clear
    from echelon.world import make
    world = make('swarm', worlds=2, seed=5, robots=7, arena=(300, 240), walls=((.5, .3, .5, .7),),
                 message_dim=1, hears=2, max_episode_seconds=.2, autoreset=False)
    g, moments = world.swarm, []
    games = np.array([7, 8], np.uint64), np.int32([1, 3]), np.float32([-.5, -2])
    clear(g, np.ones(2, np.bool_))
    for decision in range(1 + DECISIONS):
        if decision == 1: crowded(g)
        g.action[g.control == 0], g.action[0, 3, 0] = [.9, 1, .25], np.nan
        machine(g, np.full(2, DECIDE if decision else OPEN), *games)
        moments.append({name: a.copy() for name, a in g._asdict().items()})
    return moments


def crowded(g):
    "In one world six in a heap and one alone; in the other everybody alone, and scripts that drive"
    m = g.robot[0]
    m['x'], m['y'] = [30, 49, 68, 33, 52, 280, 146], [30, 31, 30, 50, 50.5, 225, 120]
    m['vx'], m['vy'], m['c'], m['s'] = [90, 60, -80, 0, 0, 100, 90], [0, 10, 0, -90, -40, 30, 5], 1, 0
    m['goal_x'][1], m['goal_y'][1] = m['x'][1] + 5, m['y'][1]
    g.robot[1]['x'], g.robot[1]['y'] = [40, 90, 220, 260, 40, 90, 220], [40, 90, 60, 120, 160, 200, 200]
    g.control[1] = [1, 1, 2, 2, 3, 0, 0]


@pytest.fixture(scope='module')
def told_swarm():
    "The swarm as the CPU's driver plays it"
    from echelon.swarm.world import play
    moments = swarm(play)
    m, a = moments[-1]['robot'], moments[-1]['arena']
    contacts, touching = ([moment[k][name] for moment in moments[1:]]
                          for k, name in (('robot', 'contacts'), ('arena', 'touching')))
    assert np.sum(contacts, (0, 2))[0] > 8 and np.min(touching, 0)[1] == 0 and m['goals'][0, 1] == 1
    assert (a['decision'] == 4).all() and (moments[-1]['heard'] >= 0).any()
    assert moments[-1]['terms'][0, -1] == 4                   # NaNs
    return moments


# ---- numba's simulator of CUDA

def phases(play):
    "Every kernel that the drivers call, by the module that names it: what lies between two barriers"
    if play is swarm:
        from echelon.swarm import gpu, physics, world
        texts = [(physics, physics.roll.py_func), (world, world.decide.py_func), (gpu, gpu.player().py_func)]
    else:
        from echelon.env import battle, gpu
        from echelon.sim import sim
        texts = [(sim, sim.tick.py_func), (sim, sim.sights.py_func), (battle, battle.view.py_func),
                 (battle, battle.decide.py_func), (gpu, gpu.player().py_func)]
    return {(module, name) for module, f in texts for name in f.__code__.co_names
            if hasattr(getattr(module, name, None), 'py_func')}


def simulate(name, out, lanes=3):
    "Play in the simulator; keep the moments, and the phases with and without a visit"
    play = PLAYS[name]
    gpu = importlib.import_module('echelon.swarm.gpu' if play is swarm else 'echelon.env.gpu')
    entered, all_phases = set(), phases(play)
    def watched(f, name):
        def call(*args): entered.add(name); return f(*args)
        return call
    full = lambda module, name: f'{module.__name__}.{name}'
    for module, name in all_phases: setattr(module, name, watched(getattr(module, name), full(module, name)))
    gpu.player.cache_clear()
    def machine(g, *games): gpu.player()[2, lanes](open_records(g), *games)
    moments = play(machine)
    arrays = {f'{k} {name}': a for k, moment in enumerate(moments) for name, a in moment.items()}
    np.savez(out, **arrays, entered=sorted(entered), phases=sorted(full(*phase) for phase in all_phases))


def elsewhere(*args, **env):
    "Run a function of this file in a process of its own"
    run = subprocess.run([sys.executable, __file__, *map(str, args)], cwd=ROOT,
                         env=os.environ | dict(PYTHONPATH=str(ROOT)) | env,
                         capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.parametrize('play, many', [('told', 25), ('told_swarm', 15)])
def test_simulator_plays_the_same(play, many, tmp_path, request):
    told = request.getfixturevalue(play)
    elsewhere('simulate', play, tmp_path/'kept.npz', NUMBA_ENABLE_CUDASIM='1')
    with np.load(tmp_path/'kept.npz', allow_pickle=False) as kept:
        moments = [{name: kept[f'{k} {name}'] for name in moment} for k, moment in enumerate(told)]
        entered = kept['entered'].tolist()
        assert entered == kept['phases'].tolist() and len(entered) > many
    assert differing(told, moments) == []


# ---- one lane after the other, in both orders: whoever reads what another lane writes sees a difference

class Turns:
    "Lanes that run one at a time, each up to the next barrier"
    def __init__(self, order): self.order, self.now, self.change = list(order), 0, threading.Condition()

    def wait(self):
        "A barrier: the next lane goes on"
        me = threading.current_thread().lane
        with self.change:
            self.now = (self.now + 1) % len(self.order)
            self.change.notify_all()
            self.change.wait_for(lambda: self.order[self.now] == me)

    def run(self, f, *args):
        "All lanes through `f(*args, lane, lanes)`"
        failed = []
        def lane():
            me = threading.current_thread().lane
            with self.change: self.change.wait_for(lambda: self.order[self.now] == me)
            try: f(*args, np.int64(me), np.int64(len(self.order)))
            except Exception as e: failed.append(e)
            with self.change: self.now = (self.now + 1) % len(self.order); self.change.notify_all()
        threads = [threading.Thread(target=lane, daemon=True) for _ in self.order]
        for k, t in enumerate(threads): t.lane = k; t.start()
        for t in threads: t.join(60)
        assert not failed and not any(t.is_alive() for t in threads), failed


@pytest.mark.parametrize('order', [range(8), range(7, -1, -1), [4, 1, 3, 0, 2]], ids=str)
def test_lanes_may_run_in_any_order(told, order):
    from echelon.env.battle import DECIDE, deciding, play, viewing
    from echelon.sim.sim import looking, ticking
    turns = Turns(order)
    view = viewing(turns.wait, looking(turns.wait).py_func).py_func
    decide = deciding(turns.wait, ticking(turns.wait).py_func, view).py_func
    def machine(g, maps, todo, *games):
        if todo[0] != DECIDE: return play(g, maps, todo, *games)
        for w in range(len(todo)): turns.run(decide, open_records(g), np.int64(w))
    assert differing(told, battle(machine), equal) == []


@pytest.mark.parametrize('order', [range(7), range(6, -1, -1), [2, 0, 1]], ids=str)
def test_lanes_of_a_swarm_may_run_in_any_order(told_swarm, order):
    from echelon.swarm.physics import rolling
    from echelon.swarm.world import DECIDE, deciding, play
    turns = Turns(order)
    decide = deciding(turns.wait, rolling(turns.wait).py_func).py_func
    def machine(g, todo, *games):
        if todo[0] != DECIDE: return play(g, todo, *games)
        for w in range(len(todo)): turns.run(decide, open_records(g), np.int64(w))
    assert differing(told_swarm, swarm(machine), equal) == []


# ---- machine code for a GPU that is not here

def arguments(name):
    "A CUDA driver and what it is called with"
    zeros = lambda kind, *shape: np.zeros(shape, kind)
    if PLAYS[name] is swarm:
        from echelon.swarm.gpu import player
        from echelon.swarm.physics import SwarmConfig, new_swarm
        g = new_swarm(SwarmConfig(message_dim=1, walls=((.5, .3, .5, .7),)), obs_dim=52)
        return player(), (g, zeros('i8', 1), zeros('u8', 1), zeros('i4', 1), zeros('f4', 1))
    from echelon.config import EnvConfig
    from echelon.env.gpu import player
    from echelon.sim.mech import new_game
    from echelon.sim.voxels import Maps
    maps = Maps(zeros('u1', 1, 40, 40, 20), zeros('u4', 1, 40, 40), zeros('u4', 1, 40, 40),
                zeros('u4', 1, 40, 40), zeros('u8', 1, 20, 20), zeros('u2', 1, 40, 40),
                zeros('f4', 1, 3), zeros('f4', 1, 4, 2), zeros('i4', 1))
    return player(), (new_game(EnvConfig(pack=(1, 1, 1, 1)), maps), maps, zeros('i8', 1), zeros('u8', 1),
                      zeros('i4', 1), zeros('i4', 1), zeros('f4', 1))


def compiled(name):
    "PTX for sm_90 of a CUDA driver"
    import numba
    from numba import cuda
    from numba.cuda import cuda_paths, dispatcher
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))
    cuda_paths._get_nvrtc_path = lambda: None   # the compiler of CUDA C++, which nothing here asks
    kernel, args = arguments(name)
    ptx, _ = cuda.compile(kernel.py_func, numba.void(*map(numba.typeof, args)), cc=(9, 0), output='ptx',
                          device=False, abi='numba')
    print(ptx.decode() if isinstance(ptx, bytes) else ptx)


@pytest.mark.skipif(importlib.util.find_spec('numba_cuda') is None, reason='numba-cuda is not installed')
@pytest.mark.parametrize('play, barriers', [
    ('told', 20),          # of a tick 8, of sights 5 twice, of a decision 3, of opening 1
    ('told_swarm', 13)])   # of a substep 8, of a decision 4, of opening 1
def test_compiles_for_a_gpu(play, barriers):
    ptx = elsewhere('compiled', play, NUMBA_FORCE_CUDA_CC='9.0', NUMBA_ENABLE_CUDASIM='0')
    code = re.sub(r'_ZN\w+', 'name', ptx)
    count = lambda pattern: len(re.findall(pattern, code, re.M))
    print(f'PTX: {len(code)/1e6:.1f} MB without names, {count("$")} lines, {count("bar.sync")} barriers, '
          f'{count("ld[.a-z]*[.]u8")} loads of a byte')
    assert '.target sm_90' in code and count(r'\.entry') == 1
    assert count(r'bar\.sync') >= barriers
    assert count(r'^\s*call') == 0               # all is pasted into one kernel: nothing of Python, no stack
    assert 8*count(r'^\s*\.param') <= PARAMETERS
    assert count(r'ld[.a-z]*\.u8') < 200         # records are aligned: numbers are read whole, not by bytes


# ---- a GPU that is here

@pytest.mark.gpu
def test_gpu_plays_the_same_battle(told):
    from numba import cuda
    if not cuda.is_available(): pytest.skip('no CUDA device')
    from echelon.env import gpu
    def machine(g, maps, todo, *games):
        on_card = gpu.uploaded(g)
        gpu.player()[len(todo), gpu.LANES](on_card, gpu.uploaded(maps), todo, *games)
        gpu.downloaded(on_card, g)
    assert differing(told[:2], battle(machine)[:2]) == []   # later, chance and thresholds part them


@pytest.mark.gpu
def test_gpu_plays_the_same_swarm(told_swarm):
    from numba import cuda
    if not cuda.is_available(): pytest.skip('no CUDA device')
    from echelon.env.gpu import LANES, downloaded, uploaded
    from echelon.swarm.gpu import player
    def machine(g, todo, *games):
        on_card = uploaded(g)
        player()[len(todo), LANES](on_card, todo, *games)
        downloaded(on_card, g)
    assert differing(told_swarm[:2], swarm(machine)[:2]) == []


PLAYS = dict(told=battle, told_swarm=swarm)
if __name__ == '__main__': dict(simulate=simulate, compiled=compiled)[sys.argv[1]](*sys.argv[2:])
