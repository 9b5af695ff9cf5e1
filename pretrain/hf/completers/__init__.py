"""What one does with an exported model, by what it was trained for: one file a way, imported here."""

from pretrain.hf.completers import blanks, continuation, masks, rewriting
from pretrain.hf.completers.base import COMPLETERS, Completer, Completion, Options

__all__ = ["COMPLETERS", "Completer", "Completion", "Options", "blanks", "continuation", "masks", "rewriting"]
