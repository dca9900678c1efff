"Options of the test suite."


def pytest_addoption(parser):
    parser.addoption('--bless', action='store_true', help='accept what the golden tests find')
