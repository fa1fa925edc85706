"""One trial of a sweep, in an actor of its own: an ordinary run whose validation metrics go to Tune."""

import json
from typing import Any, final

from ray import tune

from mtl.config import parse
from mtl.errors import MtlError
from mtl.on_ray.channel import Channel, Event, StopWatch
from mtl.on_ray.train import fit
from mtl.session import train as owned


def run(name: str, text: str, channel: Channel) -> dict[str, Any]:
    """Train the configuration `text` (YAML), or take the result of its run if that has finished before.

    Metrics travel as JSON in one field, because Tune flattens what it is given.

    Args:
        name: of the trial; under it the channel is asked whether to stop.
        channel: to the driver of the sweep.

    Returns:
        outcome (finished, stopped or failed), and with it val and test, or error.
    """
    config = parse(text)

    def listen(event: Event) -> None:
        if event["kind"] == "evaluation" and event["split"] == "val":
            tune.report({"epoch": event["epoch"], "val": json.dumps(event["metrics"])})
        elif event["kind"] == "note":
            channel.put({"trial": name, "text": event["text"]})

    stopping = StopWatch(channel, name)
    try:
        result = owned(config, _Says(name, channel), lambda owner: fit(config, owner, listen, stopping))
    except MtlError as error:
        return {"outcome": "failed", "error": str(error)}
    except Exception as error:
        channel.put({"trial": name, "text": f"{type(error).__name__}: {error}"})
        raise  # Tune tries again, and the run goes on from its last commit
    if result["status"] == "stopped":
        return {"outcome": "stopped"}
    metrics = result["metrics"]
    return {"outcome": "finished", "val": json.dumps(metrics["val"]), "test": json.dumps(metrics["test"])}


@final
class _Says:
    def __init__(self, name: str, channel: Channel) -> None:
        self._name, self._channel = name, channel

    def line(self, text: str) -> None:
        self._channel.put({"trial": self._name, "text": text})
