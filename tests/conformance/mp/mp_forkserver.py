"""CPython's tests of multiprocessing with the start method forkserver."""
from test import _test_multiprocessing

_test_multiprocessing.install_tests_in_module_dict(globals(), "forkserver")
