"""Options: each declared once, values checked, the meta option spread, the environment read and written."""
from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmstack._option import Flag, MaybeFlag, MaybeNumber, Number, Text, Words
from shmstack.errors import OptionError, UnknownOption
from shmstack.options import ACCEPTED_ONLY, OPTIONS, Options, describe

README = Path(__file__).resolve().parent.parent / "README.md"


def test_defaults_accelerate_without_any_setting():
    options = Options.from_env({})
    assert (options.tcp_client_loopback, options.tcp_server_loopback) == (2, 2)
    assert options.no_fail is True
    assert options.spin_usec is None
    assert options.max_endpoints == 8192
    assert options.as_env() == {}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_default_is_in_its_own_range(name):
    option = OPTIONS[name]
    if option.default is not None:
        assert option.parse(option.format(option.default)) == option.default


@pytest.mark.parametrize(("name", "value"), [
    ("EF_TCP_CLIENT_LOOPBACK", "5"), ("EF_TCP_CLIENT_LOOPBACK", "-1"), ("EF_TCP_CLIENT_LOOPBACK", "fast"),
    ("EF_TCP_SERVER_LOOPBACK", "3"), ("EF_SHARE_WITH", "-2"), ("EF_SHARE_WITH", str(2**32 - 1)),
    ("EF_MAX_ENDPOINTS", "3"), ("EF_MAX_ENDPOINTS", str(2**21 + 1)), ("EF_NAME", "a" * 17), ("EF_NAME", "a/b"),
    ("EF_NAME", ".."), ("EF_NO_FAIL", "2"), ("EF_POLL_USEC", ""), ("EF_POLL_USEC", "-2"), ("EF_LOG", "banner,noise"),
    ("EF_FORK_NETIF", "4"), ("EF_UL_EPOLL", "1.5"), ("EF_LOAD_ENV", "maybe"),
])
def test_bad_value_names_variable_value_and_range(name, value):
    with pytest.raises(OptionError) as caught:
        Options.from_env({name: value})
    assert f"{name}={value}" in str(caught.value)
    assert OPTIONS[name].range in str(caught.value)


@pytest.mark.parametrize(("text", "number"), [("4", 4), ("0x4", 4), (" 3 ", 3), ("toconn", 2), ("ToNew", 4)])
def test_number_is_given_as_digits_or_by_its_name(text, number):
    assert Options.from_env({"EF_TCP_CLIENT_LOOPBACK": text}).tcp_client_loopback == number


def test_poll_usec_sets_spinning_everywhere_but_in_accept_and_connect():
    options = Options.from_env({"EF_POLL_USEC": "100"})
    assert options.spin_usec == 100
    assert options.buzz_usec == 100
    for where in ("tcp_recv", "tcp_send", "select", "poll", "epoll"):
        assert options.spin_ns(where) == 100_000
    assert options.spin_ns("tcp_accept") == options.spin_ns("tcp_connect") == 0


def test_poll_usec_yields_to_what_is_set_itself():
    options = Options.from_env({"EF_POLL_USEC": "500", "EF_SPIN_USEC": "7", "EF_TCP_RECV_SPIN": "0",
                                "EF_TCP_ACCEPT_SPIN": "1", "EF_BUZZ_USEC": "3"})
    assert options.spin_usec == 7
    assert options.buzz_usec == 3
    assert options.spin_ns("tcp_recv") == 0
    assert options.spin_ns("tcp_accept") == 7_000


def test_poll_usec_0_never_spins_and_minus_1_always():
    assert Options(poll_usec=0).spin_ns("tcp_recv") == 0
    assert Options(poll_usec=-1).spin_ns("tcp_recv") == -1
    assert Options(poll_usec=-1).buzz_usec == 100


def test_unset_spin_adapts():
    assert Options().spin_ns("tcp_recv") is None
    assert Options(tcp_recv_spin=False).spin_ns("tcp_recv") == 0
    assert Options(spin_usec=5).spin_ns("tcp_accept") == 5_000


@pytest.mark.parametrize(("client", "server", "becomes"), [(1, 0, 0), (2, 0, 2), (1, 1, 1), (0, 0, 0)])
def test_client_that_wants_its_own_stack_is_off_without_a_server(client, server, becomes):
    options = Options(tcp_client_loopback=client, tcp_server_loopback=server)
    assert options.tcp_client_loopback == becomes


