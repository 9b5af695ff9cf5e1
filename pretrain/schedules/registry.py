"""Registry of learning-rate schedules."""

from __future__ import annotations

from typing import Any

from pretrain.registry import Registry

SCHEDULES: Registry[Any] = Registry("schedule")
