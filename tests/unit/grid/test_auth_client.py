from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import stat
import time
import traceback
from pathlib import Path

import cloudpickle
import pytest
from click.testing import CliRunner

from pandaflow.cli import login
from pandaflow.cli.app import app
from pandaflow.core.errors import WorkflowError
from pandaflow.grid.auth import credentials as where
from pandaflow.grid.auth.cache import CacheError, SignedIn, TokenCache, server_address
from pandaflow.grid.auth.credentials import (
    ActingFor,
    BearerToken,
    ClientCredentials,
    CredentialsError,
    Nobody,
    TokenFile,
    find_certificate,
    find_credentials,
)
from pandaflow.grid.auth.errors import IssuerUnavailable, SignInNeeded
from pandaflow.grid.auth.secret import Secret
from pandaflow.grid.auth.signin import Offer, SignIn
from pandaflow.grid.auth.web import UnsafeAddress, safe

SERVER = "https://pf.test"
WORD = "s3cr3t-w0rd"


def signed(server: str = SERVER, lifetime: float = 600.0, **changes: object) -> SignedIn:
    now = time.time()
    given = {
        "server": server, "issuer": "http://127.0.0.1:1", "client_id": "cli", "audience": "",
        "access": Secret("first"), "refresh": Secret(WORD), "obtained": now,
        "expires": now + lifetime, **changes,
    }  # fmt: skip
    return SignedIn(**given)  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "config" / "tokens")


# --- secrets ----------------------------------------------------------------------------


def test_a_secret_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    one = Secret(WORD)
    logging.getLogger("test").warning("%s %r", one, [one])
    shown = [str(one), repr(one), f"{one} {one!r} {one:>20}", repr({"a": (one,)}), caplog.text]
    shown += [repr(signed()), repr(BearerToken(one).__dict__), "".join(map(str, [one]))]
    assert not any(WORD in text for text in shown)
    assert one.reveal() == WORD


@pytest.mark.parametrize("dump", [pickle.dumps, cloudpickle.dumps, copy.deepcopy])
def test_a_secret_does_not_travel(dump: object) -> None:
    with pytest.raises(TypeError, match="not pickled") as caught:
        dump({"a": Secret(WORD)})  # type: ignore[operator]
    assert WORD not in "".join(traceback.format_exception(caught.value))


def test_secrets_compare_by_value() -> None:
    assert Secret("ü") == Secret("ü") != Secret("a")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")


# --- addresses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["https://pf.test", "http://localhost:1", "http://127.0.0.2/x", "http://[::1]:9"]
)
def test_safe_addresses(url: str) -> None:
    assert safe(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://pf.test", "pf.test", "ftp://pf.test", "file:///etc/passwd", "", "https://",
        "http://localhost.evil.test", "http://127.0.0.1.evil.test", "https://me:pw@pf.test",
        "http://[::1", "http://0177.0.0.1", "http://localhost@evil.test",
    ],
)  # fmt: skip
def test_addresses_that_would_give_secrets_away_are_refused(url: str) -> None:
    with pytest.raises(UnsafeAddress) as caught:
        safe(url)
    assert "pw" not in str(caught.value)


def test_a_server_has_one_address() -> None:
    same = {"https://PF.test/", "https://pf.test", " https://pf.test?x=1#y"}
    assert {server_address(url) for url in same} == {"https://pf.test"}
    assert server_address("https://pf.test/Flow/") == "https://pf.test/Flow"


# --- files ------------------------------------------------------------------------------


def test_sign_ins_are_for_their_users_eyes_only(cache: TokenCache) -> None:
    old = os.umask(0)
    try:
        cache.write(signed())
        with cache.locked(SERVER):
            pass
    finally:
        os.umask(old)
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in cache.folder.iterdir()}
    assert modes == {".json": 0o600, ".lock": 0o600}
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_what_is_written_is_read(cache: TokenCache) -> None:
    one, two = signed(), signed("https://other.test", refresh=None)
    cache.write(one)
    cache.write(two)
    assert (cache.read(SERVER), cache.read("https://other.test")) == (one, two)
    assert cache.read("https://third.test") is None
    assert cache.servers() == ["https://other.test", SERVER]
    cache.remove(SERVER)
    cache.remove(SERVER)
    assert cache.read(SERVER) is None


def test_a_file_that_others_can_use_is_refused(cache: TokenCache) -> None:
    cache.write(signed())
    (path,) = cache.folder.glob("*.json")
    path.chmod(0o640)
    with pytest.raises(CacheError, match=r"others can use .*pandaflow login"):
        cache.read(SERVER)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"server": 1}', "null"])
