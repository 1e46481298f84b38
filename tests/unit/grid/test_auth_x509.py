from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from pandaflow.grid.auth.errors import Unauthenticated
from pandaflow.grid.auth.x509 import identify, subject_words
from tests.unit.grid.auth_certificates import Authority, name

NOW = time.time()
ALICE = "/DC=org/DC=example/CN=Alice"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def test_a_users_certificate_is_its_subject(authority: Authority) -> None:
    found = identify(authority.issue().chain, NOW)
    assert (found.subject, found.name) == (ALICE, "Alice")
    assert found.expires > NOW


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_proxy_stands_for_whom_it_was_made_by(authority: Authority, depth: int) -> None:
    one = authority.issue()
    for number in range(depth):
        one = one.proxy(number=str(number))
    assert identify(one.chain, NOW).subject == ALICE


def test_somebody_elses_certificate_in_the_chain_changes_nothing(authority: Authority) -> None:
    mallory = authority.issue(("DC", "org"), ("CN", "Mallory"))
    leaf, own = mallory.proxy().chain
    victim = authority.issue().chain[0]
    assert identify([leaf, victim, own], NOW).subject == "/DC=org/CN=Mallory"


def test_a_proxy_that_only_names_its_signer_is_refused(authority: Authority) -> None:
    alice, forger = authority.issue(), Authority("Forger").issue()
    forged = forger.proxy().chain[0]
    with pytest.raises(Unauthenticated, match="nobody of the chain has signed the proxy"):
        identify([forged, *alice.chain], NOW)


def test_a_proxy_without_its_chain_is_refused(authority: Authority) -> None:
    with pytest.raises(Unauthenticated, match="with its whole chain"):
        identify(authority.issue().proxy().chain[:1], NOW)


def test_an_authority_is_nobody(authority: Authority) -> None:
    with pytest.raises(Unauthenticated, match="an authority's"):
        identify([authority.certificate.public_bytes(Encoding.DER)], NOW)


def test_what_expires_while_a_connection_is_open_is_refused(authority: Authority) -> None:
    chain = authority.issue().proxy().chain
    expires = identify(chain, NOW).expires
    with pytest.raises(Unauthenticated, match="expired: renew it"):
        identify(chain, expires)
    with pytest.raises(Unauthenticated, match="not valid yet"):
        identify(chain, NOW - 1e7)


@pytest.mark.parametrize("chain", [[], [b""], [b"nonsense"], [b"\x30\x03\x02\x01\x01"]])
def test_nonsense_is_refused(chain: list[bytes]) -> None:
    with pytest.raises(Unauthenticated):
        identify(chain, NOW)


def test_a_value_cannot_pretend_to_be_two() -> None:
    one = subject_words(name(("DC", "org"), ("CN", "x/CN=admin")))
    two = subject_words(name(("DC", "org"), ("CN", "x"), ("CN", "admin")))
    assert one == r"/DC=org/CN=x\/CN=admin"
    assert two == "/DC=org/CN=x/CN=admin"


def test_control_characters_in_a_subject_are_refused() -> None:
    with pytest.raises(Unauthenticated, match="cannot be printed"):
        subject_words(name(("CN", "a\x1b[2J")))
