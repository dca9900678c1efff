"Counts over the map: the right cell, nothing lost, nothing invented, and no image library unless asked."
import subprocess
import sys
import types

import numpy as np
import pytest

from echelon.training.spatial import HIT, SpatialAccumulator, cells, picture
from echelon.view.replay import Recorder
from echelon.world import Watcher, make

SMALL = dict(world=dict(size=40, pool=2), packs_per_team=1, max_episode_seconds=60.)


def moment(*places, alive=None, events=()):
    "A frame of rows at these places"
    alive = np.ones(len(places), bool) if alive is None else np.array(alive)
    return dict(pos=np.float32(places).reshape(-1, 3), alive=alive, events=np.float32(events).reshape(-1, 7))


def counts(seen): return [a.copy() for a in seen.counts.values()]


@pytest.mark.parametrize('place, cell', [
    ((0, 0), (4, 4)), ((-.01, .01), (3, 4)), ((-20, -20), (0, 0)), ((19.9, -19.9), (7, 0)),
    ((20, 20), (7, 7)), ((-500, 3), (0, 4)), ((2, 500), (4, 7)), ((4.99, 5), (4, 5))])
def test_a_place_lies_in_its_cell_and_outside_means_the_outermost(place, cell):
    assert tuple(int(k[0]) for k in cells([place], 40., 8)) == cell
    seen = SpatialAccumulator(8)
    seen.add(moment((*place, 0)), 40.)
    assert seen.movement_density[cell] == seen.movement_density.sum() == 1


def test_maps_of_different_width_share_a_grid():
    for size in (40., 100.):
        assert [int(k[0]) for k in cells([(.3*size, -.3*size)], size, 10)] == [8, 2]


def test_deaths_damage_and_movement_of_hand_made_moments():
    seen = SpatialAccumulator(4)
    assert [a.shape for a in counts(seen)] == [(4, 4)]*3 and seen.death_locations.dtype == np.float64
    alive = seen.add(moment((-15, -15, 0), (15, 15, 0), (5, 5, 9)), 40.)
    hits = [(HIT, 1, 0, -15, -15, 2, 7.5), (HIT, 1, 0, -15, -15, 2, 2.5), (HIT + 1, 1, 0, -15, -15, 2, 99)]
    alive = seen.add(moment((-15, -15, 0), (15, 15, 0), (5, 5, 9), alive=[0, 1, 1], events=hits), 40., alive)
    seen.add(moment((-15, -15, 0), (15, 15, 0), (-5, 5, 9), alive=[0, 1, 1]), 40., alive)
    assert seen.death_locations[0, 0] == seen.death_locations.sum() == 1
    assert seen.damage_locations[0, 0] == seen.damage_locations.sum() == 10
    assert seen.movement_density[[0, 3, 2, 1], [0, 3, 2, 2]].tolist() == [1, 3, 2, 1]
    assert seen.movement_density.sum() == 7


def test_sums_and_a_new_beginning():
    one, two = SpatialAccumulator(4), SpatialAccumulator(4)
    one.add(moment((1, 1, 0)), 40.); two.add(moment((1, 1, 0), (-1, -1, 0)), 40.)
    assert one.merge(two) is one and one.movement_density[2, 2] == 2 and one.movement_density.sum() == 3
    assert two.movement_density.sum() == 2
    kept = one.movement_density
    one.reset()
    assert one.movement_density is kept and not any(a.any() for a in counts(one))


class Ledger(Watcher):
    "Counts by itself who dies and who lives, in all worlds"
    def __init__(self, world): self.alive, self.dead, self.present = world.alive.copy(), 0, 0
    def opened(self, world, mask): self.alive[mask] = world.alive[mask]
    def moved(self, world):
        self.dead += int((self.alive & ~world.alive).sum()); self.present += int(world.alive.sum())
        self.alive = world.alive.copy()


