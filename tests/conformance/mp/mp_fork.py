"""CPython's tests of multiprocessing with the start method fork."""
from test import _test_multiprocessing

_test_multiprocessing.install_tests_in_module_dict(globals(), "fork")
