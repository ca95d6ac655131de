"""The server's part: settings of training, aggregation of updates, and the acceptance check of a round."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from edgepeft.aggregation import AggregationSettings
from edgepeft.flower.messages import Training
from edgepeft.flower.strategy import AdapterStrategy

TRAINING = Training(epochs=2, batch_size=8, schedule="linear", warmup=0.1)
SETTINGS = AggregationSettings(weights="examples", clip=10.0)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    strategy = AdapterStrategy(
        str(config["bundle"]),
        str(config["out"]),
        settings=SETTINGS,
        training=TRAINING,
        held_out=str(config["held-out"]),
        min_updates=2,
        min_available_nodes=int(config["devices"]),
    )
    strategy.start(grid, num_rounds=int(config["rounds"]), timeout=1800)