def test_a_damaged_file_is_told(cache: TokenCache, text: str) -> None:
    cache.write(signed())
    (path,) = cache.folder.glob("*.json")
    path.write_text(text)
    with pytest.raises(CacheError, match=r"damaged: .*pandaflow login"):
        cache.read(SERVER)


def test_a_failed_write_leaves_the_old_one_and_no_other_file(cache: TokenCache) -> None:
    cache.write(signed())
    before = sorted(cache.folder.iterdir())
    (path,) = cache.folder.glob("*.json")
    path.unlink()
    path.mkdir()  # cannot be replaced by a file
    with pytest.raises(CacheError, match="cannot write"):
        cache.write(signed())
    assert sorted(cache.folder.iterdir()) == before


def test_the_configuration_folder_is_respected(tmp_path: Path) -> None:
    found = TokenCache(environ={"XDG_CONFIG_HOME": str(tmp_path)}).folder
    assert found == tmp_path / "pandaflow" / "tokens"
    home = Path.home() / ".config" / "pandaflow" / "tokens"
    assert TokenCache(environ={"XDG_CONFIG_HOME": "relative"}).folder == home


@pytest.mark.parametrize(
    ("lifetime", "margin"), [(3600.0, 60.0), (240.0, 60.0), (40.0, 10.0), (4.0, 1.0)]
)
def test_tokens_are_renewed_before_they_expire(lifetime: float, margin: float) -> None:
    one = signed(lifetime=lifetime)
    assert one.lasts(one.expires - margin - 0.1)
    assert not one.lasts(one.expires - margin + 0.1)


# --- which credentials ------------------------------------------------------------------


def bearer(found: where.Credentials) -> str:
    return found.header().get("Authorization", "")


def test_what_was_made_for_the_server_comes_first(cache: TokenCache, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    environ = {
        "PANDAFLOW_TOKEN": "own", "PANDAFLOW_TOKEN_FILE": str(file), "BEARER_TOKEN": "session",
        "XDG_RUNTIME_DIR": str(tmp_path),
    }  # fmt: skip
    cache.write(signed())
    found = []
    for name in ("PANDAFLOW_TOKEN", "PANDAFLOW_TOKEN_FILE", "", "BEARER_TOKEN"):
        found.append(bearer(find_credentials(SERVER, environ, cache)))
        environ.pop(name, None)
        if not name:
            cache.remove(SERVER)
    assert found == ["Bearer own", "Bearer from-file", "Bearer first", "Bearer session"]


def test_a_sign_in_goes_to_its_server_only(cache: TokenCache, tmp_path: Path) -> None:
    cache.write(signed())
    environ = {"BEARER_TOKEN": "other"}
    assert bearer(find_credentials("https://pf.test.evil", environ, cache)) == "Bearer other"
    assert bearer(find_credentials(SERVER + "/", environ, cache)) == "Bearer first"


def test_a_client_of_its_own(cache: TokenCache, tmp_path: Path) -> None:
    environ = {"PANDAFLOW_CLIENT_ID": "pilots"}
    with pytest.raises(CredentialsError, match="set PANDAFLOW_ISSUER"):
        find_credentials(SERVER, environ, cache)
    environ |= {"PANDAFLOW_ISSUER": "http://127.0.0.1:1", "PANDAFLOW_CLIENT_SECRET": WORD}
    found = find_credentials(SERVER, environ, cache)
    assert isinstance(found, ClientCredentials)
    with pytest.raises(IssuerUnavailable) as caught:
        found.header()
    assert WORD not in "".join(traceback.format_exception(caught.value))
    missing = ClientCredentials("http://127.0.0.1:1", "pilots", tmp_path / "missing")
    with pytest.raises((CredentialsError, IssuerUnavailable)):
        missing.header()


def test_files_of_the_session_are_found(
    cache: TokenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"bt_u{os.geteuid()}").write_text("runtime")
    (tmp_path / "given").write_text("given")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "BEARER_TOKEN_FILE": str(tmp_path / "given")}
    assert bearer(find_credentials(SERVER, environ, cache)) == "Bearer given"
    del environ["BEARER_TOKEN_FILE"]
    assert bearer(find_credentials(SERVER, environ, cache)) == "Bearer runtime"


def test_a_file_that_somebody_else_has_put_there_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / f"bt_u{os.geteuid()}"
    assert not where._is_mine(path)
    path.symlink_to("/etc/hostname")
    path2 = tmp_path / "mine"
    path2.write_text("x")
    assert where._is_mine(path2)
    if os.geteuid() == 0:
        os.chown(path2, 12345, -1)
        assert not where._is_mine(path2)


