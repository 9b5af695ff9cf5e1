"""Registry of block designs."""

from __future__ import annotations

from typing import Any

from pretrain.registry import Registry

BLOCKS: Registry[Any] = Registry("block")
