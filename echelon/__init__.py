__version__ = "0.1.0"


def make(name, worlds=64, seed=0, device="cpu", autoreset=True, **config):
    "A batch of worlds by name, as `echelon.world.make` (imported on first use)"
    from .world import make
    return make(name, worlds=worlds, seed=seed, device=device, autoreset=autoreset, **config)