def test_certificates_are_found_where_grid_tools_look() -> None:
    environ = {"X509_USER_CERT": "/c.pem", "X509_USER_KEY": "/k.pem"}
    assert find_certificate(environ) == (Path("/c.pem"), Path("/k.pem"))
    environ["X509_USER_PROXY"] = "/p.pem"
    assert find_certificate(environ) == (Path("/p.pem"), Path("/p.pem"))
    usual = Path(f"/tmp/x509up_u{os.geteuid()}")
    assert find_certificate({}) == ((usual, usual) if usual.exists() else None)


def test_nobody_and_the_vo(cache: TokenCache, tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "PANDAFLOW_VO": "atlas.production"}
    if Path(f"/tmp/bt_u{os.geteuid()}").exists():
        pytest.skip("there is a token of this session")
    found = find_credentials(SERVER, environ, cache)
    assert isinstance(found, ActingFor)
    assert found.header() == {"X-Pandaflow-VO": "atlas.production"}
    del environ["PANDAFLOW_VO"]
    assert isinstance(find_credentials(SERVER, environ, cache), Nobody)


def test_no_token_travels_in_clear(cache: TokenCache) -> None:
    with pytest.raises(UnsafeAddress, match="https://"):
        find_credentials("http://pf.test", {"PANDAFLOW_TOKEN": WORD}, cache)


@pytest.mark.parametrize("text", ["", " \n", "a b", "a\r\nX-Evil: 1", "ü", "\x00"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(CredentialsError, match="token holds no token") as caught:
        TokenFile(tmp_path / "token").header()
    assert not text.strip() or text not in str(caught.value)


def test_a_renewed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    found = TokenFile(path)
    assert bearer(found) == "Bearer one"
    (tmp_path / "new").write_text("two")
    os.replace(tmp_path / "new", path)
    assert bearer(found) == "Bearer two"
    path.unlink()
    with pytest.raises(CredentialsError, match="cannot read"):
        found.header()


def test_without_a_sign_in_the_way_is_told(cache: TokenCache) -> None:
    with pytest.raises(SignInNeeded, match=f"pandaflow login {SERVER}"):
        SignIn(SERVER, cache).header()


def test_a_token_is_used_while_the_issuer_is_away(cache: TokenCache) -> None:
    old = time.time() - 590
    cache.write(signed(obtained=old, expires=old + 600))
    assert bearer(SignIn(SERVER, cache)) == "Bearer first"
    cache.write(signed(obtained=old - 100, expires=old + 500))
    with pytest.raises(IssuerUnavailable) as caught:
        SignIn(SERVER, cache).header()
    assert WORD not in "".join(traceback.format_exception(caught.value))


def test_the_file_holds_what_it_must(cache: TokenCache) -> None:
    cache.write(signed())
    (path,) = cache.folder.glob("*.json")
    assert json.loads(path.read_text())["access_token"] == "first"


# --- the command line -------------------------------------------------------------------

OFFERS = [Offer(issuer=f"https://{name}.test", client_id="cli") for name in ("a", "b")]


def test_the_only_issuer_need_not_be_named() -> None:
    assert login._choose(SERVER, OFFERS[:1], None) is OFFERS[0]
    assert login._choose(SERVER, OFFERS, "https://b.test") is OFFERS[1]


@pytest.mark.parametrize(
    ("offers", "issuer", "said"),
    [
        (OFFERS, None, "--issuer: https://a.test, https://b.test"),
        (OFFERS, "https://c.test", "--issuer: https://a.test, https://b.test"),
        ([], None, "nobody signs in at https://pf.test"),
    ],
)
def test_an_issuer_must_be_clear(offers: list[Offer], issuer: str | None, said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        login._choose(SERVER, offers, issuer)


@pytest.mark.parametrize("command", ["login", "logout", "whoami"])
def test_commands_ask_for_a_server(command: str, tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path), "PANDAFLOW_SERVER": ""}
    result = CliRunner().invoke(app, [command], env=env)
    assert result.exit_code == 2
    assert "pandaflow login" in result.output


def test_one_of_several_sign_ins_is_to_be_named(tmp_path: Path) -> None:
    kept = TokenCache(environ={"XDG_CONFIG_HOME": str(tmp_path)})
    for server in ("https://a.test", "https://b.test"):
        kept.write(signed(server))
    env = {"XDG_CONFIG_HOME": str(tmp_path), "PANDAFLOW_SERVER": ""}
    result = CliRunner().invoke(app, ["logout"], env=env)
    assert "name one of https://a.test, https://b.test" in result.output
    result = CliRunner().invoke(app, ["logout", "https://a.test/"], env=env)
    assert result.output == "signed out at https://a.test/\n"
    assert kept.servers() == ["https://b.test"]
