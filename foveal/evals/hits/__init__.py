"""Whether a server's prefix cache gives what a cold run gives: a client for any OpenAI-compatible server.

client = connect("http://127.0.0.1:8000")
report = check(client, Checks())
"""

from foveal.evals.hits.checking import Checks, check
from foveal.evals.hits.client import Client, HitsError, connect
from foveal.evals.hits.report import Report

__all__ = ["Client", "HitsError", "Checks", "Report", "check", "connect"]
