"""The engine: studies, their plan, the Ray Tune trainable, the account of cells and MLflow tracking."""

import os

# What listens on this machine is never reached through a proxy, which would ask its own machine.
for _name in ("no_proxy", "NO_PROXY"):
    _hosts = [*filter(None, os.environ.get(_name, "").split(",")), "localhost", "127.0.0.1", "::1"]
    os.environ[_name] = ",".join(dict.fromkeys(_hosts))
