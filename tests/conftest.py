"Options of the test suite, and what several tests ask."
import pytest


def pytest_addoption(parser):
    parser.addoption('--bless', action='store_true', help='accept what the golden tests find')


def pytest_collection_modifyitems(items):
    "What compiles a changed simulator takes longest: first, so that the other process is not left waiting"
    items.sort(key=lambda item: 'test_rule_change' not in item.nodeid)


@pytest.fixture
def goes_on(tmp_path):
    "A function that asserts that a run taken up from a checkpoint equals one that never stopped, to the bit"
    def check(config, updates=3):
        from echelon.training.trainer import Training, load_checkpoint, save_checkpoint
        one = Training(config)
        for _ in range(updates): one.update()
        path = save_checkpoint(one, tmp_path)
        rows = [one.update()[0] for _ in range(updates)]
        two = Training(config); load_checkpoint(two, path)
        assert [two.update()[0] for _ in range(updates)] == rows
        assert all((a == b).all() for a, b in zip(one.model.parameters(), two.model.parameters()))
        assert (one.world.digest() == two.world.digest()).all()
        return path, rows
    return check
