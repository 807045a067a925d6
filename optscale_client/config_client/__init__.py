"""Configuration from etcd, as OptScale's services read it."""

from optscale_client.config_client.client import ConfigError, EtcdConfig

__all__ = ["ConfigError", "EtcdConfig"]