@pytest.fixture(scope='module')
def battles():
    "Games of two scripts, one after the other in two worlds; the first game of world 0 is also recorded"
    world = make('mech', worlds=2, seed=5, **SMALL)
    world.control[:] = [1 + world.spec.scripts.index(('heuristic', 'recruit')[t]) for t in world.spec.team]
    both, first, ledger = SpatialAccumulator(), SpatialAccumulator(), Ledger(world)
    world.watchers.append(ledger)
    onlooker, recorder = both.watch(world, (0, 1)), Recorder(world)
    once = first.watch(world)
    while world.stats['games'].min() < 2:
        world.step()
        if world.stats['games'][0]: once.detach()
    onlooker.detach()
    return world, both, first, recorder.replay, ledger


def test_counts_agree_with_the_world(battles):
    "Kills are shared out among those who did the damage; what the own side did is nobody's"
    world, both, _, _, ledger = battles
    kills = world.stats['kill'].sum()
    assert both.death_locations.sum() == ledger.dead >= kills - 1e-3 and kills > .9*ledger.dead > 0
    assert both.movement_density.sum() == ledger.present
    assert both.damage_locations.sum() > 0


def test_a_replay_tells_the_same(battles):
    _, _, first, replay, _ = battles
    again = SpatialAccumulator().add_replay(replay)
    assert again.death_locations.sum() == first.death_locations.sum() > 0
    for live, kept in zip(counts(first), counts(again)):
        assert np.isclose(live.sum(), kept.sum(), rtol=1e-3)
        assert np.abs(live - kept).sum() <= .02*live.sum()    # a 512th of a voxel may cross a border


def test_whoever_has_left_is_told_nothing_more(battles):
    world, both, *_ = battles
    before = counts(both)
    world.step()
    assert all((a == b).all() for a, b in zip(before, counts(both)))


def test_a_game_that_stays_as_it_ended_is_counted_no_further():
    world = make('corridor', worlds=2, seed=3, autoreset=False, agents=2, length=3)
    world.control[:] = 2
    seen, ledger = SpatialAccumulator(4), Ledger(world)
    seen.watch(world, (0, 1), size=10.); world.watchers.append(ledger)
    for _ in range(30): world.step()
    assert world.terminated.all() and seen.death_locations.sum() == ledger.dead == 4
    assert seen.movement_density.sum() == ledger.present
    world.reset(); world.step()
    assert seen.death_locations.sum() == 4 and seen.movement_density.sum() == ledger.present


def test_importing_it_imports_no_image_library():
    code = """
import sys
import echelon.training.spatial
assert not {'wandb', 'matplotlib', 'torch', 'plotly'} & set(sys.modules)
"""
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('missing', ['wandb', 'matplotlib'])
def test_without_a_library_there_is_a_warning_and_no_image(monkeypatch, missing):
    for name in ('wandb', 'matplotlib'): monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.warns(UserWarning, match=missing): assert SpatialAccumulator().to_images() == {}


def test_with_both_libraries_there_are_images(monkeypatch):
    grey = lambda share: np.stack([share, share, share, 0*share + 1], -1)
    wandb = types.SimpleNamespace(Image=lambda data, caption=None: ('image', data, caption))
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    monkeypatch.setitem(sys.modules, 'matplotlib', types.SimpleNamespace(colormaps=dict(magma=grey)))
    seen = SpatialAccumulator(4)
    seen.add(moment((-15, 15, 0)), 40.)
    images = seen.to_images()
    assert set(images) == {'spatial/deaths', 'spatial/damage', 'spatial/movement'}
    kind, data, caption = images['spatial/movement']
    assert kind == 'image' and data.shape == (32, 32, 3) and data.dtype == np.uint8 and '1 in all' in caption
    assert (data[:8, :8] == 255).all() and data.sum() == 255*8*8*3    # left and up
    assert not images['spatial/deaths'][1].any() and not np.isnan(picture(np.zeros((2, 2)), grey)).any()


def twice():
    "Somebody at the lower left and a hit at the upper right of a map 40 wide: as seen, and added up"
    seen = SpatialAccumulator(4)
    hit = [(HIT, 1, 0, 15, 15, 2, 99.)]
    seen.add(moment((-15, -15, 0), events=hit), 40.)
    return seen.merge(SpatialAccumulator(4)), SpatialAccumulator(4).merge(seen)


