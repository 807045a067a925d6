"""Rotation of the cluster secret."""

from __future__ import annotations

from metroculus.metroculus_api.secret import GRACE_SECONDS, SecretKeeper


def test_the_old_secret_is_good_for_fifteen_minutes_and_the_new_at_once():
    now = [0.0]
    keeper = SecretKeeper("first-secret", lambda: now[0])
    keeper.rotate("second-secret")
    assert keeper.accepts(b"first-secret") and keeper.accepts(b"second-secret")
    now[0] = GRACE_SECONDS - 1
    assert keeper.accepts(b"first-secret")
    now[0] = GRACE_SECONDS
    assert not keeper.accepts(b"first-secret") and keeper.accepts(b"second-secret")
    assert not keeper.accepts(b"") and not keeper.accepts("é".encode())


def test_what_is_not_known_yet_accepts_nothing_and_an_empty_rotation_changes_nothing():
    keeper = SecretKeeper(None)
    assert not keeper.known and not keeper.accepts(b"")
    keeper.rotate("")
    assert not keeper.known
    keeper.rotate("a-secret")
    keeper.rotate("")
    assert keeper.accepts(b"a-secret")
