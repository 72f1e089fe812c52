"""Reads a dashboard as Grafana's own SDK does, and says what it does not know of it."""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def unknown(given, read, path):
    """Paths of what is in the file and not in the dashboard made of it."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key in read:
                yield from unknown(value, read[key], f"{path}/{key}")
            else:
                yield f"{path}/{key}"
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for place, (one, other) in enumerate(zip(given, read)):
            yield from unknown(one, other, f"{path}/{place}")
    elif given != read:
        yield path


# So that the options of each kind of panel, and Prometheus' queries, are known.
register_default_plugins()
with open(sys.argv[1]) as file:
    dashboard = json.load(file)
found = list(unknown(dashboard, json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder)), ""))
print("\n".join(found))
sys.exit(1 if found else 0)
