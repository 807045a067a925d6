"""The SDK as a distribution of its own, ``metroculus-client``; ``make dist`` builds it where it has put its parts."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

SERVICE = ConfigParser()
SERVICE.read(Path(__file__).parent / "service.cfg")
"""The service's own ``setup.cfg``, whose version and floors of requirements hold here."""
REQUIRED = SERVICE["options"]["install_requires"].split()

setup(
    name="metroculus-client",
    version=SERVICE["metadata"]["version"],
    description="The SDK of Metroculus, which tells what Kubernetes clusters cost.",
    python_requires=SERVICE["options"]["python_requires"],
    packages=["optscale_client", "optscale_client.metroculus_client"],
    package_data={"optscale_client.metroculus_client": ["py.typed"]},
    install_requires=[one for one in REQUIRED if one.startswith("requests")],
    extras_require={"structs": [one for one in REQUIRED if one.startswith("msgspec")]},
)