def test_log_adds_to_the_default_and_takes_away():
    default = Options().log
    assert "banner" in default
    assert Options(log="-banner,debug").log == default - {"banner"} | {"debug"}


def test_unknown_name_warns_with_the_closest():
    with pytest.warns(UnknownOption, match="EF_TCP_CLIENT_LOOPBAK; the closest is EF_TCP_CLIENT_LOOPBACK"):
        Options.from_env({"EF_TCP_CLIENT_LOOPBAK": "1"})


@pytest.mark.parametrize("environ", [
    {"EF_WHAT": "1", "EF_VALIDATE_ENV": "0"}, {"EF_WHAT": "1", "EF_LOAD_ENV": "0"}, {"EF_MAX_PACKETS": "1"},
    {"NOT_EF": "1"}])
def test_no_warning_where_none_is_wanted(environ):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Options.from_env(environ)


def test_load_env_0_ignores_the_environment_but_not_the_caller():
    options = Options.from_env({"EF_LOAD_ENV": "0", "EF_NAME": "a", "EF_MAX_ENDPOINTS": "bad"}, share_with=-1)
    assert options.name == ""
    assert options.share_with == -1


def test_caller_wins_over_the_environment():
    assert Options.from_env({"EF_NAME": "a"}, name="b").name == "b"


def test_unknown_keyword_is_an_error():
    with pytest.raises(OptionError, match="tcp_client_lopback; the closest is EF_TCP_CLIENT_LOOPBACK"):
        Options(tcp_client_lopback=1)


def test_options_do_not_change():
    options = Options(name="a")
    with pytest.raises(AttributeError, match="replace"):
        options.name = "b"
    other = options.replace(name="b", share_with=5)
    assert (options.name, other.name, other.share_with) == ("a", "b", 5)
    assert other.replace(share_with=None) == Options(name="b")
    assert hash(Options(name="b")) == hash(other.replace(share_with=None))
    assert options != other


def test_replacing_the_meta_option_spreads_again():
    options = Options(poll_usec=10).replace(poll_usec=None)
    assert options == Options()


def _text(option):
    if isinstance(option, Flag):
        return st.sampled_from(["0", "1", "yes", "no"])
    if isinstance(option, Number):
        return st.integers(option.least, option.most).map(str)
    if isinstance(option, Words):
        signed = [sign + word for word in option.words for sign in ("", "-")]
        return st.lists(st.sampled_from(signed)).map(",".join)
    assert isinstance(option, Text)
    return st.text(option.letters or "ab /", max_size=16).filter(lambda text: text not in (".", ".."))


@given(st.fixed_dictionaries({}, optional={name: _text(option) for name, option in OPTIONS.items()
                                           if name != "EF_LOAD_ENV"}))
def test_environment_round_trip(environ):
    options = Options.from_env(environ)
    assert Options.from_env(options.as_env()) == options
    assert set(options.as_env()) == set(environ)


@given(st.sampled_from(sorted(OPTIONS)), st.text(max_size=20))
def test_any_text_is_a_value_or_an_option_error(name, text):
    try:
        value = OPTIONS[name].parse(text)
    except OptionError:
        return
    assert OPTIONS[name].parse(OPTIONS[name].format(value)) == value


def test_every_option_is_described():
    rows = {row[0]: row for row in describe()}
    assert set(rows) == set(OPTIONS)
    assert not ACCEPTED_ONLY & set(OPTIONS)
    for name, default, values, scope, doc in rows.values():
        option = OPTIONS[name]
        assert doc.endswith(".")
        assert values
        assert scope in ("stack", "process")
        assert (default == "") == (option.default in (None, ""))
        assert (option.default is None) == isinstance(option, (MaybeNumber, MaybeFlag))


def test_import_brings_in_nothing_heavy():
    code = "import sys; before = set(sys.modules); import shmstack.options; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
                         env={"PYTHONPATH": ":".join(filter(None, sys.path))}).stdout.split()
    assert not {"typing", "enum", "dataclasses", "re", "numpy", "numba", "difflib", "socket"} & set(out)


def test_readme_names_options_and_defaults_that_exist():
    rows = [line.split("|") for line in README.read_text().splitlines() if line.startswith("| EF_")]
    assert len(rows) >= 10
    for _, names, default, *_ in rows:
        for name in names.split(","):
            option = OPTIONS[name.strip()]
            text = "" if option.default is None else option.format(option.default)
            assert default.strip() == text or default.strip() == f"{text.partition(',')[0]},..."
