from __future__ import annotations

from pathlib import Path

import pytest

from pandaflow.grid.auth.errors import PolicyError
from pandaflow.grid.auth.policy import EXAMPLE, Identity, choose, load_policy, parse_policy
from pandaflow.grid.identity import Forbidden

ISSUER = """\
[[issuers]]
name = "iam"
issuer = "https://iam.test"
audience = ["https://pf.test"]
"""
RULE = """\
[[rules]]
issuer = "iam"
groups = ["/atlas"]
vo = "atlas"
roles = ["user"]
"""


def by_token(**changes: object) -> Identity:
    given = {"subject": "https://iam.test#x", "name": "X", "issuer": "iam", "local": "x"}
    return Identity(**{**given, **changes})  # type: ignore[arg-type]


def test_the_example_is_a_policy() -> None:
    policy = parse_policy(EXAMPLE)
    assert policy.roles(by_token(groups=("/atlas", "/atlas/production"))) == {
        "atlas": {"user", "production"}
    }
    harvester = "/DC=org/DC=example/OU=Robots/CN=harvester"
    assert policy.roles(Identity(harvester, "harvester")) == {"atlas": {"operator", "user"}}
    assert policy.offers()["issuers"][0]["client_id"] == "pandaflow-cli"


def test_the_page_shows_the_example() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "policy.md"
    assert f"```toml\n{EXAMPLE}```\n" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("group", ["/atlas", "atlas"])
def test_groups_are_the_same_with_and_without_a_slash(group: str) -> None:
    assert parse_policy(ISSUER + RULE).roles(by_token(groups=(group,))) == {"atlas": {"user"}}


@pytest.mark.parametrize(
    "who",
    [
        by_token(groups=("/atlas2",)),
        by_token(groups=("/atlas/production",)),
        by_token(groups=("/ATLAS",)),
        by_token(groups=("/atlas",), issuer="other"),
        by_token(scopes=("/atlas",)),
        Identity("/CN=iam", "iam", groups=("/atlas",)),
    ],
)
def test_whom_a_rule_is_not_about_gets_nothing(who: Identity) -> None:
    assert parse_policy(ISSUER + RULE).roles(who) == {}


def test_all_conditions_of_a_rule_must_hold() -> None:
    rule = '[[rules]]\nissuer = "iam"\nclients = ["a", "b"]\nscopes = ["pf.pilot"]\n'
    policy = parse_policy(ISSUER + rule + 'vo = "cms"\nroles = ["pilot"]\n')
    assert policy.roles(by_token(client="b", scopes=("x", "pf.pilot"))) == {"cms": {"pilot"}}
    assert policy.roles(by_token(client="b")) == {}
    assert policy.roles(by_token(client="c", scopes=("pf.pilot",))) == {}


@pytest.mark.parametrize(
    ("subject", "fits"),
    [
        ("/DC=org/OU=Ops/CN=a", True),
        ("/DC=org/OU=Ops/CN=a/CN=b", True),
        ("/DC=org/OU=Ops", False),
        ("/DC=org/OU=Ops/", False),
        ("/DC=org/OU=Opsy/CN=a", False),
    ],
)
def test_a_star_stands_for_what_is_below(subject: str, fits: bool) -> None:
    text = '[[rules]]\ncertificates = ["/DC=org/OU=Ops/*"]\nvo = "ops"\nroles = ["operator"]\n'
    assert bool(parse_policy(text).roles(Identity(subject, ""))) is fits
    assert not parse_policy(text).roles(Identity(subject, "", issuer="iam"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ISSUER + RULE + "vo = [", r"p\.toml, line 10: "),
        (ISSUER + RULE.replace("user", "root"), r"p\.toml, line 9, rules\[1\]\.roles\[1\]: "),
        (ISSUER + RULE + 'grups = ["x"]\n', r"line 10, rules\[1\]\.grups: Extra inputs"),
        (ISSUER + RULE.replace('vo = "atlas"\n', ""), r"line 5, rules\[1\]\.vo: Field required"),
        (ISSUER + RULE + RULE.replace('"user"', ""), r"line 14, rules\[2\]\.roles: "),
        (ISSUER + RULE.replace("iam", "nobody"), r"no issuer is named 'nobody' \(iam\)"),
        (ISSUER + RULE.replace('groups = ["/atlas"]\n', ""), "give an issuer with subjects"),
        (ISSUER + RULE.replace('issuer = "iam"\n', ""), "give an issuer with subjects"),
        (ISSUER + RULE + 'certificates = ["/CN=x"]\n', "make two"),
        (ISSUER.replace("https", "http") + RULE, r"line 3, issuers\[1\]\.issuer: .*https://"),
        (ISSUER + 'algorithms = ["HS256"]\n' + RULE, r"line 5, issuers\[1\]\.algorithms\[1\]"),
        (ISSUER + 'algorithms = ["none"]\n' + RULE, r"issuers\[1\]\.algorithms\[1\]"),
        (ISSUER.replace('["https://pf.test"]', "[]") + RULE, r"line 4, issuers\[1\]\.audience"),
        (ISSUER + ISSUER + RULE, "same name or address"),
        (ISSUER, "rules: Field required"),
        (RULE.replace('"atlas"', '"a\\u001bb"'), r"rules\[1\]\.vo"),
        (
            '[[rules]]\ncertificates = ["/CN=a*b"]\nvo = "x"\nroles = ["user"]',
            r"line 2, .*very end",
        ),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        parse_policy(text, "p.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"missing\.toml"):
        load_policy(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match=r"bad\.toml"):
        load_policy(tmp_path / "bad.toml")


ME = "https://iam.test#me"
BOTH = {"atlas": frozenset({"user", "production"}), "vo.cta.org": frozenset({"user"})}


@pytest.mark.parametrize(
    ("wish", "vo", "roles"),
    [
        ("atlas", "atlas", {"user", "production"}),
        ("atlas.production", "atlas", {"user", "production"}),
        ("atlas.user", "atlas", {"user"}),
        ("vo.cta.org", "vo.cta.org", {"user"}),
        ("vo.cta.org.user", "vo.cta.org", {"user"}),
    ],
)
def test_who_has_several_vos_chooses(wish: str, vo: str, roles: set[str]) -> None:
    assert choose(BOTH, wish, ME) == (vo, roles)


def test_a_role_leaves_the_others_behind() -> None:
    roles = frozenset({"pilot", "operator"})
    assert choose({"atlas": roles}, "atlas.pilot", ME) == ("atlas", {"pilot"})


@pytest.mark.parametrize("wish", ["cms", "atlas.operator", "atlas.", ".user", "vo.cta", "*"])
def test_nobody_gets_what_they_have_not(wish: str) -> None:
    with pytest.raises(Forbidden, match=r"what you have: atlas\.production, atlas\.user"):
        choose(BOTH, wish, ME)


def test_the_only_vo_need_not_be_named_and_several_must() -> None:
    assert choose({"atlas": frozenset({"user"})}, None, ME) == ("atlas", {"user"})
    with pytest.raises(Forbidden, match=r"atlas, vo\.cta\.org: say for which.*PANDAFLOW_VO"):
        choose(BOTH, None, ME)
    with pytest.raises(Forbidden, match=f"ask its operator .* subject, {ME}"):
        choose({}, None, ME)
