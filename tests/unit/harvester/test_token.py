"""The pilots' token, of a real OpenID Connect provider."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pandaflow.harvester.settings import ConfigError, parse_config
from pandaflow.harvester.token import PilotClient, PilotToken
from pandaflow.testing.oidc.environment import OidcMissing
from pandaflow.testing.oidc.provider import AUDIENCE, PILOTS, OidcProvider

CONFIG = """
[harvester]
server = "http://127.0.0.1:1"
{more}
[harvester.pilot_client]
issuer = "https://iam.example.org/"
client_id = "pilots"
secret_file = "/none"
[queues.q.local]
"""


def test_a_client_needs_a_place_for_its_token() -> None:
    with pytest.raises(ConfigError, match="line 2, harvester: pilot_client needs pilot_token_fi"):
        parse_config(CONFIG.format(more=""))
    settings = parse_config(CONFIG.format(more='pilot_token_file = "/shared/token"'))
    assert settings.harvester.pilot_client is not None


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    try:
        provider = OidcProvider()
    except OidcMissing as error:
        pytest.skip(str(error))
    with provider:
        yield provider


@pytest.mark.very_slow
def test_a_token_is_written_and_renewed(
    provider: OidcProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, path = tmp_path / "secret", tmp_path / "shared" / "token"
    client = PilotClient(
        issuer=provider.issuer,
        client_id=PILOTS,
        secret_file=secret,
        audience=AUDIENCE,
        scopes="pf.pilot",
    )
    caplog.set_level(logging.WARNING, "pandaflow.harvester")
    token = PilotToken(client, path)
    for _ in range(2):
        token.renew()
    assert len(caplog.records) == 1 and "cannot read" in caplog.text and not path.exists()
    secret.write_text(provider.secret)
    token.renew()
    first = path.read_text()
    assert first.count(".") == 2 and path.stat().st_mode & 0o777 == 0o600
    token.renew()
    assert path.read_text() == first, "it is good for a while"
    PilotToken(client, path).renew()
    assert path.read_text() != first
    assert [each.name for each in path.parent.iterdir()] == ["token"]
    assert provider.secret not in caplog.text and first.strip() not in caplog.text
