"""A program on two hosts: each sums its shard of a Pipe channel, then they meet over TCP, by name.

    optml train --instance-count 2 --channel train=data/train/ --input-mode Pipe --distribution ShardedByS3Key \
        -- python two_hosts.py
"""

import json
import os
import socket
import time
from pathlib import Path

ML = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
PORT = 7777


def main() -> None:
    resources = json.loads((ML / "input/config/resourceconfig.json").read_text())
    me, hosts = resources["current_host"], resources["hosts"]
    with (ML / "input/data/train_0").open() as epoch:  # the first epoch; train_1 would be the next
        labels = [float(line.partition(",")[0]) for line in epoch]
    print(f"{me} read {len(labels)} rows")
    rows, positive = gather(me, hosts, len(labels), sum(labels))
    print(f"rate={positive / rows:.4f} over {rows} rows")
    if me == hosts[0]:
        (ML / "model" / "rate.json").write_text(json.dumps({"rate": positive / rows}))


def gather(me: str, hosts: list[str], rows: int, positive: float) -> tuple[int, float]:
    """The first host adds up what all have and tells everyone."""
    if me == hosts[0]:
        with socket.create_server((me, PORT)) as server:
            peers = [server.accept()[0] for _ in hosts[1:]]
        for peer in peers:
            more_rows, more_positive = json.loads(peer.recv(100))
            rows, positive = rows + more_rows, positive + more_positive
        for peer in peers:
            peer.sendall(json.dumps([rows, positive]).encode())
            peer.close()
        return rows, positive
    with connect(hosts[0]) as first:
        first.sendall(json.dumps([rows, positive]).encode())
        rows, positive = json.loads(first.recv(100))
    return rows, positive


def connect(host: str) -> socket.socket:
    for _ in range(600):  # it may start a moment later
        try:
            return socket.create_connection((host, PORT))
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise SystemExit(f"{host} never listened")


if __name__ == "__main__":
    main()
