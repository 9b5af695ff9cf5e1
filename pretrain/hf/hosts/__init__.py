"""Native classes that hold our models: one file a class, imported here. `host_for` chooses."""

from pretrain.hf.hosts import bart, bert, gpt2, opt
from pretrain.hf.hosts.base import HOSTS, Host, host_for, host_of_type

__all__ = ["HOSTS", "Host", "bart", "bert", "gpt2", "host_for", "host_of_type", "opt"]
