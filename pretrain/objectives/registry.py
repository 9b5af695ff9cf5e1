"""Registry of training objectives."""

from __future__ import annotations

from typing import Any

from pretrain.registry import Registry

OBJECTIVES: Registry[Any] = Registry("objective")
