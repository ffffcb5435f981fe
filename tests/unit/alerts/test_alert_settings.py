import pytest

from nightshift.errors import SettingError
from nightshift.settings import load_settings


def test_alerts_are_off_unless_they_are_set() -> None:
    off = load_settings(_env_file=None)
    assert (off.alert_recipients, off.alert_webhook) == ((), False)


def test_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_ALERT_EMAIL", "on-call@example.com, lead@example.com")
    monkeypatch.setenv("NIGHTSHIFT_ALERT_WEBHOOK", "true")
    on = load_settings(_env_file=None)
    assert on.alert_recipients == ("on-call@example.com", "lead@example.com")
    assert on.alert_webhook is True


@pytest.mark.parametrize(
    "value", ["on-call", "on-call@", "@example.com", "a@b,", "a@b;c@d", "", "a@b\nBcc: c@d"]
)
def test_what_is_no_address_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NIGHTSHIFT_ALERT_EMAIL", value)
    with pytest.raises(SettingError, match=r"NIGHTSHIFT_ALERT_EMAIL=.*is no e-mail address"):
        load_settings(_env_file=None)


def test_a_webhook_is_on_or_off_and_its_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_ALERT_WEBHOOK", "https://hooks.slack.com/services/s3cret")
    with pytest.raises(SettingError, match=r"NIGHTSHIFT_ALERT_WEBHOOK=.*slack_default") as refused:
        load_settings(_env_file=None)
    assert "s3cret" not in str(refused.value)
