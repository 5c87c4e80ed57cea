"""k-NN: building an index and asking it, through our model. Yardstick: the same calls of faiss. And the cold start.

Seconds of processor time, but for the cold start.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.bench.measure import cpu_seconds, in_turn, machine, medians, report

ROWS, QUERIES, FEATURES, K = 50_000, 2_000, 64, 10


def given(index_type: str) -> dict[str, str]:
    found = {
        "feature_dim": str(FEATURES), "k": str(K), "predictor_type": "classifier", "sample_size": str(ROWS),
        "index_type": index_type,
    }  # fmt: skip
    return found | ({"faiss_index_pq_m": "16"} if index_type == "faiss.IVFPQ" else {})


def raw_index(index_type: str) -> Any:
    import faiss

    quantizer, lists = faiss.IndexFlatL2(FEATURES), int(ROWS**0.5)
    if index_type == "faiss.Flat":
        return quantizer
    index = (
        faiss.IndexIVFFlat(quantizer, FEATURES, lists)
        if index_type == "faiss.IVFFlat"
        else faiss.IndexIVFPQ(quantizer, FEATURES, lists, 16, 8)
    )
    index.nprobe = 5
    return index


def ratios(index_type: str, features: Any, labels: Any, queries: Any) -> list[tuple[str, str]]:
    from optml_algorithms.knn.hyperparameters import settings
    from optml_algorithms.knn.model import about_of, build

    wanted = settings(given(index_type))
    about = about_of(wanted, label_size=1)
    built: dict[str, Any] = {}

    def build_raw() -> None:
        index = raw_index(index_type)
        if not index.is_trained:
            index.train(features)
        index.add(features)
        built["raw"] = index

    def build_ours() -> None:
        built["ours"] = build(wanted, about, features, labels)

    building = medians(in_turn({"raw": build_raw, "ours": build_ours}, runs=5, measured=cpu_seconds))
    asking = medians(
        in_turn(
            {"raw": lambda: built["raw"].search(queries, K), "ours": lambda: built["ours"].predict(queries)},
            runs=9,
            measured=cpu_seconds,
        )
    )
    assert (built["raw"].search(queries, K)[1] == built["ours"].neighbours(queries).rows).mean() > 0.999
    return [
        (f"{index_type}: faiss builds {ROWS:,} x {FEATURES}", f"{building['raw']:.3f} s"),
        (f"{index_type}: optml builds", f"{building['ours']:.3f} s, {building['ours'] / building['raw']:.2f} x"),
        (f"{index_type}: faiss searches {QUERIES:,} queries, k={K}", f"{asking['raw']:.3f} s"),
        (
            f"{index_type}: optml predicts, with scores",
            f"{asking['ours']:.3f} s, {asking['ours'] / asking['raw']:.2f} x",
        ),
    ]


def cold_start(root: Path) -> float:
    """Seconds from the start of the process until its (small) index stands."""
    import numpy

    from optml_algorithms.data.recordio_writer import write_recordio

    config, train = root / "input" / "config", root / "input" / "data" / "train"
    config.mkdir(parents=True)
    train.mkdir(parents=True)
    (root / "model").mkdir()
    (config / "hyperparameters.json").write_text(json.dumps(given("faiss.Flat")))
    (config / "inputdataconfig.json").write_text('{"train": {}}')
    write_recordio(train / "a.pbr", numpy.ones((1000, FEATURES)), numpy.zeros(1000))

    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(root)}
    argv = [sys.executable, "-m", "optml_algorithms.knn"]
    seconds: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if "rows indexed" in line:
                    seconds.append(time.perf_counter() - began)

    return statistics.median(seconds)


def main() -> None:
    import numpy

    random = numpy.random.default_rng(0)
    centres = random.normal(size=(50, FEATURES)) * 2
    of_centre = random.integers(0, 50, ROWS + QUERIES)
    table = (centres[of_centre] + random.normal(size=(ROWS + QUERIES, FEATURES))).astype("f4")
    labels = (of_centre[:ROWS] % 10).astype("f4")[:, None]
    rows = []
    for index_type in ("faiss.Flat", "faiss.IVFFlat", "faiss.IVFPQ"):
        rows += ratios(index_type, table[:ROWS], labels, table[ROWS:])
    with tempfile.TemporaryDirectory(prefix="optml-bench-") as scratch:
        rows.append(("process start until 1,000 rows are indexed", f"{cold_start(Path(scratch)):.2f} s"))
    print(machine())
    report("k-NN (medians of 5 and 9; at most 1.1 x faiss; cold start under 1.5 s)", rows)


if __name__ == "__main__":
    main()
