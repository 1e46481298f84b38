"""Errors of studies."""

from __future__ import annotations

from pandaflow.core.errors import PandaflowError


class StudyFailed(PandaflowError, RuntimeError):
    """A study ended without what it was to find, or was stopped because its trials fail."""