def test_mirrored_moments_exchange_left_and_right():
    seen = SpatialAccumulator(4)
    before = seen.add(moment((-15, -15, 0), (1, 15, 0)), 40., mirrored=True)
    hit = [(HIT, 1, 0, 12, -12, 2, 5.)]
    seen.add(moment((-15, -15, 0), (1, 15, 0), alive=[0, 1], events=hit), 40., before, True)
    assert seen.movement_density[3, 0] == 1 and seen.movement_density[1, 3] == 2
    assert seen.death_locations[3, 0] == seen.death_locations.sum() == 1
    assert seen.damage_locations[0, 0] == seen.damage_locations.sum() == 5


def test_a_game_watched_mirrored_is_the_mirror_image():
    world = make('mech', worlds=1, seed=5, autoreset=False, **SMALL)
    world.control[:] = 1
    plain, mirrored = SpatialAccumulator(8), SpatialAccumulator(8)
    plain.watch(world)
    mirrored.watch(world, mirrored=True)
    for _ in range(60): world.step()
    for a, b in zip(counts(plain), counts(mirrored)): assert a.sum() == b.sum()
    assert (plain.movement_density[::-1] == mirrored.movement_density).all()
    assert plain.empty().grid_size == 8 and not any(a.any() for a in counts(plain.empty()))


def test_a_picture_of_the_map_in_voxels():
    for seen in twice():
        fig = seen.draw()
        assert seen.size == 40 and [t.text for t in fig.layout.annotations] == [
            '<b>deaths, 0</b>', '<b>damage, 99</b>', '<b>movement, 1</b>']
        deaths, damage, movement = (np.array(t.z) for t in fig.data)
        assert damage[3, 3] == damage.max() == pytest.approx(2, rel=1e-3)
        assert movement[0, 0] == movement.max() > 0
        assert not deaths.any() and all((t.x0, t.dx, t.y0, t.dy) == (-15, 10, -15, 10) for t in fig.data)
        anchors = [fig.layout[f'yaxis{k}'].scaleanchor for k in ('', 2, 3)]
        assert anchors == ['x', 'x2', 'x3'] and fig.layout.xaxis2.title.text == 'x, voxels'
        assert list(fig.data[1].colorbar.ticktext) == ['0', '1', '3', '10', '30']
    seen.reset()
    assert seen.size == 0 and len(seen.draw().data) == 3


def test_pictures_need_no_library_of_images(monkeypatch):
    for name in ('wandb', 'matplotlib'): monkeypatch.setitem(sys.modules, name, None)
    seen, _ = twice()
    pictures = seen.pictures()
    assert list(pictures) == ['spatial/deaths', 'spatial/damage', 'spatial/movement']
    light, dark = (tuple(int(c[i:i + 2], 16) for i in (1, 3, 5)) for c in ('#f7f9fb', '#123a63'))
    assert all(a.shape == (32, 32, 3) and a.dtype == np.uint8 for a in pictures.values())
    near = lambda pixel, colour: np.abs(pixel.astype(int) - colour).max() <= 1
    assert near(pictures['spatial/movement'][-1, 0], dark) and near(pictures['spatial/damage'][0, -1], dark)
    assert near(pictures['spatial/deaths'].reshape(-1, 3), light)


@pytest.mark.parametrize('wrong, said', [
    (lambda seen: SpatialAccumulator(0), 'grid_size = 0'),
    (lambda seen: seen.merge(SpatialAccumulator(5)), 'grid_size = 5'),
    (lambda seen: seen.add(moment((np.nan, 0, 0)), 40.), 'NaN'),
    (lambda seen: seen.watch(make('corridor', worlds=1)), 'size = None'),
    (lambda seen: seen.watch(make('corridor', worlds=1), size=0.), 'size = 0'),
    (lambda seen: seen.watch(make('corridor', worlds=1), (1,), 9.), 'world 1')])
def test_what_cannot_be_counted_is_refused_by_name(wrong, said):
    seen = SpatialAccumulator(4)
    with pytest.raises(ValueError, match=said): wrong(seen)
    assert not any(a.any() for a in counts(seen))
