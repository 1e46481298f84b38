from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from jwt.algorithms import RSAAlgorithm

from pandaflow.grid.auth import verify
from pandaflow.grid.auth.errors import IssuerUnavailable, Unauthenticated
from pandaflow.grid.auth.keys import FRESH, KEEP, PAUSE, KeySet, PublicKey, parse_keys
from pandaflow.grid.auth.policy import Policy, parse_policy
from pandaflow.grid.auth.verify import LEEWAY, Authenticator
from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.testing.oidc.provider import SigningKey
from tests.unit.grid.auth_certificates import Authority

NOW = time.time()
AUDIENCE = "https://pf.test"


class IssuerServer(ThreadingHTTPServer):
    """Metadata and keys over HTTP; counts the questions."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        self.down = False
        self.metadata = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}


class Answers(BaseHTTPRequestHandler):
    server: IssuerServer

    def do_GET(self) -> None:
        self.server.asked += self.path == "/keys"
        found = {"keys": self.server.keys} if self.path == "/keys" else self.server.metadata
        body = json.dumps(found).encode()
        self.send_response(503 if self.server.down else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey()


@pytest.fixture
def issuer(key: SigningKey) -> Iterator[IssuerServer]:
    server = IssuerServer()
    server.keys = [public(key)]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def public(key: SigningKey, **changes: Any) -> dict[str, Any]:
    secret = {"d", "p", "q", "dp", "dq", "qi"}
    found = {name: value for name, value in key.jwk().items() if name not in secret}
    return {**found, **changes}


def policy(issuer: IssuerServer, more: str = "") -> Policy:
    return parse_policy(
        f'[[issuers]]\nname = "iam"\nissuer = "{issuer.url}"\naudience = ["{AUDIENCE}"]\n'
        '[[rules]]\nissuer = "iam"\ngroups = ["/atlas"]\nvo = "atlas"\nroles = ["user"]\n'
        '[[rules]]\ncertificates = ["/DC=org/*"]\nvo = "atlas"\nroles = ["operator"]\n' + more
    )


def claims(issuer: IssuerServer, **changes: Any) -> dict[str, Any]:
    found = {
        "iss": issuer.url, "sub": "alice", "aud": AUDIENCE, "iat": NOW, "exp": NOW + 600,
        "groups": ["atlas"], "name": "Alice", **changes,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def call(judge: Authenticator, token: str, now: float = NOW, origin: str | None = None) -> Actor:
    return judge.authenticate(f"Bearer {token}", origin, None, now)


def refused(judge: Authenticator, token: str, match: str, now: float = NOW) -> None:
    """The token is refused, for a reason, by an answer that does not hold it."""
    with pytest.raises(Unauthenticated, match=match) as caught:
        call(judge, token, now)
    for piece in [token, *token.split(".")]:
        assert not piece or piece not in str(caught.value) + caught.value.challenge
    assert 'error="invalid_token"' in caught.value.challenge


def test_a_good_token_is_somebody(issuer: IssuerServer, key: SigningKey) -> None:
    judge = Authenticator(policy(issuer))
    who = call(judge, key.sign(claims(issuer)))
    assert who == Actor(f"{issuer.url}#alice", "Alice", "atlas", frozenset({"user"}))


@pytest.mark.parametrize("typ", ["at+jwt", "application/at+jwt", "JWT", "jwt", None])
def test_access_tokens_are_of_some_types(issuer: IssuerServer, key: SigningKey, typ: Any) -> None:
    call(Authenticator(policy(issuer)), key.sign(claims(issuer), {"typ": typ}))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_keys_of_both_kinds_do(issuer: IssuerServer, algorithm: str) -> None:
    key = SigningKey(algorithm)
    issuer.keys = [public(key)]
    call(Authenticator(policy(issuer)), key.sign(claims(issuer)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": NOW - LEEWAY - 1}, "expired; sign in again"),
        ({"exp": None}, "no claim 'exp'"),
        ({"exp": float("nan")}, "'exp' is no time"),
        ({"exp": "soon"}, "'exp' is no time"),
        ({"exp": True}, "'exp' is no time"),
        ({"nbf": NOW + LEEWAY + 5}, "not valid yet: set the clocks"),
        ({"iat": NOW + LEEWAY + 5}, "not valid yet"),
        ({"aud": "https://else.test"}, "ask for the audience https://pf.test"),
        ({"aud": ["a", "b"]}, "ask for the audience"),
        ({"aud": None}, "no claim 'aud'"),
        ({"iss": "https://else.test"}, "are not taken here"),
        ({"iss": None}, "are not taken here"),
        ({"iss": ["x"]}, "are not taken here"),
        ({"sub": None}, "no claim 'sub'"),
        ({"sub": 7}, "signature|'sub' is no name"),
        ({"sub": "a\nb"}, "'sub' is no name"),
        ({"sub": "x" * 256}, "'sub' is no name"),
    ],
)
def test_bad_claims_are_refused(
    issuer: IssuerServer, key: SigningKey, changes: dict[str, Any], said: str
) -> None:
    refused(Authenticator(policy(issuer)), key.sign(claims(issuer, **changes)), said)


def test_claims_of_any_form_make_no_other_error(issuer: IssuerServer, key: SigningKey) -> None:
    judge = Authenticator(policy(issuer))
    odd: list[Any] = [{"a": 1}, [[1]], 5, True, "", 1e400, ["\x00"], {"0": None}, -1]
    for name in ("exp", "nbf", "iat", "aud", "iss", "sub", "groups", "scope", "name", "azp"):
        for value in odd:
            try:
                call(judge, key.sign(claims(issuer, **{name: value})))
            except (Unauthenticated, Forbidden):
                continue
            assert name in {"nbf", "iat", "scope", "name", "azp"}, (name, value)


def unsigned(header: dict[str, Any], body: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(body).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "HS512", "RS1", None, 5, ["RS256"]])
def test_other_algorithms_are_refused(issuer: IssuerServer, key: SigningKey, alg: Any) -> None:
    token = unsigned({"alg": alg, "kid": key.kid, "typ": "at+jwt"}, claims(issuer), b"x")
    refused(Authenticator(policy(issuer)), token, "does not take|no JWT")


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", 5])
def test_other_types_are_refused(issuer: IssuerServer, key: SigningKey, typ: Any) -> None:
    body = claims(issuer)
    token = unsigned({"alg": "RS256", "kid": key.kid, "typ": typ}, body, b"x")
    refused(Authenticator(policy(issuer)), token, "use an access token")


@pytest.mark.parametrize("token", ["x", "a.b.c", "...", "ey.ey.ey", "é", "x" * 20_000])
def test_nonsense_is_refused(issuer: IssuerServer, token: str) -> None:
    with pytest.raises(Unauthenticated):
        call(Authenticator(policy(issuer)), token)
    assert issuer.asked == 0


def test_a_key_in_the_token_itself_is_not_used(issuer: IssuerServer, key: SigningKey) -> None:
    own = SigningKey()
    for header in ({"jwk": public(own)}, {"jku": f"{issuer.url}/mine"}, {}):
        token = own.sign(claims(issuer), {"kid": key.kid, **header})
        refused(Authenticator(policy(issuer)), token, "signature is not its issuer's")


def test_without_an_id_the_only_key_that_suits_is_used(
    issuer: IssuerServer, key: SigningKey
) -> None:
    issuer.keys = [public(key, kid=""), public(SigningKey("ES256"))]
    token = jwt.encode(claims(issuer), key.private, "RS256")
    call(Authenticator(policy(issuer)), token)
    issuer.keys.append(public(SigningKey()))
    refused(Authenticator(policy(issuer)), token, "no key of")


def test_what_is_shown_otherwise_is_told(issuer: IssuerServer) -> None:
    judge = Authenticator(policy(issuer))
    with pytest.raises(Unauthenticated, match="pandaflow login") as silent:
        judge.authenticate(None, None, None, NOW)
    assert silent.value.challenge == 'Bearer realm="pandaflow"'
    with pytest.raises(Unauthenticated, match="bearer tokens only") as basic:
        judge.authenticate("Basic c2VjcmV0", None, None, NOW)
    assert "c2VjcmV0" not in str(basic.value)


def test_challenges_are_one_header(issuer: IssuerServer, key: SigningKey) -> None:
    token = key.sign(claims(issuer, iss='https://a"\r\nSet-Cookie: x=ü'))
    with pytest.raises(Unauthenticated) as caught:
        call(Authenticator(policy(issuer)), token)
    words = caught.value.challenge
    assert words.isascii() and words.isprintable()
    assert words.count('"') == 6


def test_certificates_are_somebody_and_tokens_come_first(
    issuer: IssuerServer, key: SigningKey
) -> None:
    judge, chain = Authenticator(policy(issuer)), Authority().issue().proxy().chain
    who = judge.authenticate(None, None, chain, NOW)
    assert (who.subject, who.roles) == ("/DC=org/DC=example/CN=Alice", {"operator"})
    token = key.sign(claims(issuer))
    assert judge.authenticate(f"bearer {token}", None, chain, NOW).roles == {"user"}
    assert judge.known(None, None, chain, NOW) == who
    with pytest.raises(Unauthenticated, match="expired"):
        judge.authenticate(None, None, chain, NOW + 30 * 86_400)


def test_a_chain_is_not_mistaken_for_another_cut_otherwise(issuer: IssuerServer) -> None:
    judge, chain = Authenticator(policy(issuer)), Authority().issue().proxy().chain
    judge.authenticate(None, None, chain, NOW)
    assert judge.known(None, None, [chain[0] + chain[1]], NOW) is None


def test_denied_subjects_are_refused(issuer: IssuerServer, key: SigningKey) -> None:
    alice = "/DC=org/DC=example/CN=Alice"
    more = f'[deny]\nsubjects = ["{issuer.url}#alice", "{alice}"]\n'
    judge = Authenticator(policy(issuer))
    token, chain = key.sign(claims(issuer)), Authority().issue().chain
    call(judge, token)
    judge.authenticate(None, None, chain, NOW)
    judge.replace(policy(issuer, more))
    refused(judge, token, "deny list")
    with pytest.raises(Unauthenticated, match="deny list"):
        judge.authenticate(None, None, chain, NOW)
    call(judge, key.sign(claims(issuer, sub="alice2")))
    assert issuer.asked == 1  # keys are kept


def test_known_ones_cost_no_signature(
    issuer: IssuerServer, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, token = Authenticator(policy(issuer)), key.sign(claims(issuer))
    assert judge.known(f"Bearer {token}", None, None, NOW) is None
    who = call(judge, token)

    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(verify.jwt, "decode", never)
    assert judge.known(f"Bearer {token}", None, None, NOW) == who
    assert call(judge, token) == who
    with pytest.raises(Forbidden, match="cms"):
        judge.known(f"Bearer {token}", "cms", None, NOW)


def test_what_is_remembered_expires(issuer: IssuerServer, key: SigningKey) -> None:
    judge, token = Authenticator(policy(issuer)), key.sign(claims(issuer, exp=NOW + 100))
    call(judge, token)
    late = NOW + 100 + LEEWAY
    assert judge.known(f"Bearer {token}", None, None, late - 1) is not None
    assert judge.known(f"Bearer {token}", None, None, late) is None
    refused(judge, token, "expired", late)


def test_no_more_is_remembered_than_fits(
    issuer: IssuerServer, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "REMEMBERED", 4)
    judge = Authenticator(policy(issuer))
    tokens = [key.sign(claims(issuer, sub=f"u{number}")) for number in range(9)]
    for token in tokens:
        call(judge, token)
    known = [judge.known(f"Bearer {token}", None, None, NOW) is not None for token in tokens]
    assert sum(known) <= 4
    assert known[-1]


# --- keys -------------------------------------------------------------------------------


def test_a_withdrawn_key_is_refused_after_a_refresh(issuer: IssuerServer, key: SigningKey) -> None:
    judge, token = Authenticator(policy(issuer)), key.sign(claims(issuer, exp=NOW + 9e4))
    call(judge, token)
    new = SigningKey()
    issuer.keys = [public(new)]
    assert judge.known(f"Bearer {token}", None, None, NOW + FRESH + 1) is None
    refused(judge, token, "its key was withdrawn", NOW + FRESH + 1)
    call(judge, new.sign(claims(issuer, exp=NOW + 9e4)), NOW + FRESH + 1)


def test_another_key_of_the_same_name_is_another(issuer: IssuerServer, key: SigningKey) -> None:
    judge, token = Authenticator(policy(issuer)), key.sign(claims(issuer))
    call(judge, token)
    issuer.keys = [public(SigningKey(), kid=key.kid)]
    refused(judge, token, "signature is not", NOW + FRESH + 1)


def test_a_new_key_is_fetched_at_most_once_a_minute(issuer: IssuerServer, key: SigningKey) -> None:
    judge, new = Authenticator(policy(issuer)), SigningKey()
    call(judge, key.sign(claims(issuer)))
    token = new.sign(claims(issuer))
    for number in range(20):
        refused(judge, token, "no key of", NOW + number)
    assert issuer.asked == 1
    issuer.keys.append(public(new))
    call(judge, token, NOW + PAUSE)
    assert issuer.asked == 2
    for number in range(20):
        refused(judge, SigningKey("ES256").sign(claims(issuer)), "no key of", NOW + PAUSE + number)
    assert issuer.asked == 2


def test_an_issuer_may_be_away_for_a_while(issuer: IssuerServer, key: SigningKey) -> None:
    judge, token = Authenticator(policy(issuer)), key.sign(claims(issuer, exp=NOW + 9e4))
    call(judge, token)
    issuer.down = True
    call(judge, token, NOW + KEEP - 1)
    call(judge, key.sign(claims(issuer, sub="bob", exp=NOW + 9e4)), NOW + KEEP - 1)
    with pytest.raises(IssuerUnavailable, match=r"cannot be had: .*503.*try again later"):
        call(judge, token, NOW + KEEP + PAUSE)
    issuer.down = False
    call(judge, token, NOW + KEEP + 2 * PAUSE)


def test_an_issuer_that_never_answered_is_asked_again_soon(
    issuer: IssuerServer, key: SigningKey
) -> None:
    judge, token = Authenticator(policy(issuer)), key.sign(claims(issuer))
    issuer.down = True
    for number in range(3):
        with pytest.raises(IssuerUnavailable):
            call(judge, token, NOW + number)
    issuer.down = False
    call(judge, token, NOW + 6)


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://else.test", "jwks_uri": "{url}/keys"},
        {"issuer": "{url}"},
        {"issuer": "{url}", "jwks_uri": "http://example.test/keys"},
        {"issuer": "{url}", "jwks_uri": "file:///etc/passwd"},
    ],
)
def test_metadata_that_are_no_good_give_no_keys(
    issuer: IssuerServer, key: SigningKey, metadata: dict[str, str]
) -> None:
    issuer.metadata = {k: v.replace("{url}", issuer.url) for k, v in metadata.items()}
    with pytest.raises(IssuerUnavailable):
        call(Authenticator(policy(issuer)), key.sign(claims(issuer)))
    assert issuer.asked == 0


def test_keys_that_are_not_fit_are_left_out(key: SigningKey) -> None:
    weak = RSAAlgorithm.to_jwk(generate_private_key(65537, 1024).public_key(), as_dict=True)
    unfit: list[Any] = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "s"},
        key.jwk(),
        public(key, use="enc"),
        {**weak, "key_ops": ["verify"]},
        {"kty": "RSA"},
        {"kty": "RSA", "n": 5, "e": []},
        {"kty": "EC", "crv": "P-1", "x": "", "y": ""},
        {},
        "text",
    ]
    assert parse_keys({"keys": unfit}) == ()
    assert len(parse_keys({"keys": [*unfit, public(key)]})) == 1


def test_many_threads_ask_once() -> None:
    asked, gate = [], threading.Barrier(8)

    def fetch(issuer: str) -> tuple[PublicKey, ...]:
        asked.append(issuer)
        time.sleep(0.05)
        return (PublicKey("a", "RSA", "", "thumb", None),)

    keys = KeySet("https://iam.test", fetch)

    def find() -> None:
        gate.wait()
        assert keys.find("a", "RS256", NOW) is not None

    threads = [threading.Thread(target=find) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
